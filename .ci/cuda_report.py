"""A report on the compiled CUDA kernels: ``cuda_report.py`` builds libstylekernels_cuda in
``build/cuda-report`` for the GPUs of setup.py, and prints a table. It needs no GPU, and does
nothing without nvcc.

A row is a kernel, with one number for each GPU: registers and stack of a thread in bytes, and
numbers of `INSTRUCTIONS`. The exit status is 1 after a compiler's warning or a spilled register, if
a kernel lacks one of the instructions that it is written for on `CHECKED` or loads elements byte by
byte, or if the library does not load into a PyTorch without CUDA.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The GPU whose kernels must have their instructions.
CHECKED = "sm_90a"
#: Instructions that are counted: 16-byte loads and stores of global memory, loads of single bytes,
#: 16-byte loads of shared memory, 16-byte asynchronous copies, loads of matrices, and products of
#: tensor cores.
INSTRUCTIONS = {
    "LDG.128": r"\bLDG\.\S*\b128\b",
    "STG.128": r"\bSTG\.\S*\b128\b",
    "LDG.U8": r"\bLDG\.\S*\bU8\b",
    "LDS.128": r"\bLDS\.\S*\b128\b",
    "LDGSTS.128": r"\bLDGSTS\.\S*\b128\b",
    "LDSM": r"\bLDSM\.",
    "HMMA": r"\bHMMA\.",
    "DMMA": r"\bDMMA\.",
}
#: Loads of single bytes that a kernel may have, of flags for example.
MOST_BYTES = 16
BYTES = {"float": 4, "double": 8, "BFloat16": 2, "Float16": 2}
LOAD = "import ctypes, os, sys, torch; ctypes.CDLL(sys.argv[1], os.RTLD_NOW)"


@dataclass
class Kernel:
    """A kernel for one GPU, see the module. ``name`` is demangled, without namespaces."""

    name: str
    gpu: str
    registers: int
    stack: int
    spilled: int
    instructions: dict[str, int] = field(default_factory=dict)  # numbers of `INSTRUCTIONS`

    @property
    def wanted(self) -> list[str]:
        """The instructions that it is written for, by its template arguments: an element type, and
        the lanes of a vector or, of a product, whether features are centred, in float32."""
        match = re.match(r"\w+<(\w+), (\w+)\b", self.name)
        if match is None:
            return []
        element, other = match.groups()
        if other.isdigit():
            return ["LDG.128", "STG.128"] if BYTES.get(element, 0) * int(other) == 16 else []
        wanted = ["LDGSTS.128", "DMMA" if element == "double" else "HMMA"]
        return wanted + ["LDSM"] * (BYTES.get(element) == 2 and other == "false")


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Return short names of functions."""
    names = sorted(set(names))
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = (
        re.sub(r"\(.*?\)(?=\d)|\([^()]*\)$|\b\w+::|^void ", "", name)
        for name in filtered.stdout.splitlines()
    )
    return dict(zip(names, short, strict=True))


def read_resources(output: str) -> dict[tuple[str, str], Kernel]:
    """Return the kernels of ptxas' output (``--resource-usage``) by mangled name and GPU.

    Raises:
        ValueError: If the output lacks numbers of a kernel.
    """
    kernels = {}
    parts = re.split(r"Compiling entry function '(\S+)' for '(\S+)'", output)[1:]
    names = demangled(parts[::3])
    for mangled, gpu, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        registers = re.search(r"Used (\d+) registers", text)
        spills = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        if registers is None or spills is None:
            raise ValueError(f"ptxas' output: expected registers and spills of {mangled}, {gpu}")
        stack, stores, loads = map(int, spills.groups())
        kernels[mangled, gpu] = Kernel(
            names[mangled], gpu, int(registers[1]), stack, max(stores, loads)
        )
    return kernels


def read_instructions(sass: str) -> dict[str, dict[str, int]]:
    """Return the numbers of `INSTRUCTIONS` by mangled name, from ``cuobjdump -sass``."""
    parts = re.split(r"Function : (\S+)", sass)[1:]
    return {
        mangled: {name: len(re.findall(pattern, text)) for name, pattern in INSTRUCTIONS.items()}
        for mangled, text in zip(parts[::2], parts[1::2], strict=True)
    }


