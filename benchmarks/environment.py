"""Environment variables of the C library and OpenMP, which read them when a process starts."""

import os
import sys
from collections.abc import Mapping

#: With glibc's defaults each large tensor is a new mapping, and the benchmark of a memory-bound op
#: measures page faults. So large allocations come from the heap, which is never trimmed.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}

#: Each of PyTorch's threads gets a core of its own. Otherwise two may wake up on the same core
#: after a pause: a parallel region then takes 4 ms, the scheduler's tick, instead of 0.3.
OPENMP = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


def restart_with(settings: Mapping[str, str]) -> None:
    """Replace this process by one with these environment variables, unless all are set already."""
    if not sys.platform.startswith("linux"):
        return
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    if missing:
        given = " ".join(f"{name}={value}" for name, value in missing.items())
        print(f"Starting again with {given}, as steady numbers need.", flush=True)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})
