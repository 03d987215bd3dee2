"""Decides whether the native code can be built here, and has CMake build it.

``STYLEKERNELS_BUILD=0`` builds nothing native; ``MAX_JOBS`` limits the compilers that run at once;
``CXX`` names the compiler. Kernels for GPUs are built if nvcc is there (in ``CUDACXX``,
``CUDA_HOME``, ``PATH`` or /usr/local/cuda) and the installed torch has CUDA; ``FORCE_CUDA=1``
builds them for any torch, ``FORCE_CUDA=0`` for none. ``TORCH_CUDA_ARCH_LIST`` names GPUs as torch
does, for example ``8.0;9.0a+PTX``.

For .ci/sanitize.py, ``STYLEKERNELS_SANITIZE`` has what ``-fsanitize=`` takes, and
``STYLEKERNELS_ONLY_CAPABILITIES`` the capabilities to compile, with semicolons. Everything else
about the package is in pyproject.toml.
"""

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "stylekernels"
OLDEST_TORCH = (2, 11)
#: A100, H100 and B200, and PTX for later GPUs, as CMake names them.
GPUS = ("80-real", "90a-real", "100a-real", "90-virtual")
#: What ninja says before each file: how many are done, of how many, and the seconds so far.
PROGRESS = "[%f of %t, %e s] "
#: Where the package says why it has no native code, or none for GPUs; it reads this when it warns.
REASON_FILE, CUDA_REASON_FILE = "not_built.txt", "cuda_not_built.txt"


class CannotBuild(Exception):
    """Something the native build needs isn't here; the package works without."""


def find_program(*names: str) -> str | None:
    """A program of this Python's environment, activated or not, or else of PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def find_compiler() -> str | None:
    """The C++ compiler for CMake; None where ``CXX`` names it, which CMake reads itself."""
    if requested := os.environ.get("CXX"):
        if shutil.which(shlex.split(requested)[0]) is None:
            raise SystemExit(f"CXX: expected a C++ compiler, got {requested!r}, which isn't there")
        return None
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotBuild("no C++ compiler was found; install one, e.g. the package g++")
    return compiler


def find_torch() -> tuple[Path, str]:
    """The installed torch and its version.

    torch isn't a build requirement: pip would fetch gigabytes of another torch into the isolated
    environment it builds in, for a few headers. The one this package is being installed beside
    has them, and pip's isolation leaves ``sys.prefix`` alone.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    for site_folder in (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ):
        folders.append(Path(site_folder, "torch"))
    for folder in folders:
        if (folder / "version.py").exists() and (folder / "include/torch/csrc/stable").exists():
            text = (folder / "version.py").read_text()
            version = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)[1]
            break
    else:
        raise CannotBuild(
            "torch was not found where the package was built; install torch first, and then this "
            "with `pip install --no-build-isolation`"
        )
    major, minor = re.match(r"(\d+)\.(\d+)", version).groups()
    if (int(major), int(minor)) < OLDEST_TORCH:
        raise CannotBuild(f"torch {version} was found, and 2.11 or later is needed")
    return folder, version


