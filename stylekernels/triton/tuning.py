"""Configurations measured on this GPU, stored on disk.

Defaults are fixed, so that a first call only compiles. Under `autotune` (or
``STYLEKERNELS_AUTOTUNE=1``) the first call with a new problem measures a few configurations and
keeps the fastest: in memory for this process, and in a file for each GPU and version of Triton for
later ones.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
import triton

from stylekernels.files import write_whole
from stylekernels.triton.launch import INTERPRETED

#: Cache version: bump when a kernel's speed changes.
_KERNELS = 2
_REFUSALS = (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError)
_always = os.environ.get("STYLEKERNELS_AUTOTUNE") == "1"
#: The open ``with autotune()`` contexts. Each thread and task has its own; they end in any order.
_contexts: ContextVar[frozenset[object]] = ContextVar("autotune", default=frozenset())


@dataclass(frozen=True)
class Config:
    """Groups of pixels and columns of a tile, inner dimension of a step; warps; stages."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@contextlib.contextmanager
def autotune() -> Iterator[None]:
    """Measure configurations inside a ``with`` statement.

    Run the calls that should become fast there once, for example a Stylizer on a frame of its size.
    Do not use it while a CUDA graph is captured. Other threads are not affected.
    """
    context = object()
    _contexts.set(_contexts.get() | {context})
    try:
        yield
    finally:
        _contexts.set(_contexts.get() - {context})


def tuned(problem: tuple, device: torch.device, candidates: Sequence[Config]) -> Config:
    """Return the configuration that was measured as fastest for this problem, or the default (the
    first candidate) if none was measured or it is not among the candidates."""
    found = _table(_name_of(device)).get(_key(problem))
    return next((c for c in candidates if [*astuple(c)] == found), candidates[0])


def tune(
    problem: tuple,
    device: torch.device,
    candidates: Sequence[Config],
    run: Callable[[Config], object],
) -> Config | None:
    """Measure the candidates for a problem that is new, and keep the fastest.

    Args:
        problem: everything that the speed of a configuration depends on.
        device: the device that ``run`` runs on.
        candidates: configurations, the default among them.
        run: runs the problem; may be called any number of times.

    Returns:
        The fastest candidate; None if measuring is not enabled or the problem is known already.
    """
    name = _name_of(device)
    table = _table(name)
    if not (_always or _contexts.get()) or _key(problem) in table:
        return None
    times = {}
    for config in candidates:
        # A candidate may need more registers or shared memory than this GPU has.
        with contextlib.suppress(*_REFUSALS):
            times[config] = seconds(lambda config=config: run(config))
    if not times:
        return None
    best = min(times, key=times.get)
    table |= _read(name)  # results of other processes
    table[_key(problem)] = [*astuple(best)]
    _save(name, table)
    return best


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU; 0 in the interpreter, where all calls count as equal."""
    if INTERPRETED.value:
        call()
        return 0.0
    return triton.testing.do_bench(call, warmup=10, rep=50, return_mode="median") / 1e3


def _key(problem: tuple) -> str:
    return " ".join(map(str, problem))


@functools.lru_cache
def _name_of(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name.replace(' ', '-')}-triton-{triton.__version__}-{_KERNELS}"


def _path(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "stylekernels", f"{name}.json")


@functools.lru_cache
def _table(name: str) -> dict[str, list[int]]:
    """The configurations of a device by problem, read once."""
    return _read(name)


def _read(name: str) -> dict[str, list[int]]:
    """The configurations in the file; none if it does not exist or cannot be read."""
    try:
        return dict(json.loads(_path(name).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _save(name: str, table: dict[str, list[int]]) -> None:
    """Write the file. Failing to, as in a read-only home, is no error."""
    text = json.dumps(table, indent=1) + "\n"
    with contextlib.suppress(OSError):
        write_whole(_path(name), lambda part: part.write_text(text))
