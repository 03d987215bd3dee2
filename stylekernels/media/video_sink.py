"""A video file as a sink of frames, and of packets of sound and subtitles that are copied."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from stylekernels.media.frames import Frame
from stylekernels.media.video_colors import VideoColors, from_rgb, tag
from stylekernels.media.video_formats import VideoFormat
from stylekernels.media.video_journal import Journal

if TYPE_CHECKING:
    import av

_HUNDREDTHS = Fraction(1, 100)  # of a second: the times of a GIF
# Texts about the old file or its pictures, which the muxer writes anew.
_NOT_KEPT = {"encoder", "major_brand", "minor_version", "compatible_brands"}


class VideoSink:
    """Encodes frames into a file, beside packets that are copied bit for bit.

    Pictures of odd size keep it. In H.264 they are stored as 4:4:4, since 4:2:0 and its cropping
    know only even sizes there.

    Args:
        path: the file; replaced if it exists. Its extension does not matter.
        form: container and encoder.
        size: width and height of the frames.
        rate: frames a second, on average, for the header.
        varies: whether the rate varies. Frames are not reordered then: readers derive the duration
            of a file from the order in which they are stored.
        time_base: seconds of which the times of frames are multiples. Kept if the format can.
        colors: how to store the colours.
        aspect: width of a pixel, relative to its height.
        quality: CRF of the encoder, larger is worse; None: the default of the format.
        streams: streams of an open source whose packets will be written too.
        metadata: title, date and other texts about the file.
        language: of the frames, such as ``eng``.
        chapters: as PyAV describes them.
        journal: gets the encoded pictures too. Those that it has already take the place of as many
            frames, whose pixels are ignored. Not for GIF.

    Attributes:
        frames: number of frames written.
        left_out: those of ``streams`` that the container cannot hold. Their packets are ignored.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        form: VideoFormat,
        *,
        size: tuple[int, int],
        rate: Fraction,
        varies: bool,
        time_base: Fraction,
        colors: VideoColors,
        aspect: Fraction = Fraction(1),
        quality: int | None = None,
        streams: Sequence[av.stream.Stream] = (),
        metadata: dict[str, str] | None = None,
        language: str | None = None,
        chapters: Sequence[dict[str, Any]] = (),
        journal: Journal | None = None,
    ) -> None:
        import av

        self.frames = 0
        self._journal = journal
        self._colors = colors
        self._is_gif = form.name == "gif"
        self._time_base = _HUNDREDTHS if self._is_gif else time_base
        self._durations: dict[int, int] = {}
        self._last: int | None = None
        self._encoded = iter(()) if journal is None else journal.packets(self._time_base)
        options = dict(form.container_options)
        if form.name in ("mp4", "mov"):
            for name in ("video_track_timescale", "movie_timescale"):
                options[name] = str(self._time_base.denominator)
        with _writing():
            self._container = av.open(
                f"file:{os.fspath(path)}", "w", format=form.name, container_options=options
            )
        try:
            self._container.metadata.update(
                {name: text for name, text in (metadata or {}).items() if name not in _NOT_KEPT}
            )
            self._stream = self._container.add_stream(form.encoder, rate=rate)
            self._set_up(form, size, aspect, quality)
            if language is not None:
                self._stream.metadata["language"] = language
            if chapters:
                self._container.set_chapters(list(chapters))
            if varies and form.name != "gif":
                self._stream.codec_context.max_b_frames = 0
            self.left_out = [stream for stream in streams if not _holds(form.name, stream)]
            self._copies = {
                stream.index: _added(self._container, stream)
                for stream in streams
                if stream not in self.left_out
            }
        except BaseException:
            self._container.close()
            raise

    def _set_up(
        self, form: VideoFormat, size: tuple[int, int], aspect: Fraction, quality: int | None
    ) -> None:
        """Configure the encoder."""
        context = self._stream.codec_context
        context.width, context.height = size
        context.time_base = self._time_base
        context.sample_aspect_ratio = aspect
        context.options = dict(form.options)
        if self._is_gif:
            context.pix_fmt = "pal8"
            self._palettes = _Palettes(size, self._time_base)
            return
        odd = form.even and (size[0] % 2 or size[1] % 2)
        context.pix_fmt = "yuv444p" if odd else "yuv420p"
        context.options |= {"crf": str(form.quality if quality is None else quality)}
        tag(context, self._colors)

    def write(self, item: Frame | av.Packet) -> None:
        """Write a frame, or a packet of one of the streams.

        Raises:
            OSError: if the file cannot be written, for example because the disk is full.
        """
        with _writing():
            if not isinstance(item, Frame):
                copy = self._copies.get(item.stream.index)
                if copy is not None:
                    item.stream = copy
                    self._container.mux(item)
                return
            pts = self._next_pts(item)
            if self._journal is not None and self.frames < self._journal.count:
                packet = next(self._encoded)
                packet.stream = self._stream
                self._container.mux(packet)
            else:
                for frame in self._frames_of(item, pts):
                    self._encode(frame)
            self.frames += 1

    def finish(self) -> None:
        """Write what the encoder still holds and the index of the file, and close it.

        Raises:
            OSError: as for `write`.
        """
        with _writing():
            try:
                if self.frames:
                    for frame in self._palettes.rest() if self._is_gif else ():
                        self._encode(frame)
                    self._encode(None)
                    if self._journal is not None:
                        self._journal.end()
            finally:
                self._container.close()

    def _next_pts(self, item: Frame) -> int:
        """Return the time of a frame in units of the time base."""
        # Times must increase: those of some files do not, and GIF's hundredths are coarse.
        pts = round(item.time / self._time_base)
        if self._last is not None:
            pts = max(pts, self._last + 1)
        self._last = pts
        return pts

    def _frames_of(self, item: Frame, pts: int) -> Iterator[av.VideoFrame]:
        """Yield the frames that the encoder takes: one, which for GIF may be an earlier one."""
        import av

        self._durations[pts] = round((item.time + item.duration) / self._time_base) - pts
        if self._is_gif:
            frame = av.VideoFrame.from_ndarray(item.rgb, "rgb24")
        else:
            frame = from_rgb(item.rgb, self._colors, self._stream.codec_context.pix_fmt)
        frame.pts, frame.time_base = pts, self._time_base
        if self._is_gif:
            yield from self._palettes.apply(frame)
        else:
            yield frame

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame, or the rest if it is None."""
        for packet in self._stream.encode(frame):
            if packet.pts in self._durations:
                packet.duration = max(1, self._durations.pop(packet.pts))
            if self._journal is not None:
                self._journal.add(packet)
            self._container.mux(packet)


class _Palettes:
    """Reduces each frame to the 256 colours that suit it best, with dithering."""

    def __init__(self, size: tuple[int, int], time_base: Fraction) -> None:
        import av

        self._graph = av.filter.Graph()
        width, height = size
        buffer = self._graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base
        )
        split = self._graph.add("split")
        best = self._graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = self._graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = self._graph.add("buffersink")
        buffer.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(best, 1, 0)
        best.link_to(use, 0, 1)
        use.link_to(sink)
        self._graph.configure()

    def apply(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        """Take a frame, and yield those that are ready."""
        self._graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator[av.VideoFrame]:
        """Yield what is left after the last frame."""
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[av.VideoFrame]:
        import av

        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


@contextmanager
def _writing() -> Iterator[None]:
    """Turn the errors of a muxer or encoder into OSError."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _holds(name: str, stream: av.stream.Stream) -> bool:
    """Return whether a container can hold a stream. Some say so only when they begin to write."""
    import av

    try:
        with av.open(io.BytesIO(), "w", format=name) as trial:
            _added(trial, stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError, NotImplementedError):
        return False
    return True


def _added(container: av.container.OutputContainer, stream: av.stream.Stream) -> av.stream.Stream:
    """Add a copy of a stream's header to a container."""
    copy = container.add_stream_from_template(stream)
    copy.metadata.update(
        {name: stream.metadata[name] for name in ("language", "title") if name in stream.metadata}
    )
    copy.disposition = stream.disposition
    return copy
