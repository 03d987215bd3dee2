"""A run of ``stylekernels video``'s pipeline: a clip is decoded, painted and encoded."""

import itertools
import time
from pathlib import Path

from stylekernels.inference import Stylizer
from stylekernels.media.pattern import PatternSource
from stylekernels.media.pipeline import run_pipeline
from stylekernels.media.recording import record
from stylekernels.media.video_formats import video_format
from stylekernels.media.video_sink import VideoSink
from stylekernels.media.video_source import VideoSource

_CLIP_RATE = 60.0


def make_clip(path: Path, size: tuple[int, int], pictures: int) -> None:
    """Write a clip of a moving pattern, so many frames of width and height ``size``."""
    record(itertools.islice(PatternSource(size, _CLIP_RATE), pictures), path)


def run(stylizer: Stylizer, clip: Path) -> float:
    """Paint a clip into a file beside it, and return the seconds a frame."""
    painted = clip.with_stem("painted")
    with VideoSource(clip) as source:
        sink = VideoSink(
            painted,
            video_format(painted),
            size=source.size,
            rate=source.rate,
            varies=source.varies,
            time_base=source.time_base,
            colors=source.colors,
        )
        began = time.perf_counter()
        run_pipeline(source, stylizer, sink)
        return (time.perf_counter() - began) / sink.frames
