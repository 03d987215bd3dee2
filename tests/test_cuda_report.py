"""`.ci/cuda_report.py` reads what CUDA's tools print, and finds what must fail CI."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci/cuda_report.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no source tree")

NORM = "_ZN12stylekernels6device20instance_norm_kernelINS_8BFloat16ELi{}ELNS_6LayoutE0EEEvi"
BACKWARD = "_ZN12stylekernels6device29instance_norm_backward_kernelIfLi4ELNS_6LayoutE1EEEvi"
GRAM = "_ZN12stylekernels6device18gram_matrix_kernelINS_8BFloat16ELb0EEEvi"
SHORT, SHORT_BACKWARD, SHORT_GRAM = (
    "instance_norm_kernel<BFloat16, {}, 0>",
    "instance_norm_backward_kernel<float, 4, 1>",
    "gram_matrix_kernel<BFloat16, false>",
)


def ptxas(name: str, gpu: str, registers: int, stack=0, stores=0, loads=0) -> str:
    return f"""ptxas info    : Compiling entry function '{name}' for '{gpu}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 720 bytes cmem[0]
ptxas info    : Compile time = 216.117 ms
"""


OUTPUT = "[1/2] Building CUDA object\nptxas info    : 28 bytes gmem\n" + "".join(
    (
        ptxas(NORM.format(8), "sm_90a", 116),
        ptxas(NORM.format(1), "sm_90a", 71),
        ptxas(BACKWARD, "sm_90a", 112, stack=48, stores=16, loads=24),
        ptxas(NORM.format(8), "sm_100a", 124),
        ptxas(GRAM, "sm_90a", 200),
    )
)
SASS = f"""
arch = sm_90a
		Function : {NORM.format(8)}
        /*0420*/              @!P1 LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;
        /*0430*/                   LDG.E.64 R128, desc[UR6][R128.64] ;
        /*0440*/                   LDS.128 R8, [R2] ;
        /*0450*/               @P0 STG.E.EF.128 desc[UR6][R2.64], R8 ;
        /*0460*/                   STG.E.EF.128 desc[UR6][R2.64], R12 ;
		Function : {BACKWARD}
        /*0420*/                   LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;
        /*0450*/                   STG.E.64 desc[UR6][R2.64], R8 ;
		Function : {GRAM}
        /*0420*/                   LDGSTS.E.BYPASS.128.ZFILL [R9], desc[UR6][R4.64], P0 ;
        /*0430*/                   LDSM.16.MT88.4 R4, [R9] ;
        /*0440*/                   HMMA.16816.F32.BF16 R8, R4, R2, R8 ;
        /*0450*/                   HMMA.16816.F32.BF16 R12, R4, R3, R12 ;
"""
SYMBOLS = """                 U aoti_torch_get_dim
                 U torch_list_size
                 U _Znwm@GLIBCXX_3.4
                 U __cxa_throw@CXXABI_1.3
                 U free@GLIBC_2.2.5
                 w __gmon_start__
                 w _ITM_registerTMCloneTable
"""


@pytest.fixture
def report(monkeypatch):
    if shutil.which("c++filt") is None:
        pytest.skip("needs c++filt")
    spec = importlib.util.spec_from_file_location("cuda_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cuda_report", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernels(report):
    """Those of the recorded texts."""
    found = report.read_resources(OUTPUT)
    for name, numbers in report.read_instructions(SASS).items():
        found[name, "sm_90a"].instructions = numbers
    return found


def test_resources(report, kernels) -> None:
    first, backward = kernels[NORM.format(8), "sm_90a"], kernels[BACKWARD, "sm_90a"]
    assert len(kernels) == 5
    assert (first.name, first.registers, first.spilled) == (SHORT.format(8), 116, 0)
    assert {name: n for name, n in first.instructions.items() if n} == {
        "LDG.128": 1,
        "STG.128": 2,
        "LDS.128": 1,
    }
    assert {name: n for name, n in kernels[GRAM, "sm_90a"].instructions.items() if n} == {
        "LDGSTS.128": 1,
        "LDSM": 1,
        "HMMA": 2,
    }
    assert (backward.name, backward.stack, backward.spilled) == (SHORT_BACKWARD, 48, 24)
    assert kernels[NORM.format(8), "sm_100a"].registers == 124


def test_a_kernel_without_numbers_is_an_error(report) -> None:
    with pytest.raises(ValueError, match="expected registers and spills of"):
        report.read_resources(OUTPUT[: OUTPUT.rindex("ptxas info    : Used")])


def test_wanted_instructions(report, kernels) -> None:
    assert {kernel.name: kernel.wanted for kernel in kernels.values()} == {
        SHORT.format(8): ["LDG.128", "STG.128"],
        SHORT.format(1): [],
        SHORT_BACKWARD: ["LDG.128", "STG.128"],
        SHORT_GRAM: ["LDGSTS.128", "HMMA", "LDSM"],
    }
    for types, wanted in (
        ("float, false", ["LDGSTS.128", "HMMA"]),
        ("Float16, true", ["LDGSTS.128", "HMMA"]),
        ("double, true", ["LDGSTS.128", "DMMA"]),
    ):
        assert report.Kernel(f"gram_matrix_kernel<{types}>", "sm_90a", 1, 0, 0).wanted == wanted


def test_what_fails(report, kernels) -> None:
    warning = "instance_norm.cu(7): warning #177-D: variable was declared but never referenced"
    found = report.judge(f"{OUTPUT}{warning}\n", kernels.values(), ["cuInit"])
    assert found == [
        warning,
        f"{SHORT_BACKWARD}, sm_90a: 24 bytes of registers spilled; expected none",
        f"{SHORT_BACKWARD}, sm_90a: no STG.128; expected some",
        "cuInit: undefined; expected symbols of the stable ABI alone",
    ]


def test_elements_that_are_loaded_byte_by_byte_fail(report) -> None:
    kernel = report.Kernel("k", "sm_90a", 64, 0, 0, {"LDG.U8": 48})
    assert report.judge("", [kernel], []) == [
        "k, sm_90a: 48 LDG.U8; expected loads of whole elements"
    ]


def test_nothing_fails_without_cause(report, kernels) -> None:
    good = [kernel for kernel in kernels.values() if kernel.name != SHORT_BACKWARD]
    assert report.judge(OUTPUT, good, report.read_undefined(SYMBOLS)) == []


@pytest.mark.parametrize(
    "name",
    ["cuLaunchKernel", "aoti_cuda_stream", "_ZN2at4cuda20getCurrentCUDAStreamEa", "x@LIB_1"],
)
def test_undefined_symbols(report, name) -> None:
    assert report.read_undefined(f"{SYMBOLS}                 U {name}\n") == [name]


def test_the_table_has_a_row_for_each_kernel(report, kernels) -> None:
    lines = report.table(kernels.values()).splitlines()
    assert lines[0] == "Numbers of sm_90a, sm_100a:"
    assert lines[5].split(">")[1].split() == ["116", "124", *"00001020001000000000"]
    assert len(lines) == 6
