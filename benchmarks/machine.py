"""Description of the machine and the versions that numbers were measured with."""

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import stylekernels

_ROOT = Path(__file__).resolve().parents[1]


def cpu_name() -> str:
    """Return the CPU's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """Return ``name`` in a form for file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _capability() -> str:
    """Return the instruction set of our kernels; without them, that of PyTorch's."""
    try:
        from stylekernels import _C
    except ImportError:
        return f"{torch.backends.cpu.get_cpu_capability()} (PyTorch's; our library is not built)"
    return _C.cpu_capability()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe() -> dict[str, Any]:
    """Describe machine, versions, threads, date, command and git revision of this run."""
    now = datetime.datetime.now(datetime.timezone.utc)
    # Results are written by such runs: they do not make the revision dirty.
    changed = _git("status", "--porcelain", "--", ":!benchmarks/results")
    return {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "revision": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": _capability(),
        "load_average": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stylekernels": stylekernels.__version__,
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("MALLOC_", "OMP_", "KMP_", "GOMP_"))
        },
    }