def find_nvcc(torch_folder: Path) -> str:
    """The compiler of the kernels for GPUs."""
    forced = os.environ.get("FORCE_CUDA")
    version = (torch_folder / "version.py").read_text()
    torch_cuda = re.search(r"^cuda\b[^=]*= ['\"](\d+)", version, re.MULTILINE)
    if forced == "0":
        raise CannotBuild("it was installed with FORCE_CUDA=0")
    if not forced and torch_cuda is None:
        raise CannotBuild("the torch beside which it was installed has no CUDA")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [f"{home}/bin/nvcc" for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    if named := os.environ.get("CUDACXX"):
        candidates = [named]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if nvcc is None:
        raise CannotBuild("nvcc was not found; install the CUDA toolkit")
    found = re.search(r"release (\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if not forced and found and int(found[1]) > int(torch_cuda[1]):
        raise CannotBuild(
            f"nvcc is of CUDA {found[1]}, and torch of CUDA {torch_cuda[1]}; install that version "
            "of the toolkit, or set FORCE_CUDA=1"
        )
    return nvcc


def gpu_architectures(nvcc: str) -> str:
    """The GPUs to compile for, as CMake names them: those asked for, else those of `GPUS` that nvcc
    knows."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not requested:
        known = subprocess.check_output([nvcc, "--list-gpu-code"], text=True).split()
        wanted = (name for name in GPUS if f"sm_{re.match(r'[0-9]+', name)[0]}" in known)
        return ";".join(wanted)
    names = []
    for gpu in re.split(r"[;, ]+", requested):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", gpu)
        if match is None:
            raise SystemExit(
                "TORCH_CUDA_ARCH_LIST: expected compute capabilities such as '8.0;9.0+PTX', got "
                f"{gpu!r}"
            )
        major, minor, ptx = match.groups()
        names += [f"{major}{minor}-{kind}" for kind in ("real", "virtual")[: 2 if ptx else 1]]
    return ";".join(names)


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        raise CannotBuild("pybind11 was not found; `pip install pybind11`") from None
    return pybind11.get_cmake_dir()


def cmake_commands(
    build_folder: Path, output_folder: Path, nvcc: str | None = None, emulate_amx: bool = False
) -> list[list[str]]:
    """The commands that configure, build and install into ``output_folder``. With ``nvcc`` they
    configure and build the kernels for GPUs alone, with ``emulate_amx`` also what only tests run.
    """
    if os.environ.get("STYLEKERNELS_BUILD", "1") == "0":
        raise CannotBuild("it was installed with STYLEKERNELS_BUILD=0")
    if sys.platform == "win32":
        raise CannotBuild("it isn't built on Windows")
    compiler = find_compiler()
    cmake = find_program("cmake", "cmake3")
    if cmake is None:
        raise CannotBuild("CMake was not found; `pip install cmake`")
    python_header = Path(sysconfig.get_path("include"), "Python.h")
    if not python_header.exists():
        raise CannotBuild("Python.h was not found; install Python's headers, e.g. python3-dev")
    torch_folder, torch_version = find_torch()

    configure = [
        cmake,
        *("-S", ROOT, "-B", build_folder),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_INSTALL_PREFIX={output_folder}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={find_pybind11()}",
        f"-DTORCH_FOLDER={torch_folder}",
        f"-DTORCH_VERSION={torch_version}",
    ]
    sanitizers = os.environ.get("STYLEKERNELS_SANITIZE", "")
    only = os.environ.get("STYLEKERNELS_ONLY_CAPABILITIES", "")
    # Each time, even if empty: CMake remembers what it was given before.
    configure += [f"-DSANITIZE={sanitizers}", f"-DONLY_CAPABILITIES={only}"]
    configure.append(f"-DEMULATE_AMX={'ON' if emulate_amx else 'OFF'}")
    if compiler is not None:
        configure.append(f"-DCMAKE_CXX_COMPILER={compiler}")
    if ninja := find_program("ninja"):
        # Named each time: pip's isolated environment and its ninja are gone by the next build.
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    build = [cmake, "--build", build_folder, "--parallel", jobs]
    if nvcc is not None:
        configure += [
            f"-DCMAKE_CUDA_COMPILER={nvcc}",
            f"-DCUDA_ARCHITECTURES={gpu_architectures(nvcc)}",
            f"-DCUDA_THREADS={jobs}",
        ]
        if requested := os.environ.get("CXX"):
            configure.append(f"-DCMAKE_CUDA_HOST_COMPILER={shlex.split(requested)[0]}")
        build += ["--target", "stylekernels_cuda"]
        return [[str(word) for word in command] for command in (configure, build)]
    install = [cmake, "--install", build_folder]
    if not sanitizers:  # their reports name lines
        install.append("--strip")
    return [[str(word) for word in command] for command in (configure, build, install)]


def run(command: list[str]) -> None:
    """Run one of the commands. Its output, with ninja's progress, is not captured."""
    subprocess.run(command, check=True, env={"NINJA_STATUS": PROGRESS} | os.environ)


def build_cuda(build_folder: Path, output_folder: Path) -> Path:
    """Build the kernels for GPUs, and return their library."""
    if os.environ.get("STYLEKERNELS_SANITIZE"):
        raise CannotBuild("it was built for sanitizers")
    nvcc = find_nvcc(find_torch()[0])
    try:
        for command in cmake_commands(build_folder, output_folder, nvcc):
            run(command)
    except subprocess.CalledProcessError as error:
        raise CannotBuild(f"{nvcc} failed, see the output of the installation") from error
    return build_folder / "libstylekernels_cuda.so"


class CMakeBuild(build_ext):
    """Puts the libraries into the package, or a file that says why they aren't there."""

    def run(self) -> None:
        # The package of the wheel, or that of the source tree when editable.
        package = Path(self.get_ext_fullpath(f"{PACKAGE}._C")).parent.resolve()
        package.mkdir(parents=True, exist_ok=True)
        build_folder = Path(self.build_temp).resolve()
        if self.inplace:
            build_folder = ROOT / "build" / f"inplace-{sys.implementation.cache_tag}"
        output_folder = build_folder / "output"

        libraries: list[Path] = []
        reason = None
        try:
            commands = cmake_commands(build_folder, output_folder, emulate_amx=self.inplace)
        except CannotBuild as missing:
            reason = str(missing)
            print(f"{PACKAGE}: installed without native code: {reason}", file=sys.stderr)
        else:
            shutil.rmtree(output_folder, ignore_errors=True)
            for command in commands:
                run(command)
            libraries = sorted(output_folder.glob("*.so"))
        cuda_reason = reason
        if reason is None:
            try:
                folder = build_folder.with_name(f"{build_folder.name}-cuda")
                libraries.append(build_cuda(folder, output_folder))
            except CannotBuild as missing:
                cuda_reason = str(missing)
                if os.environ.get("FORCE_CUDA", "0") != "0":
                    raise SystemExit(f"FORCE_CUDA: {cuda_reason}") from missing

        for old in package.glob("*.so"):
            if old.name not in {library.name for library in libraries}:
                old.unlink()
        for library in libraries:
            # Not written over: a running process may have the old file mapped.
            partial = package / f"{library.name}.partial"
            shutil.copy2(library, partial)
            partial.replace(package / library.name)
        for file, why in ((REASON_FILE, reason), (CUDA_REASON_FILE, cuda_reason)):
            if why is None:
                (package / file).unlink(missing_ok=True)
            else:
                (package / file).write_text(why + "\n")


if __name__ == "__main__":  # .ci/cuda_report.py imports this
    setup(
        ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
