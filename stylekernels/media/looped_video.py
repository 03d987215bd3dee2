"""A video file in place of a camera: at its own rate, again and again."""

import os
import threading
import time
from collections.abc import Iterator
from fractions import Fraction

from stylekernels.media.fitting import fill
from stylekernels.media.frames import Frame
from stylekernels.media.video_source import VideoSource

_LONGER_SIDE = 640


class LoopedVideo:
    """Yields the frames of a video when their time has come. After the last comes the first.

    Args:
        path: a file with moving pictures that FFmpeg reads.
        size: width and height, to which frames are scaled and cut; None: scaled down to a longer
            side of 640 pixels.

    Attributes:
        problem: always None.

    Raises:
        VideoError: as `VideoSource`.
    """

    problem = None

    def __init__(self, path: str | os.PathLike, size: tuple[int, int] | None = None) -> None:
        self._path, self._size = path, size
        self._closed = threading.Event()
        VideoSource(path).close()  # refuse what is no video before anything begins

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        passed = Fraction(0)  # by the repetitions before
        began = time.monotonic()
        while True:
            with VideoSource(self._path, size=None if self._size else _LONGER_SIDE) as video:
                end = Fraction(0)
                for item in video:
                    if not isinstance(item, Frame):
                        continue
                    due = began + float(passed + item.time)
                    if self._closed.wait(max(0, due - time.monotonic())):
                        return
                    rgb = fill(item.rgb, self._size) if self._size else item.rgb
                    yield Frame(rgb, passed + item.time, item.duration)
                    end = item.time + item.duration
            passed += end
