"""Measured limits of this machine: bytes per second of a plain copy, operations per second."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import Call, Clock

_SOURCE = Path(__file__).with_name("peak.cpp")
_COPY_BYTES = 128 << 20  # larger than any cache of a CPU
_ATTEMPTS = 10
_SECONDS = 0.03  # duration of each attempt


@dataclass(frozen=True)
class Ceilings:
    """Measured limits. Each is the best of several attempts, for a limit is a maximum.

    Attributes:
        copy_bytes_per_s: speed of a copy larger than all caches, counting reads and writes.
        flops_per_s: floating-point operations per second by dtype; None if not measured. On a CPU
            they are measured in registers with all threads, on a GPU in large matrix products.
        notes: how the limits were measured, or why not.
    """

    copy_bytes_per_s: float
    flops_per_s: dict[str, float] | None
    notes: str

    def floor_seconds(self, dtype: str, bytes_moved: float, flops: float) -> float | None:
        """The least time that this work takes any program; None if the peak is not known."""
        moving = bytes_moved / self.copy_bytes_per_s
        if not flops:
            return moving
        if self.flops_per_s is None:
            return None
        return max(moving, flops / self.flops_per_s[dtype])


def measure_ceilings(threads: int) -> Ceilings:
    """Measure all limits of a CPU with ``threads`` threads, in about a second."""
    flops, notes = _measure_peaks(threads)
    return Ceilings(measure_copy(_COPY_BYTES, "cpu", Clock()), flops, notes)


def best_seconds(call: Call, clock: Clock) -> float:
    """Return the seconds of the fastest of several calls."""
    call()
    return min(clock.seconds(call) for _ in range(_ATTEMPTS))


def measure_copy(copied_bytes: int, torch_device: str, clock: Clock) -> float:
    """Measure the bytes per second, read and written, of a copy on a device."""
    source = torch.randn(copied_bytes // 4, device=torch_device)
    out = torch.empty_like(source)
    return 2 * copied_bytes / best_seconds(lambda: out.copy_(source), clock)


def _measure_peaks(threads: int) -> tuple[dict[str, float] | None, str]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))), None)
    if compiler is None:
        return None, "multiply-adds not measured: no compiler"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "peak.so")
        options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
        built = subprocess.run(
            [compiler, *options, str(_SOURCE), "-o", str(library)], capture_output=True, text=True
        )
        if built.returncode:
            return None, f"multiply-adds not measured: {compiler} fails: {built.stderr[:200]}"
        peak = ctypes.CDLL(str(library))
    for function in (peak.peak_float32, peak.peak_bfloat16):
        function.restype = ctypes.c_double
        function.argtypes = (ctypes.c_int, ctypes.c_double, ctypes.c_int)
    peak.bfloat16_instructions.restype = ctypes.c_char_p
    float32 = peak.peak_float32(threads, _SECONDS, _ATTEMPTS)
    instructions = peak.bfloat16_instructions().decode()
    if not instructions:
        note = "no instruction multiplies bfloat16 here: its peak is float32's"
        return {"float32": float32, "bfloat16": float32}, note
    bfloat16 = peak.peak_bfloat16(threads, _SECONDS, _ATTEMPTS)
    return {"float32": float32, "bfloat16": bfloat16}, f"bfloat16 by {instructions}"
