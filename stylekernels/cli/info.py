"""``stylekernels info``: versions, hardware, and the implementation of each op."""

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import textwrap
from collections.abc import Iterable

import stylekernels
from stylekernels.cli.terminal import DONE, say
from stylekernels.models.styles import bundled_styles

_COMPANIONS = ("triton", "numpy", "pillow", "safetensors", "scikit-image")
_LABEL = 14


@dataclasses.dataclass
class Info:
    """Show versions, hardware, the implementation of every op and why, and bundled styles."""

    def run(self) -> int:
        say(describe())
        return DONE


def describe() -> str:
    """Return the report, as wide as the terminal and at most 100 columns."""
    import torch

    parts = [
        [f"stylekernels {stylekernels.__version__} in {os.path.dirname(stylekernels.__file__)}"],
        _versions(),
        _hardware(),
    ]
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    parts += [_ops_on(device) for device in devices]
    parts.append(_styles())
    return "\n\n".join("\n".join(lines) for lines in parts)


def _versions() -> list[str]:
    import torch

    # torch.__version__ names the build (+cpu, +cu130), which the metadata may leave out.
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in _COMPANIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return [
        *_entry("versions", ", ".join(versions)),
        *_entry("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]


def _hardware() -> list[str]:
    import torch

    cpu = torch.cpu.get_capabilities()
    name = cpu.get("cpu_name") or platform.processor() or platform.machine()
    instructions = torch.backends.cpu.get_cpu_capability()
    bfloat16 = [
        label
        for feature, label in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX"))
        if cpu.get(feature)
    ]
    gpus = [
        "{0.name}, compute capability {0.major}.{0.minor}, {1:.0f} GiB".format(
            torch.cuda.get_device_properties(index),
            torch.cuda.get_device_properties(index).total_memory / 2**30,
        )
        for index in range(torch.cuda.device_count())
    ]
    return [
        *_entry("CPU", ", ".join([name, instructions, *bfloat16])),
        *_entry("CPU threads", f"{torch.get_num_threads()} in use of {os.cpu_count()}"),
        *_entry("CPU kernels", _cpu_kernels()),
        *_entry("GPU", "; ".join(gpus) or "none that PyTorch can use"),
    ]


def _cpu_kernels() -> str:
    from stylekernels import native

    if native.cpu_missing is not None:
        return native.cpu_missing
    try:
        from stylekernels import _C

        used = _C.cpu_capability()
    except (ImportError, RuntimeError) as error:
        return f"C++; {error}"
    build = _C.build_info()
    return f"C++ for {used}, built by {build['compiler']} against torch {build['torch']}"


def _ops_on(device: str) -> list[str]:
    """Group ops that have the same implementation for the same reason."""
    import torch

    from stylekernels.ops import dispatch

    groups: dict[str, list[str]] = {}
    frame = torch.empty(1, 32, 64, 64, device=device)
    for op in dispatch.OPS:
        try:
            choice = dispatch.explain(op, frame).partition(": ")[2]
        except RuntimeError as error:  # the forced implementation is not available
            choice = f"none ({error})"
        groups.setdefault(choice, []).append(op)
    lines = [f"ops on {'the GPU' if device == 'cuda' else 'the CPU'}"]
    for choice, ops in groups.items():
        implementation, _, reason = choice.partition(" (")
        lines += _entry(f"  {implementation}", ", ".join(ops))
        lines += _entry("", reason.removesuffix(")"))
    return lines


def _styles() -> list[str]:
    styles = bundled_styles()
    return _entry("styles", ", ".join(styles) if styles else "none bundled; train one")


def _entry(label: str, text: str) -> Iterable[str]:
    return textwrap.wrap(
        text,
        width=min(shutil.get_terminal_size().columns, 100),
        initial_indent=label.ljust(_LABEL),
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    )
