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
    """Return the CPU's model name, with the generation of an AMD CPU: clouds hide its number."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = dict(re.findall(r"^(\w[\w ]*\w)\s*: (.+)$", text, re.MULTILINE))
    name = found.get("model name", "").strip() or platform.processor() or platform.machine()
    generation = None
    if found.get("vendor_id") == "AuthenticAMD":
        generation = _zen(int(found["cpu family"]), int(found["model"]))
    return f"{name}, Zen {generation}" if generation else name


def _zen(family: int, model: int) -> int | None:
    """Return the generation of an AMD core; None before Zen 3 and after Zen 5.

    The numbers are those of Linux' arch/x86/kernel/cpu/amd.c.
    """
    if family == 0x19:
        return 4 if 0x10 <= model <= 0x1F or 0x60 <= model <= 0xAF else 3
    is_zen_5 = family == 0x1A and (model <= 0x4F or 0x60 <= model <= 0x7F)
    return 5 if is_zen_5 else None


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
