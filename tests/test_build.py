"""Decisions of the build, contents of the package, and requirements of the compiled libraries.

Most tests run in new processes, because the decisions are made at import.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stylekernels

PACKAGE = Path(stylekernels.__file__).parent
ROOT = PACKAGE.parent
LIBRARY = PACKAGE / "libstylekernels_cpu.so"

compiled = pytest.mark.skipif(not LIBRARY.exists(), reason="the native code was not built")
in_source_tree = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="installed without its source tree"
)


def run(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on ``arguments``, with these environment variables over a clean set of ours."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STYLEKERNELS_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def build_ext(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's native build with its results and its scratch files in ``folder``."""
    folders = ("--build-lib", folder / "lib", "--build-temp", folder / "temp")
    return run("setup.py", "-q", "build_ext", *folders, **environment)


# -- Building --------------------------------------------------------------------------------


@in_source_tree
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "", "CXX": ""}, r"no C\+\+ compiler was found; install one"),
        ({"STYLEKERNELS_BUILD": "0"}, r"it was installed with STYLEKERNELS_BUILD=0"),
    ],
)
def test_what_is_missing_is_said_and_no_error(tmp_path, environment, reason):
    stale = tmp_path / "lib/stylekernels/libstylekernels_cpu.so"
    stale.parent.mkdir(parents=True)
    stale.touch()

    result = build_ext(tmp_path, **environment)

    assert result.returncode == 0, result.stderr
    assert len(re.findall(f"installed without native code: {reason}", result.stderr)) == 1
    recorded = list(stale.parent.iterdir())  # and the library of an earlier build is gone
    assert {file.name for file in recorded} == {"not_built.txt", "cuda_not_built.txt"}
    assert all(re.match(reason, file.read_text()) for file in recorded)


@in_source_tree
def test_a_compiler_that_was_asked_for_must_be_there(tmp_path):
    result = build_ext(tmp_path, CXX="no-such-compiler -O2")
    assert result.returncode != 0
    assert "CXX: expected a C++ compiler, got 'no-such-compiler -O2'" in result.stderr


