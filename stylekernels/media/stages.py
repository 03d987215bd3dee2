"""Threads of a pipeline, and what hands items from one to the next."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol


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


class Latest:
    """A mailbox between two threads that holds one item, the newest: a new one replaces it.

    The thread that puts never waits, and the one that takes never gets an old item. What is taken
    is therefore never older than the time that the taker was busy.

    Attributes:
        closed: whether more items are accepted.
    """

    def __init__(self) -> None:
        self._items: deque[Any] = deque(maxlen=1)
        self.closed = False
        self._changed = threading.Condition()

    @property
    def empty(self) -> bool:
        return not self._items

    def put(self, item: Any) -> bool:
        """Replace the item. Return False, without doing so, if closed."""
        with self._changed:
            if not self.closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self.closed

    def take(self, timeout: float | None = None) -> Any:
        """Remove and return the item; wait for one if there is none.

        Args:
            timeout: seconds to wait at most; None: without limit.

        Returns:
            The item; None if there is none in time, or if closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._items, timeout)
            return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Accept no more items. The one inside can still be taken."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        """Yield the newest item, again and again, until the mailbox is closed and empty."""
        while (item := self.take()) is not None:
            yield item


class Closable(Protocol):
    """A queue that a stage fills or empties."""

    def close(self) -> None: ...


class Stage(threading.Thread):
    """A thread that keeps the error which ended it.

    Args:
        work: what it does.
        channel: what it fills or empties, closed at the end of the work.
    """

    def __init__(self, work: Callable[[], None], channel: Closable) -> None:
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

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, even if Ctrl-C is pressed: the caller will close the files then.

        Args:
            timeout: seconds to wait at most; None: without limit.

        Returns:
            Whether it has ended.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self.ended.is_set():
            rest = None if until is None else until - time.monotonic()
            if rest is not None and rest <= 0:
                return False
            with contextlib.suppress(KeyboardInterrupt):
                self.ended.wait(rest)
        return True
