"""The CUDA kernels without a GPU: csrc/cuda compiled for the emulated one of tests/cuda_emulation.

Tensors on the CPU go to them inside `emulated_cuda`. Environment variables that begin with
``CUDA_EMULATION_`` set the limits of the GPU and the seed of the order of its threads. A GPU
without clusters has kernels that are compiled as for GPUs other than Hopper.
"""

import hashlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from stylekernels.ops.gram_matrix import SCHEMAS as GRAM_MATRIX
from stylekernels.ops.instance_norm import SCHEMAS as INSTANCE_NORM
from stylekernels.ops.registration import NAMESPACE

ROOT = Path(__file__).resolve().parents[1]
EMULATION = ROOT / "tests/cuda_emulation"
FLAGS = ("-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas")

TORCH = Path(torch.__file__).parent

#: Limits of the emulated GPU, as environment variables without their prefix: those of a large one;
#: one without clusters, whose blocks meet in a grid; and one that cannot keep what it has read.
LIMITS = {
    "clusters": {"MULTIPROCESSORS": 8, "SHARED_BYTES": 227 << 10, "LARGEST_CLUSTER": 16},
    "grid": {"MULTIPROCESSORS": 6, "SHARED_BYTES": 32 << 10, "LARGEST_CLUSTER": 1},
    "little memory": {"MULTIPROCESSORS": 3, "SHARED_BYTES": 24 << 10, "LARGEST_CLUSTER": 2},
}

#: The ops that have CUDA kernels.
OPS = {schema[: schema.index("(")]: schema for schema in (*INSTANCE_NORM, *GRAM_MATRIX)}
#: Namespaces of the emulated ops, and the compiler's flags: for Hopper, and for other GPUs.
_HOPPER, _OTHERS = f"{NAMESPACE}_emulated", f"{NAMESPACE}_emulated_others"
_OTHERS_FLAGS = ("-DCUDA_EMULATION_OTHERS",)


def build(
    name: str,
    sources: Sequence[Path],
    *,
    csrc: Path = ROOT / "csrc",
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
) -> Path:
    """Return a program, or a library with ``-shared`` in ``link_flags``, of ``sources`` and the
    emulation. It is kept in build/ for as long as nothing in ``csrc`` and the emulation changes.

    Raises:
        AssertionError: With the compiler's messages, if it fails.
    """
    own = sorted(EMULATION.glob("*.cpp"))
    emulation = _compiled("emulation", own, ROOT / "csrc", ("-O3",), ("-r", "-nostdlib"))
    return _compiled(name, [*sources, emulation], csrc, flags, ("-pthread", *link_flags))


def _compiled(
    name: str, sources: Sequence[Path], csrc: Path, flags: Sequence[str], link_flags: Sequence[str]
) -> Path:
    """Return what is linked of ``sources``; one without a suffix is an object already."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not csrc.is_dir():
        pytest.skip("needs a C++ compiler and the source tree")
    digest = hashlib.sha256(repr((compiler, FLAGS, flags, link_flags)).encode())
    files = [file for folder in (csrc, EMULATION) for file in sorted(folder.rglob("*.*"))]
    for file in [*files, *sources]:
        digest.update(file.name.encode() + file.read_bytes())
    folder = ROOT / "build/cuda_emulation"
    result = folder / f"{name}-{digest.hexdigest()[:16]}"
    if result.exists():
        return result

    objects = folder / f"{name}-{os.getpid()}"
    objects.mkdir(parents=True)

    def compile_one(numbered: tuple[int, Path]) -> Path:
        number, source = numbered
        if source.suffix == "":
            return source
        output = objects / f"{number}-{source.stem}.o"
        command = [compiler, *FLAGS, "-I", str(csrc), "-I", str(EMULATION), *flags]
        run([*command, "-x", "c++", "-c", str(source), "-o", str(output)])
        return output

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, enumerate(sources)))
        linked = objects / name
        run([compiler, *map(str, compiled), *link_flags, "-o", str(linked)])
        for outdated in folder.glob(f"{name}-{'?' * 16}"):
            outdated.unlink(missing_ok=True)
        linked.replace(result)
    finally:
        shutil.rmtree(objects)
    return result


def run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stderr[-8000:]}"


def build_kernels(
    name: str,
    csrc: Path = ROOT / "csrc",
    flags: Sequence[str] = (),
    *,
    sources: Sequence[str] | None = None,
    unchanged: Sequence[str] = (),
) -> Path:
    """Return the library of the kernels of a folder like csrc, see `build`.

    Args:
        sources: files of its folder cuda that are compiled; all of them if it is None.
        unchanged: further ones, taken from the source tree and kept as an object of their own for
            other libraries with the same flags.
    """
    include = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(TORCH / "include"))
    flags = (*include, "-ffp-contract=off", *flags)
    folder = csrc / "cuda"
    files = sorted(folder.glob("*.cu")) if sources is None else [folder / file for file in sources]
    for file in unchanged:
        own = [ROOT / "csrc/cuda" / file]
        object_name = f"unchanged-{Path(file).stem}"
        files.append(_compiled(object_name, own, ROOT / "csrc", flags, ("-r", "-nostdlib")))
    return build(
        name,
        files,
        csrc=csrc,
        flags=flags,
        # -Bsymbolic: each library calls its own functions, also if another has the same names.
        link_flags=("-shared", "-Wl,-Bsymbolic", f"-L{TORCH / 'lib'}", "-ltorch_cpu"),
    )


def define_and_load(library: Path, namespace: str = _HOPPER) -> None:
    """Define the ops in a namespace of their own, and load their kernels."""
    for name, schema in OPS.items():
        torch.library.define(f"{namespace}::{name}", schema.removeprefix(name))
    torch.ops.load_library(library)


def emulated_gpus(limits: Mapping[str, Mapping[str, int]]):
    """Return an automatic fixture: the tests of a module run on emulated GPUs of all these limits,
    or once on a real one, which has limits of its own."""

    @pytest.fixture(autouse=True, params=limits)
    def gpu(request, device, monkeypatch) -> None:
        if device != "cpu" and request.param != next(iter(limits)):
            pytest.skip("a GPU has limits of its own")
        for name, value in limits[request.param].items():
            monkeypatch.setenv(f"CUDA_EMULATION_{name}", str(value))

    return gpu


@cache
def _load(library: Path | None) -> str:
    define_and_load(library or build_kernels("kernels"))
    return _HOPPER


@cache
def _load_others() -> str:
    define_and_load(build_kernels("kernels-others", flags=_OTHERS_FLAGS), _OTHERS)
    return _OTHERS


@contextmanager
def emulated_cuda(library: Path | None = None) -> Iterator[None]:
    """Tensors on the CPU go to the emulated CUDA kernels of the ops that have some, or to those of
    a library of `build_kernels`; a process can have one."""
    no_clusters = os.environ.get("CUDA_EMULATION_LARGEST_CLUSTER") == "1"
    namespace = _load_others() if library is None and no_clusters else _load(library)
    library = torch.library.Library(NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")  # overriding is intended
        for name in OPS:
            library.impl(name, getattr(getattr(torch.ops, namespace), name), "CPU")
    try:
        yield
    finally:
        library._destroy()
