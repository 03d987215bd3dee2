"""Frames from a source through a painter into a sink, all three at work at the same time.

The source and the sink run in a thread each. The painter runs in the thread that calls, so that
its arithmetic has one pool of threads, and Ctrl-C reaches it.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stylekernels.media.frames import Frame, Sink, Source


class Channel:
    """A queue between two threads that holds a few items, and that both ends can close.

    Args:
        size: number of items at which `put` begins to wait.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[Any] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:
        """Add an item, as soon as there is room. Return False, without adding it, if closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def close(self) -> None:
        """Accept no more items. Those inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        """Yield items, and wait for more, until the channel is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._items)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class _Stage(threading.Thread):
    """A thread that keeps the error which ended it.

    Args:
        work: what it does.
        channel: the channel that it fills or empties, closed at the end of the work.
    """

    def __init__(self, work: Callable[[], None], channel: Channel) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        # Not join(): up to Python 3.12 a thread whose join Ctrl-C interrupts is taken for ended.
        self.ended = threading.Event()
        self._work, self._channel = work, channel

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            self._channel.close()
            self.ended.set()

    def wait(self) -> None:
        """Wait for the end, even if Ctrl-C is pressed: the caller will close the files then."""
        while not self.ended.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                self.ended.wait()


def run_pipeline(
    source: Source,
    paint: Callable[[np.ndarray], np.ndarray],
    sink: Sink,
    *,
    ahead: int = 4,
    painted: Callable[[], None] = lambda: None,
) -> None:
    """Paint every frame of a source into a sink.

    The sink is finished however this ends: after an error of the source or the painter, and after
    KeyboardInterrupt, it has the frames that were painted until then.

    Args:
        source: read in a thread of its own. Items that are no frames go to the sink unchanged.
        paint: a function of pixels (H, W, 3) uint8, called in this thread.
        sink: written and finished in a thread of its own.
        ahead: the most items that wait before the painter, and after it.
        painted: called in this thread after each frame.

    Raises:
        BaseException: the error of the sink, the painter or the source. That of the sink comes
            first: without one, the result is complete as far as it goes.
    """
    unpainted, finished = Channel(ahead), Channel(ahead)

    def read() -> None:
        for item in source:
            if not unpainted.put(item):
                return

    def write() -> None:
        try:
            for item in finished:
                sink.write(item)
        finally:
            sink.finish()

    reader, writer = _Stage(read, unpainted), _Stage(write, finished)
    reader.start()
    writer.start()
    try:
        for item in unpainted:
            is_frame = isinstance(item, Frame)
            if is_frame:
                item = replace(item, rgb=paint(item.rgb))
            if not finished.put(item):
                break  # the sink failed
            if is_frame:
                painted()
        finished.close()
        writer.ended.wait()
    finally:
        # Again, because Ctrl-C may have interrupted the wait for the sink.
        unpainted.close()
        finished.close()
        reader.wait()
        writer.wait()
        if writer.error is not None:
            raise writer.error
    if reader.error is not None:
        raise reader.error
