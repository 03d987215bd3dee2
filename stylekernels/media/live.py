"""Live pictures: from a source through a painter to whoever shows them. The newest frame wins.

A file waits for the painter; a camera does not. Between two stages there is a mailbox of one item,
which a newer one replaces: a slow painter leaves frames out, and latency stays below the time of
two paintings, however long it runs. The source and the painter have a thread each, because windows
must belong to the thread that calls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from stylekernels.media.frames import Frame, LiveSource
from stylekernels.media.stages import Latest, Stage

_PATIENCE = 2.0  # seconds to wait for a source that does not end, such as a driver that hangs
_MICROSECONDS = 1_000_000
_FIRST_DURATION = 1 / 30  # seconds; of the first picture it is not known yet


@dataclass(frozen=True)
class Pace:
    """Limits of the painter's work.

    Attributes:
        fps: the most frames a second; None: as many as there are.
        share: the most part of the time that the painter works, above 0 and up to 1. It rests for
            the other part.
    """

    fps: float | None = None
    share: float = 1.0

    def rest(self, busy: float) -> float:
        """Return how long to rest, in seconds, after a frame that took ``busy`` seconds."""
        longest = busy / self.share
        if self.fps is not None:
            longest = max(longest, 1 / self.fps)
        return longest - busy


@dataclass(frozen=True)
class Painted:
    """A painted picture.

    Attributes:
        frame: its pixels; its time counts from the first picture, and its duration is the time
            since the picture before.
        captured: when the source yielded it, on the clock of ``time.monotonic``.
    """

    frame: Frame
    captured: float


class LivePipeline:
    """Paints the newest frame of a source, again and again. Use it as a context manager.

    Args:
        source: read in a thread of its own, and closed at the end.
        paint: a function of pixels (H, W, 3) uint8, called in a thread of its own.
        pace: limits of the painter's work.
    """

    def __init__(
        self,
        source: LiveSource,
        paint: Callable[[np.ndarray], np.ndarray],
        *,
        pace: Pace | None = None,
    ) -> None:
        self._source, self._paint, self._pace = source, paint, pace or Pace()
        self._captured, self._painted = Latest(), Latest()
        self._stopping = threading.Event()
        self._reader = Stage(self._read, self._captured)
        self._painter = Stage(self._paint_newest, self._painted)

    def __enter__(self) -> LivePipeline:
        self._reader.start()
        self._painter.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._source.close()
        self._captured.close()
        self._painter.wait()
        self._reader.wait(_PATIENCE)

    @property
    def ended(self) -> bool:
        """Return True after the source has ended and its last picture was taken."""
        return self._painter.ended.is_set() and self._painted.empty

    def take(self, timeout: float) -> Painted | None:
        """Return the newest picture that was not taken yet.

        Args:
            timeout: seconds to wait for one.

        Returns:
            The picture; None if there is none in time, or no more.

        Raises:
            BaseException: the error that ended the painter or the source.
        """
        painted = self._painted.take(timeout)
        if painted is None and self.ended:
            for stage in (self._painter, self._reader):
                if stage.error is not None:
                    raise stage.error
        return painted

    def _read(self) -> None:
        for frame in self._source:
            if not self._captured.put((frame.rgb, time.monotonic())):
                return

    def _paint_newest(self) -> None:
        first = before = None
        for rgb, captured in self._captured:
            if self._stopping.is_set():
                return
            began = time.monotonic()
            picture = self._paint(rgb)
            busy = time.monotonic() - began
            if first is None:
                first, before = captured, captured - _FIRST_DURATION
            frame = Frame(picture, _seconds(captured - first), _seconds(captured - before))
            before = captured
            self._painted.put(Painted(frame, captured))
            self._stopping.wait(self._pace.rest(busy))


def _seconds(number: float) -> Fraction:
    return Fraction(round(number * _MICROSECONDS), _MICROSECONDS)


class LiveSink:
    """Takes frames without delay. A thread of its own works on the newest one.

    Args:
        work: a function of a mailbox, to which this sink adds frames. The end of its work is when
            the mailbox is closed.
    """

    def __init__(self, work: Callable[[Latest], None]) -> None:
        self._frames = Latest()
        self._stage = Stage(lambda: work(self._frames), self._frames)
        self._stage.start()

    @property
    def ended(self) -> bool:
        """Return True after the end, by `close` or by an error, which `finish` raises."""
        return self._stage.ended.is_set()

    def write(self, frame: Frame) -> None:
        """Replace the frame that waits, if one does."""
        self._frames.put(frame)

    def close(self) -> None:
        """Let the work end, after the frame that waits. It may take a while."""
        self._frames.close()

    def finish(self) -> None:
        """End the work, and wait for it.

        Raises:
            BaseException: the error of the work.
        """
        self.close()
        self._stage.wait()
        if self._stage.error is not None:
            raise self._stage.error


class Meter:
    """Measures the pictures shown a second, and their latency.

    Attributes:
        count: number of pictures shown.
    """

    _WINDOW = 2.0  # seconds

    def __init__(self) -> None:
        self.count = 0
        self._shown: deque[tuple[float, float]] = deque()

    def shown(self, captured: float, now: float) -> None:
        """Count a picture that was captured and is shown at these times, in seconds."""
        self.count += 1
        self._shown.append((now, now - captured))
        while now - self._shown[0][0] > self._WINDOW:
            self._shown.popleft()

    @property
    def fps(self) -> float:
        """Pictures a second in the last two seconds; 0 before the second picture."""
        if len(self._shown) < 2:
            return 0.0
        return (len(self._shown) - 1) / (self._shown[-1][0] - self._shown[0][0])

    @property
    def latency(self) -> float:
        """Seconds between a frame's capture and its display, the median of the last two seconds."""
        return float(np.median([late for _, late in self._shown])) if self._shown else 0.0
