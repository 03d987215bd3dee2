"""Small videos for tests, made with PyAV; what is in a file; and writing one anew."""

from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from stylekernels.media.pipeline import run_pipeline
from stylekernels.media.video_formats import video_format
from stylekernels.media.video_sink import VideoSink
from stylekernels.media.video_source import VideoSource


def pictures(size, count, seed=1):
    """Return frames (H, W, 3) of soft blotches that move; all frames differ."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(20, 236, (4, 5, 3), np.uint8)
    whole = np.asarray(
        Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC)
    )
    return [np.roll(whole, -i, 1)[:, :width] for i in range(count)]


def make_clip(
    path,
    *,
    size=(64, 48),
    frames=None,
    times=None,
    rate=25,
    time_base=None,
    codec="libx264",
    pixels="yuv420p",
    tracks=0,
    subtitles=None,
    metadata=None,
    language=None,
    chapters=(),
    turn=None,
    colors=None,
    options=None,
    container_options=None,
):
    """Write a clip.

    Args:
        frames: pixels in RGB, or finished frames; `pictures` by default.
        times: of the frames, in units of ``time_base``; one after the other by default.
        tracks: of sound, a sine of another frequency in each.
        subtitles: an open file of subtitles in English, to be copied.
        language: of the frames.
        chapters: titles, of a second each.
        turn: arguments of `set_display_rotation`.
        colors: attributes of the encoder's context.
    """
    frames = pictures(size, 12 if times is None else len(times)) if frames is None else frames
    times = range(len(frames)) if times is None else times
    time_base = time_base or 1 / Fraction(rate)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        for name, value in (colors or {}).items():
            setattr(stream.codec_context, name, value)
        if turn is not None:
            stream.set_display_rotation(*turn)
        sounds = [container.add_stream("aac", rate=48000, layout="mono") for _ in range(tracks)]
        container.metadata.update(metadata or {})
        if language is not None:
            stream.metadata["language"] = language
        if chapters:
            container.set_chapters(
                [
                    {
                        "id": number,
                        "start": number,
                        "end": number + 1,
                        "time_base": Fraction(1),
                        "metadata": {"title": title},
                    }
                    for number, title in enumerate(chapters)
                ]
            )
        if subtitles is not None:
            copy = container.add_stream_from_template(subtitles.streams[0])
            copy.metadata["language"] = "eng"
        for frame, time in zip(frames, times, strict=True):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(
                    format=pixels
                )
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for number, sound in enumerate(sounds):
            count = int(48000 * times[-1] * time_base)
            sine = (8000 * np.sin(np.arange(count) * 0.02 * (number + 1))).astype(np.int16)
            for start in range(0, count - 1023, 1024):
                block = av.AudioFrame.from_ndarray(sine[None, start : start + 1024], "s16", "mono")
                block.sample_rate, block.pts, block.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(block))
            container.mux(sound.encode(None))
        for packet in subtitles.demux() if subtitles is not None else ():
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    return path


@dataclass
class Contents:
    """Contents of a video file.

    Attributes:
        frames: decoded frames of the first stream of pictures.
        start: time at which the file begins, in seconds.
        times: their times in units of ``time_base``.
        packets: of each other stream, by its index: bytes and time of each.
    """

    size: tuple[int, int]
    rate: Fraction
    time_base: Fraction
    duration: int
    start: Fraction
    colors: tuple[int, int, int, int]
    frames: list[av.VideoFrame] = field(default_factory=list)
    packets: dict[int, list[tuple[bytes, Fraction]]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def times(self):
        return [frame.pts for frame in self.frames]

    @property
    def seconds(self):
        return [frame.pts * self.time_base for frame in self.frames]

    @property
    def rgb(self):
        return [frame.to_ndarray(format="rgb24") for frame in self.frames]


def read_clip(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        contents = Contents(
            (stream.width, stream.height),
            stream.average_rate,
            stream.time_base,
            container.duration,
            Fraction(container.start_time or 0, 1_000_000),
            (
                context.colorspace,
                context.color_range,
                context.color_primaries,
                context.color_trc,
            ),
            metadata=dict(container.metadata),
        )
        for packet in container.demux():
            if packet.stream.type == "video":
                contents.frames += packet.decode()
            elif packet.dts is not None:
                seen = bytes(packet), packet.pts * packet.time_base
                contents.packets.setdefault(packet.stream.index, []).append(seen)
    return contents


def convert(path, output, *, quality=None, paint=lambda rgb: rgb, **options):
    """Write a file anew through source, pipeline and sink; return the source."""
    with VideoSource(path, **options) as source:
        sink = VideoSink(
            output,
            video_format(output),
            size=source.size,
            rate=source.rate,
            varies=source.varies,
            time_base=source.time_base,
            colors=source.colors,
            aspect=source.aspect,
            quality=quality,
            streams=source.copied,
            metadata=source.metadata,
            language=source.language,
            chapters=source.chapters,
        )
        run_pipeline(source, paint, sink)
    return source


def assert_near(actual, expected, tolerance):
    """Compare pictures that were compressed: the mean error counts."""
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).mean() <= tolerance
