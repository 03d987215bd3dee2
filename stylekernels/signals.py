"""Signals that ask a process to end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Ctrl-C, a request to end, and a closed terminal. Windows lacks SIGHUP.
ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, these signals call the handler instead of ending the process.

    A signal that is ignored stays so: ``nohup`` asks for it. In other threads than the main one
    nothing changes, because Python handles signals in that one alone.

    Args:
        handler: of a signal's number and the frame it interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: found
        for number in ENDING
        if (found := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)