def read_undefined(symbols: str) -> list[str]:
    """Return what ``nm -D --undefined-only`` names that is not of PyTorch's stable ABI, libc or
    libstdc++."""
    known = re.compile(r"^(aoti_)?torch_|@(GLIBC|GLIBCXX|CXXABI|GCC)_")
    lines = (line.split() for line in symbols.splitlines())
    return [name for kind, name in lines if kind not in "wv" and not known.search(name)]


def judge(output: str, kernels: Iterable[Kernel], undefined: Iterable[str]) -> list[str]:
    """Return what is wrong, a line each."""
    problems = [
        line.strip() for line in output.splitlines() if re.search(r"\bwarning\b", line, re.I)
    ]
    for kernel in kernels:
        where = f"{kernel.name}, {kernel.gpu}"
        if kernel.spilled:
            problems.append(f"{where}: {kernel.spilled} bytes of registers spilled; expected none")
        if kernel.gpu == CHECKED:
            problems += [
                f"{where}: no {name}; expected some"
                for name in kernel.wanted
                if not kernel.instructions.get(name)
            ]
            bytewise = kernel.instructions.get("LDG.U8", 0)
            if bytewise > MOST_BYTES:
                problems.append(f"{where}: {bytewise} LDG.U8; expected loads of whole elements")
    problems += [
        f"{name}: undefined; expected symbols of the stable ABI alone" for name in undefined
    ]
    return problems


def table(kernels: Iterable[Kernel]) -> str:
    """Return a row for each kernel, with the numbers of all GPUs."""
    rows: dict[str, list[Kernel]] = {}
    for kernel in sorted(kernels, key=lambda kernel: (kernel.name, len(kernel.gpu), kernel.gpu)):
        rows.setdefault(kernel.name, []).append(kernel)
    gpus = list(dict.fromkeys(kernel.gpu for row in rows.values() for kernel in row))
    lines = [("kernel", "registers", "stack", "spilled", *INSTRUCTIONS)]
    for name, row in rows.items():
        columns = [
            [kernel.registers for kernel in row],
            [kernel.stack for kernel in row],
            [kernel.spilled for kernel in row],
            *([kernel.instructions.get(name, 0) for kernel in row] for name in INSTRUCTIONS),
        ]
        lines.append((name, *(" ".join(f"{number:3}" for number in column) for column in columns)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([f"Numbers of {', '.join(gpus)}:", *text])


def load_setup():
    """Return setup.py as a module, which has CMake's commands."""
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(setup, nvcc: str, folder: Path) -> tuple[Path, str]:
    """Return the library and what its compilers printed."""
    configure, command = setup.cmake_commands(folder, folder / "output", nvcc)
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise SystemExit(f"cuda_report: FAIL: the build\n{result.stdout[-8000:]}")
    return folder / "libstylekernels_cuda.so", result.stdout


def find_cuobjdump(nvcc: str) -> str:
    """Return the disassembler of CUDA, or that of Triton."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(nvcc).resolve().parent]
    if triton is not None:
        folders.append(Path(triton.origin).parent / "backends/nvidia/bin")
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which("cuobjdump", path=path)
    if found is None:
        raise SystemExit(f"cuobjdump: expected one in {path}; install Triton or CUDA's tools")
    return found


def main() -> int:
    os.environ["FORCE_CUDA"] = "1"
    setup = load_setup()
    try:
        nvcc = setup.find_nvcc(setup.find_torch()[0])
    except setup.CannotBuild as missing:
        print(f"cuda_report: skipped: {missing}")
        return 0
    folder = ROOT / "build/cuda-report"
    shutil.rmtree(folder, ignore_errors=True)  # so that the compiler prints
    library, output = build(setup, nvcc, folder)
    kernels = read_resources(output)
    cuobjdump = find_cuobjdump(nvcc)
    for gpu in sorted({gpu for _, gpu in kernels}):
        command = [cuobjdump, "-sass", "-arch", gpu, library]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for mangled, numbers in read_instructions(sass).items():
            kernels[mangled, gpu].instructions = numbers
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    print(table(kernels.values()))
    problems = judge(output, kernels.values(), read_undefined(symbols))
    if not kernels:
        problems.append("ptxas' output: expected kernels, found none")
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, library], capture_output=True, text=True, check=False
    )
    if loaded.returncode != 0:
        problems.append(f"{library.name} does not load: {loaded.stderr.strip()}")
    print(*problems, sep="\n")
    print(f"cuda_report: {'FAIL' if problems else 'PASS'}: {len(kernels)} kernels")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
