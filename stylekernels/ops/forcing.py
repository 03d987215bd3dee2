"""`use_impl`: force one implementation of every op, in a ``with`` block or for a process."""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

IMPLEMENTATIONS = ("native", "triton", "reference")
ENVIRONMENT = "STYLEKERNELS_IMPL"


def _check_name(name: str | None, source: str) -> str | None:
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"{source}: expected one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


@dataclass(eq=False)
class _Forcing:
    """A ``with use_impl(...)`` statement that was entered. Two of them are never equal."""

    name: str
    ended: bool = False


_IN_ENVIRONMENT: str | None = _check_name(os.environ.get(ENVIRONMENT) or None, ENVIRONMENT)
# The ``with`` blocks that this thread or asyncio task has entered, and the open ones of all
# threads. Blocks may end in any order and in any thread. The end of one undoes its effect.
_own: ContextVar[tuple[_Forcing, ...]] = ContextVar("stylekernels.use_impl", default=())
_all: list[_Forcing] = []
_lock = threading.Lock()
# The name of the last of `_all`, or the environment's. torch.compile guards on this variable, so
# that compiled functions follow use_impl.
_anywhere: str | None = _IN_ENVIRONMENT


@contextlib.contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Force one implementation of every op inside a ``with`` block.

    A thread or asyncio task that has entered blocks follows its innermost one. Other threads, such
    as those of PyTorch's backward pass on a GPU, follow the block that any thread entered last. So
    do functions compiled with ``torch.compile``, which cannot tell threads apart.

    Args:
        name: ``"native"``, ``"triton"`` or ``"reference"``. The environment variable
            ``STYLEKERNELS_IMPL`` does the same for a whole process.

    Raises:
        ValueError: if there is no such name. An op called inside the block raises RuntimeError if
            it has no such implementation for the tensor's device.
    """
    block = _Forcing(_check_name(name, "use_impl"))
    _enter(block)
    _own.set((*(other for other in _own.get() if not other.ended), block))
    try:
        yield
    finally:  # may run in another thread or task
        _leave(block)


def _enter(block: _Forcing) -> None:
    global _anywhere
    with _lock:
        _all.append(block)
        _anywhere = block.name


def _leave(block: _Forcing) -> None:
    global _anywhere
    with _lock:
        block.ended = True
        _all.remove(block)
        _anywhere = _all[-1].name if _all else _IN_ENVIRONMENT


def forced() -> str | None:
    """Return the name of the implementation that is forced here; None if none is."""
    if torch.compiler.is_compiling():
        return _anywhere
    for block in reversed(_own.get()):
        if not block.ended:
            return block.name
    return _anywhere


def is_forced(name: str) -> bool:
    """Return whether this implementation is forced by `use_impl` or the environment."""
    return forced() == name
