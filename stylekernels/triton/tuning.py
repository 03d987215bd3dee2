"""Configurations that were measured on this GPU, kept on disk.

Defaults are fixed, so that a first call takes no longer than compiling it. Under `autotune` (or
``STYLEKERNELS_AUTOTUNE=1``) every call that meets a problem for the first time measures a few
configurations and keeps the fastest, for this process and, in a file for each GPU and version of
Triton, for later ones.
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
#: The blocks that are open: each thread and task has its own, and they may end in any order.
_blocks: ContextVar[frozenset[object]] = ContextVar("autotune", default=frozenset())


@dataclass(frozen=True)
class Config:
    """Groups of pixels, columns and inner dimension of a program's step; warps; steps under way."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@contextlib.contextmanager
def autotune() -> Iterator[None]:
    """Measure configurations inside a ``with`` block: run what is to become fast there once, a
    Stylizer on a frame of its size for example. Not while a CUDA graph is captured. Other threads
    go on as they were."""
    block = object()
    _blocks.set(_blocks.get() | {block})
    try:
        yield
    finally:
        _blocks.set(_blocks.get() - {block})


def tuned(problem: tuple, device: torch.device, candidates: Sequence[Config]) -> Config:
    """Return the configuration that was measured for this problem before. The default, the first
    candidate, is returned if none was measured, or if it is not among the candidates."""
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
        problem: all that a configuration's speed depends on.
        device: the device that ``run`` runs on.
        candidates: configurations, the default among them.
        run: runs the problem; may be called any number of times.

    Returns:
        The fastest, or None where nothing is to be measured: not enabled, or known already.
    """
    name = _name_of(device)
    table = _table(name)
    if not (_always or _blocks.get()) or _key(problem) in table:
        return None
    times = {}
    for config in candidates:
        # One that takes more registers or memory than this GPU has does not run.
        with contextlib.suppress(*_REFUSALS):
            times[config] = seconds(lambda config=config: run(config))
    if not times:
        return None
    best = min(times, key=times.get)
    table |= _read(name)  # what other processes have found
    table[_key(problem)] = [*astuple(best)]
    _save(name, table)
    return best


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU. In the interpreter all are as fast."""
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
    """The configurations in the file; none if it isn't there or can't be read."""
    try:
        return dict(json.loads(_path(name).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _save(name: str, table: dict[str, list[int]]) -> None:
    """Write the file. A read-only home is no reason to stop."""
    text = json.dumps(table, indent=1) + "\n"
    with contextlib.suppress(OSError):
        write_whole(_path(name), lambda part: part.write_text(text))
