"""The accuracy of every op under each set of CPU instructions that this machine supports.

The kernels are compiled once per capability, and the choice is made when the library is loaded. So
for each capability a new process runs the tests marked ``every_capability``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

native = pytest.importorskip("stylekernels._C", reason="stylekernels._C was not built")

VARIABLE = "STYLEKERNELS_CPU_CAPABILITY"
TESTS = Path(__file__).parent
#: Kernels for AMX over tiles in memory.
EMULATED = ("amx_emulated", "amx_emulated_avx512")


def run(*arguments: str, capability: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=TESTS.parent,
        env=environment | {VARIABLE: capability},
    )


def test_baseline_is_always_there_and_the_best_is_chosen() -> None:
    names = native.cpu_capabilities()
    assert names[0] == "baseline"
    assert set(names) <= {"baseline", "avx2", "avx512", "avx512_bf16", "amx", *EMULATED}
    if VARIABLE not in os.environ:
        assert native.cpu_capability() == [name for name in names if name not in EMULATED][-1]


OTHERS = [name for name in native.cpu_capabilities() if name != native.cpu_capability()]


@pytest.mark.parametrize("capability", OTHERS)  # all other tests use this process's capability
def test_accuracy(capability) -> None:
    in_use = run(
        "-c",
        "import stylekernels._C as c, stylekernels.native as n; "
        "print(c.cpu_capability(), n.cpu_missing)",
        capability=capability,
    )
    assert in_use.stdout.split() == [capability, "None"], in_use.stderr
    marker, ops = "every_capability", ["gram", "norm_conv2d", "instance_norm", "upsample_block"]
    if capability in EMULATED:  # tiles hold bfloat16; all else runs as on avx2 or avx512_bf16
        marker, ops = "every_capability and bfloat16", ops[:2]
    files = [str(path) for op in ops for path in sorted(TESTS.glob(f"test_{op}*.py"))]
    plugins = ("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:benchmark")
    command = ("-m", "pytest", "-q", "-x", "--tb=short", *plugins, "-m", marker)
    result = run(*command, *files, capability=capability)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.parametrize("capability", ["avx1024", "AVX2", "amx_emulated,avx2"])
def test_unknown_capability_is_refused_with_what_there_is(capability) -> None:
    result = run("-c", "import stylekernels.ops", capability=capability)
    assert result.returncode != 0, "the import went through"
    names = ", ".join(native.cpu_capabilities())
    assert f"{VARIABLE}: expected one of {names}" in result.stderr
    assert f"got '{capability}'" in result.stderr
