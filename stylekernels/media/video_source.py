"""A video file as a source of frames, with the packets of its sound and subtitles."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylekernels.media.frames import Frame
from stylekernels.media.video_colors import Orientation, VideoColors, colors_of, orientation_of
from stylekernels.media.video_colors import to_rgb as rgb_of
from stylekernels.media.video_files import moving_pictures, open_video
from stylekernels.media.video_formats import VideoError

if TYPE_CHECKING:
    import av
    import numpy as np

SMALLEST_SIDE = 16

_CLOCK_RUNS_ON = 0x200  # FFmpeg's AVFMT_TS_DISCONT
_MICROSECONDS = 1_000_000  # FFmpeg's unit of times of a container
_USUAL_RATE = Fraction(25)  # for a file that names none


class VideoSource:
    """Decodes one stream of pictures, upright and in RGB; yields other packets as they are.

    The rotation that the file asks for is applied to the pixels: a network should see heads above
    feet, and many containers cannot store a rotation. Use it as a context manager.

    Args:
        path: a file with moving pictures that FFmpeg reads.
        size: scale frames down to this length of the longer side, in pixels. They are never
            enlarged. Sides become even.
        start: seconds of the video to leave out. Times then begin at 0.
        duration: seconds to read; None: to the end.
        every: yield only each frame of this number, shown until the next one.

    Attributes:
        size: width and height of the frames.
        rate: frames yielded a second; an average if it varies.
        varies: whether the file says that the rate varies.
        time_base: seconds of which all times of frames are multiples, unless ``start`` is given.
        colors: how the file stores colours.
        aspect: width of a pixel, relative to its height.
        copied: streams whose packets are yielded, of sound and subtitles.
        ignored: the other streams, but for one of the chapters' titles.
        count: number of frames that the file promises; None if it does not say.
        metadata: title, date and other texts about the file.
        language: of the moving pictures, such as ``eng``; None if the file does not say.
        chapters: as PyAV describes them, those in the time that is read.
        ended_early: after reading, what is missing in a file that was cut short or is damaged,
            as a text; None if nothing is.

    Raises:
        VideoError: if the file is missing, no video, a still picture or damaged, or if its frames
            have less than 16 pixels on a side, or none is in the time that was asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        size: int | None = None,
        start: float = 0,
        duration: float | None = None,
        every: int = 1,
    ) -> None:
        self.path = Path(path)
        self.ended_early: str | None = None
        self._every = every
        self._container = open_video(self.path)
        try:
            self._stream = moving_pictures(self._container, self.path)
            others = [s for s in self._container.streams if s.index != self._stream.index]
            self.copied = [s for s in others if s.type in ("audio", "subtitle")]
            self.metadata = dict(self._container.metadata)
            self._stream.thread_type = "AUTO"
            rate = _fraction(self._stream.average_rate) or _fraction(self._stream.guessed_rate)
            self._rate = rate or _USUAL_RATE
            self.rate = self._rate / every
            self.varies = self._rate != _fraction(self._stream.base_rate)
            self.time_base = _fraction(self._stream.time_base)
            self._whole = Fraction(self._container.duration or 0, _MICROSECONDS)
            self._cut(_seconds(start), None if duration is None else _seconds(duration))
            self.language = self._stream.metadata.get("language")
            self.chapters = self._shifted_chapters()
            self.ignored = [
                s for s in others if s not in self.copied and not self._has_chapters_titles(s)
            ]
            self._items = self._read(size)
            self._peeked = self._read_first_frame(start)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame | Any]:
        """Yield frames and, between them, the packets of the copied streams, once."""
        while self._peeked:
            yield self._peeked.pop(0)
        yield from self._items

    def _cut(self, start: Fraction, duration: Fraction | None) -> None:
        """Determine the times in the file between which is read, and go to the first."""
        self._zero = Fraction(self._container.start_time or 0, _MICROSECONDS)
        self._begin = self._zero + start if start else None
        self._end = None if duration is None else self._zero + start + duration
        self._shift = self._begin or self._offset()
        frames = self._stream.frames
        if start or duration is not None or not frames:
            rest = max(self._whole - start, Fraction(0))
            frames = math.ceil((rest if duration is None else min(rest, duration)) * self._rate)
        self.count = math.ceil(frames / self._every) or None
        if start:
            self._seek()

    def _offset(self) -> Fraction:
        """Return the time at which the clock of a broadcast's format begins, else 0.

        Such a clock runs on for days, and a part of a recording begins anywhere. Other formats
        begin late because they should be shown late.
        """
        flags = self._container.format.flags
        if not int(flags) & _CLOCK_RUNS_ON:
            return Fraction(0)
        return round(self._zero / self.time_base) * self.time_base  # times stay multiples

    def _shifted_chapters(self) -> list[dict[str, Any]]:
        """Return the chapters that are in the time that is read, at their times in the result."""
        if not hasattr(self._container, "chapters"):  # PyAV 14
            return []
        found = []
        for chapter in self._container.chapters():
            unit = _fraction(chapter["time_base"])
            begin, end = (chapter[name] * unit for name in ("start", "end"))
            if end <= self._shift or (self._end is not None and begin >= self._end):
                continue
            if self._end is not None:
                end = min(end, self._end)
            ticks = (round((time - self._shift) / unit) for time in (begin, end))
            start, end = (max(0, tick) for tick in ticks)
            found.append(chapter | {"start": start, "end": end})
        return found

    def _has_chapters_titles(self, stream: av.stream.Stream) -> bool:
        """Return whether a stream of data is that of MP4 with a packet for each chapter's title."""
        return (
            bool(self.chapters)
            and stream.type == "data"
            and stream.frames == len(self._container.chapters())
        )

    def _seek(self) -> None:
        """Go to a keyframe at or before the beginning.

        Formats without an index, such as MPEG-TS, find a time and not a keyframe: what follows may
        begin too late. The search is then repeated further back.
        """
        import av

        for back in (0, 4, 16, 64, self._begin):
            place = math.floor(max(self._begin - back, 0) * _MICROSECONDS)
            try:
                self._container.seek(place)
                packets = self._container.demux(self._stream)
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
                self._container.seek(place)
            except av.error.FFmpegError:
                continue
            if key is not None and key.pts * self.time_base <= self._begin:
                return

    def _read_first_frame(self, start: float) -> list[Frame | Any]:
        """Read items up to the first frame, which tells size and colours."""
        items = []
        for item in self._items:
            items.append(item)
            if isinstance(item, Frame):
                return items
        if start and self._whole:
            raise VideoError(
                f"{self.path}: no picture {float(start):g} s after its beginning; it is "
                f"{float(self._whole):.2f} s long"
            )
        raise VideoError(f"{self.path}: damaged: no picture in it can be decoded")

    def _read(self, size: int | None) -> Iterator[Frame | Any]:
        """Yield frames and packets."""
        self._last_time: Fraction | None = None  # of frames decoded, whether yielded or not
        self._reordered = False  # whether packets are in another order than frames
        self._shown_until = self._reached = Fraction(0)
        self._damaged = 0
        waiting: tuple[np.ndarray, Fraction] | None = None  # its duration is not known yet
        seen = 0
        for item in self._decoded():
            if not isinstance(item, tuple):
                yield item
                continue
            picture, time, duration = item
            if seen % self._every == 0:
                if waiting is not None:
                    yield Frame(*waiting, time - waiting[1])
                if not seen:
                    self._look_at(picture, size)
                stored = rgb_of(picture, self.colors, self._scaled)
                waiting = self._orientation.upright(stored), time
            seen += 1
            self._shown_until = time + duration
        if waiting is not None:
            yield Frame(*waiting, self._shown_until - waiting[1])
        self._judge_end()

    def _look_at(self, picture: av.VideoFrame, size: int | None) -> None:
        """Take from the first picture what all frames share."""
        self.colors: VideoColors = colors_of(picture, self._stream.codec_context)
        self._orientation: Orientation = orientation_of(picture)
        self._scaled = _scaled_size(picture.width, picture.height, size)
        if min(self._scaled) < SMALLEST_SIDE:
            width, height = self._scaled
            raise VideoError(
                f"{self.path}: expected at least {SMALLEST_SIDE} pixels on each side, got "
                f"{width}x{height}" + (f" at size {size}" if size else "")
            )
        self.aspect = _fraction(self._stream.codec_context.sample_aspect_ratio) or Fraction(1)
        self.size = self._scaled
        if self._orientation.transposed:
            self.size, self.aspect = self.size[::-1], 1 / self.aspect

    def _decoded(self) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction] | av.Packet]:
        """Yield decoded pictures with time and duration, and packets, between begin and end."""
        durations: dict[int, int] = {}
        ended: set[int] = set()  # streams that have reached the end of what is wanted
        lasting = {s.index for s in self.copied if s.type == "audio"} | {self._stream.index}
        for packet in self._packets():
            index = packet.stream.index
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * _fraction(packet.time_base)
                self._reached = max(self._reached, end)
            if index == self._stream.index:
                if packet.pts is not None and packet.duration:
                    durations[packet.pts] = packet.duration
                    self._reordered |= packet.pts != packet.dts
                for picture in self._decode(packet):
                    time, duration = self._timing(picture, durations)
                    if self._end is not None and time >= self._end:
                        ended.add(index)
                    elif self._begin is None or time >= self._begin:
                        if self._end is not None:
                            duration = min(duration, self._end - time)
                        yield picture, time - self._shift, duration
            elif packet.dts is not None:  # None: PyAV's mark of the end
                time = packet.pts if packet.pts is not None else packet.dts
                time *= _fraction(packet.time_base)
                if self._end is not None and time >= self._end:
                    ended.add(index)
                elif self._begin is None or time >= self._begin:
                    yield self._fitted(packet, time)
            if lasting <= ended:
                return

    def _packets(self) -> Iterator[av.Packet]:
        """Yield packets, up to a damage that ends the file."""
        import av

        packets = self._container.demux([self._stream, *self.copied])
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):
                self._damaged += 1
                return
            if packet is None:
                return
            yield packet

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        import av

        try:
            return packet.decode()
        except av.error.FFmpegError:
            # After a seek, the first packets may refer to pictures that were not read.
            self._damaged += self._last_time is not None or self._begin is None
            return []

    def _timing(
        self, picture: av.VideoFrame, durations: dict[int, int]
    ) -> tuple[Fraction, Fraction]:
        """Return the time at which a picture appears and for how long, in seconds of the file."""
        duration = 1 / self._rate
        number = picture.pts if picture.pts is not None else picture.dts
        if number is not None:
            time = number * _fraction(picture.time_base)
            if number in durations:
                duration = durations.pop(number) * self.time_base
                if self._reordered and self._last_time is not None:
                    # A packet lasts until the next packet, which is not that of the next frame.
                    duration = min(duration, time - self._last_time)
        elif self._last_time is not None:
            time = self._last_time + duration
        else:
            time = self._zero
        self._last_time = time
        return time, duration

    def _fitted(self, packet: av.Packet, time: Fraction) -> av.Packet:
        """Shift the times of a packet to begin at 0, and end it with the video.

        The last packet of sound lasts longer than the video if an edit list of the file, or
        ``duration``, ends within it.
        """
        unit = _fraction(packet.time_base)
        end = self._zero + self._whole if self._end is None else self._end
        if packet.duration and time < end < time + packet.duration * unit:
            packet.duration = math.ceil((end - time) / unit)
        if self._shift:
            ticks = round(self._shift / unit)
            packet.dts -= ticks
            if packet.pts is not None:
                packet.pts -= ticks
        return packet

    def _judge_end(self) -> None:
        """Compare the end of the last packet with what the file promised."""
        read = self._reached - self._zero
        shown = self._shift - self._zero + self._shown_until
        wanted = self._whole if self._end is None else min(self._whole, self._end - self._zero)
        # Durations in headers are rounded, and some are estimates.
        if wanted - read > max(Fraction(1, 2), 2 / self.rate, wanted / 100):
            self.ended_early = (
                f"{self.path}: cut short or damaged: ended after {float(shown):.2f} of "
                f"{float(wanted):.2f} s; what could be read was painted"
            )
        elif self._damaged:
            self.ended_early = (
                f"{self.path}: damaged: {self._damaged} parts could not be read; the rest was "
                "painted"
            )


def _scaled_size(width: int, height: int, size: int | None) -> tuple[int, int]:
    """Return width and height for a longer side of at most ``size``, even ones if it is given."""
    if size is None:
        return width, height
    if size >= max(width, height):
        return width // 2 * 2, height // 2 * 2
    factor = Fraction(size, max(width, height))
    return max(2, 2 * round(width * factor / 2)), max(2, 2 * round(height * factor / 2))


def _seconds(number: float) -> Fraction:
    """Return a time as it was written in decimal digits, to the microsecond."""
    return Fraction(number).limit_denominator(_MICROSECONDS)


def _fraction(value: Any) -> Fraction:
    """Return a rational number of any version of PyAV; 0 if it is not set."""
    return Fraction(value.numerator, value.denominator) if value else Fraction(0)
