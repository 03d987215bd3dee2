"""Handling of signals that ask a process to end."""

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
    """Call a handler for these signals inside a ``with`` block, instead of ending the process.

    An ignored signal stays ignored, as ``nohup`` wants. Outside of the main thread nothing changes,
    because Python handles signals only there.

    Args:
        handler: a function of the signal's number and the interrupted frame.
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
