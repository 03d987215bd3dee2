"""A recording of live frames as a video file."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from stylekernels.files import write_whole
from stylekernels.media.frames import Frame
from stylekernels.media.video_colors import VideoColors
from stylekernels.media.video_formats import video_format
from stylekernels.media.video_sink import VideoSink

_MILLISECOND = Fraction(1, 1000)
_BT709 = 1
_RATE = Fraction(30)  # for the header: live frames come when they come


def record(frames: Iterable[Frame], path: Path) -> None:
    """Write frames into a video, each shown until the next one. Without frames nothing is written.

    Args:
        frames: all of one size. Their times may begin anywhere.
        path: the video, in the format of its extension; complete at the end of the frames.

    Raises:
        OSError: if the file cannot be written.
        VideoError: if there is no format for its extension.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return

    def write(part: Path) -> None:
        height, width = first.rgb.shape[:2]
        sink = VideoSink(
            part,
            video_format(path),
            size=(width, height),
            rate=_RATE,
            varies=True,
            time_base=_MILLISECOND,
            colors=VideoColors(_BT709, primaries=_BT709, transfer=_BT709),
        )
        try:
            for frame in itertools.chain([first], frames):
                sink.write(replace(frame, time=frame.time - first.time))
        finally:
            sink.finish()

    write_whole(path, write)
