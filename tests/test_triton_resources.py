"""Every Triton kernel, compiled ahead of time: no GPU is needed for that.

For one GPU by default; `.ci/run` compiles for the others too (``-m other_gpus``).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]


OTHERS = ("sm_80", "sm_100", "gfx942")


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(name, marks=pytest.mark.other_gpus) for name in OTHERS)]
)
def test_kernels_compile_and_fit(target, tmp_path) -> None:
    """The command judges spills (if there must be none) and shared memory. It runs in a new
    process, because this one uses the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.resources", "--target", target],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    kernels = {line.split()[0] for line in found.stdout.splitlines() if "_kernel" in line}
    names = (
        "convolution gradient loss merge moments norm_gradient normalize pack prepare product "
        "statistics sum symmetric"
    )
    assert kernels == {f"{name}_kernel" for name in names.split()}
