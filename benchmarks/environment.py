"""What numbers need of the C library and of OpenMP: both read it when a process starts."""

import os
import sys
from collections.abc import Mapping

#: With glibc's defaults each large tensor is a fresh mapping, and a benchmark of a memory-bound op
#: measures page faults. So large blocks come from the heap, and the heap is never given back.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}

#: A core for each of PyTorch's threads. Otherwise two of them may wake up on the same one after a
#: pause, and a parallel region takes 4 ms, the scheduler's tick, instead of 0.3.
OPENMP = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


def restart_with(settings: Mapping[str, str]) -> None:
    """Replace this process by one with these environment variables, unless they are all set."""
    if not sys.platform.startswith("linux"):
        return
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    if missing:
        given = " ".join(f"{name}={value}" for name, value in missing.items())
        print(f"Starting again with {given}, as steady numbers need.", flush=True)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})
