"""``python -m benchmarks``: starts with what its numbers need of the C library."""

import os
import sys

#: With glibc's defaults each large tensor is a fresh mapping, and a benchmark of a memory-bound op
#: measures page faults. So large blocks come from the heap, and the heap is never given back.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}


def restart_with_malloc_settings() -> None:
    """glibc reads them when a process starts: replace this one if they are not set."""
    if not sys.platform.startswith("linux"):
        return
    missing = {name: value for name, value in MALLOC.items() if name not in os.environ}
    if missing:
        settings = " ".join(f"{name}={value}" for name, value in missing.items())
        print(f"Starting again with {settings}, so that no page faults are timed.", flush=True)
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


if __name__ == "__main__":
    restart_with_malloc_settings()

    from benchmarks.cli import main

    sys.exit(main())