@in_source_tree
@compiled  # so that the tools are installed, and only the compiler fails
def test_a_compiler_that_fails_is_an_error(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    result = build_ext(tmp_path, CXX=str(compiler))
    assert result.returncode != 0
    assert not list(tmp_path.glob("lib/**/*.so"))


@in_source_tree
@compiled  # so that the tools are installed, but for CMake
def test_ninja_tells_the_progress_of_the_build(tmp_path):
    cmake = tmp_path / "cmake"
    cmake.write_text('#!/bin/sh\necho "$1: $NINJA_STATUS"\necho "$@"\n')
    cmake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    for environment, status in (({}, "[%f of %t, %e s] "), ({"NINJA_STATUS": "mine"}, "mine")):
        result = build_ext(tmp_path, PATH=path, FORCE_CUDA="0", **environment)
        assert result.returncode == 0, result.stderr
        assert f"--build: {status}\n" in result.stdout
        assert "-DEMULATE_AMX=OFF" in result.stdout  # which only tests run


@in_source_tree
def test_every_file_of_the_package_is_installed(tmp_path):
    result = run("setup.py", "-q", "build_py", "--build-lib", tmp_path)
    assert result.returncode == 0, result.stderr

    def files(folder: Path) -> set[str]:
        generated = ("*.so", "*.so.partial", "*.pyc", "*not_built.txt")
        return {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and not any(path.match(pattern) for pattern in generated)
        }

    assert files(PACKAGE) == files(tmp_path / "stylekernels")


def test_package_data_is_there():
    assert (PACKAGE / "py.typed").is_file()
    styles = list((PACKAGE / "weights").glob("*.safetensors"))
    assert all(style.with_suffix(".md").is_file() for style in styles), "a style has no model card"


@in_source_tree
def test_headers_define_nothing_that_each_file_has_its_own_of():
    """Inline functions would use one or another of them: the linker keeps a function of any file.
    Emulated tiles lost all sums in a build that inlined less."""
    own = re.compile(r"^(static (?!_assert).*|(?:inline )?namespace \{)", re.MULTILINE)
    headers = sorted((ROOT / "csrc").rglob("*.h"))
    found = {str(header): own.findall(header.read_text()) for header in headers}
    assert headers
    assert {header: lines for header, lines in found.items() if lines} == {}


# -- The libraries ---------------------------------------------------------------------------


@compiled
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to read symbols with")
def test_the_library_uses_only_the_stable_abi():
    """One binary must load into every torch since the version that it names."""
    output = subprocess.check_output(["nm", "-D", "--undefined-only", LIBRARY], text=True)
    symbols = [line.split()[-2:] for line in output.splitlines()]
    # Symbols of the C and C++ libraries have a version; torch's have none.
    from_torch = [name for kind, name in symbols if kind == "U" and "@" not in name]
    assert "torch_library_impl" in from_torch
    assert [name for name in from_torch if not re.match(r"(aoti_torch|torch)_", name)] == []


@compiled
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to read symbols with")
def test_the_library_exports_nothing_of_its_own():
    """The process has other libraries, and its ops are found through torch."""
    output = subprocess.check_output(["nm", "-D", "-C", "--defined-only", LIBRARY], text=True)
    assert [line for line in output.splitlines() if "stylekernels" in line] == []


@compiled
def test_build_info():
    from stylekernels import _C

    info = _C.build_info()
    assert set(info) == {"compiler", "flags", "torch", "stable_abi", "capabilities"}
    assert info["stable_abi"] == "2.11"
    assert info["capabilities"][0] == "baseline"
    assert set(_C.cpu_capabilities()) <= set(info["capabilities"])


# -- Importing without them ------------------------------------------------------------------

GRAM_OF_ONES = """
import torch, stylekernels.native
print(stylekernels.native.cpu_missing)
print(stylekernels.gram_matrix(torch.ones(1, 1, 2, 3)).item())
"""


def test_native_code_can_be_switched_off():
    result = run("-W", "error", "-c", GRAM_OF_ONES, STYLEKERNELS_NATIVE="0")
    assert result.stdout.splitlines() == ["switched off by STYLEKERNELS_NATIVE=0", "1.0"]
    assert result.stderr == ""


def test_without_the_library_it_warns_once_and_works(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "stylekernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (tmp_path / "stylekernels/not_built.txt").write_text("the reason\n")
    reason = "not built: the reason; mend that and reinstall"
    result = run("-c", GRAM_OF_ONES, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.stdout.splitlines() == [reason, "1.0"], result.stderr
    assert result.stderr.count("stylekernels runs in plain PyTorch") == 1

    # Like a clone, from which the installed package of another environment should be used.
    (tmp_path / "stylekernels/not_built.txt").unlink()
    (tmp_path / "setup.py").touch()
    result = run("-c", GRAM_OF_ONES, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert f"not built in {tmp_path}, which hides an installed package" in result.stderr

    for quiet in (("-c", "import stylekernels"), ("-m", "stylekernels", "stylize", "--help")):
        assert run(*quiet, cwd=tmp_path, PYTHONPATH=str(tmp_path)).stderr == ""


@compiled
def test_calls_leak_no_memory():
    """PyTorch's own conversion of string arguments does: docs/pytorch-faults.md."""
    ops, x, weight = torch.ops.stylekernels, torch.rand(1, 4, 4, 4), torch.rand(4, 4, 3, 3)
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("no mallinfo2 in this C library")
    mallinfo.restype = type(
        "Mallinfo", (ctypes.Structure,), {"_fields_": [("numbers", ctypes.c_size_t * 10)]}
    )
    calls = (
        lambda: ops.norm_conv2d_workspace(weight, 1, 4, 4, 1, 1, "zeros", "none"),
        lambda: ops.norm_conv2d_pack(weight, 1, 1, "zeros", "none"),
        lambda: stylekernels.instance_norm(x, activation="relu"),
    )
    for call in calls:
        for count in (100, 3000):  # first the memory that is allocated once
            before = mallinfo().numbers[7]  # bytes in use
            for _ in range(count):
                call()
        assert (mallinfo().numbers[7] - before) / count < 16
