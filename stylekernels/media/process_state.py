"""State of the whole process that several threads change temporarily."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType


class SharedChange:
    """A context manager: the first thread to enter makes a change, the last to leave undoes it.

    If each thread changed and restored the state itself, the first to leave would end the change
    for the others, and the last one would restore the changed state.

    Args:
        change: returns a context manager that makes and undoes the change.

    Attributes:
        lock: held while the state changes.
        users: number of threads inside.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self.lock = threading.Lock()
        self._made: AbstractContextManager[None] | None = None
        self.users = 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self._made = self._change()
                self._made.__enter__()
            self.users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self._made.__exit__(None, None, None)
