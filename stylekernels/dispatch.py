"""The only place that chooses an implementation of an op, and can say why.

``native``     C++ on the CPU, behind ``torch.ops.stylekernels``
``triton``     Triton kernels on a GPU, or on the CPU in Triton's interpreter
``reference``  plain PyTorch, on every device; a compiler can inline it
"""

import contextlib
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from stylekernels import native
from stylekernels.reference.transforms import transformed

IMPLEMENTATIONS = ("native", "triton", "reference")
OPS = (
    "gram_matrix",
    "gram_loss",
    "gram_losses",
    "instance_norm",
    "instance_norm_stats",
    "norm_conv2d",
    "upsample_block",
)

_ENVIRONMENT = "STYLEKERNELS_IMPL"


def _triton_lacks() -> str | None:
    """Why Triton's kernels can't be used on any device; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    # It compiles its own launchers, a few lines of C.
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        return "Triton finds no C compiler (gcc or clang) for its launchers"
    return None


#: Why there are no Triton kernels, None where there are; and whether its interpreter runs them on
#: the CPU: for tests, since it takes a second for what a GPU does in microseconds.
triton_missing: str | None = _triton_lacks()
interprets_triton: bool = triton_missing is None and os.environ.get("TRITON_INTERPRET") == "1"


def _check_name(name: str | None, source: str) -> str | None:
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"{source}: expected one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


@dataclass(eq=False)
class _Block:
    """A ``with use_impl(...)`` that has been entered. Two are never equal."""

    name: str
    ended: bool = False


_IN_ENVIRONMENT: str | None = _check_name(os.environ.get(_ENVIRONMENT) or None, _ENVIRONMENT)
# The blocks entered by this thread or asyncio task, and those of all that have not ended. Any order
# of entering and leaving, in any threads, ends with what was forced before.
_own: ContextVar[tuple[_Block, ...]] = ContextVar("stylekernels.use_impl", default=())
_all: list[_Block] = []
_lock = threading.Lock()
# The name of the last of `_all`, else the environment's. torch.compile guards on this variable, so
# that a compiled function follows use_impl instead of keeping what was chosen when it was traced.
_anywhere: str | None = _IN_ENVIRONMENT


@contextlib.contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Force one implementation of every op inside a ``with`` block.

    A thread or asyncio task with blocks of its own follows the innermost of these. Others, such as
    those of PyTorch's backward pass on a GPU, follow the block entered last by anyone, and so do
    functions compiled with ``torch.compile``, which cannot tell threads apart.

    Args:
        name: ``"native"``, ``"triton"`` or ``"reference"``. The environment variable
            ``STYLEKERNELS_IMPL`` does the same for a whole process.

    Raises:
        ValueError: for any other name. An op called inside the block raises RuntimeError if it
            has no such implementation for the tensor's device.
    """
    block = _Block(_check_name(name, "use_impl"))
    _enter(block)
    _own.set((*(other for other in _own.get() if not other.ended), block))
    try:
        yield
    finally:  # perhaps in another thread or task
        _leave(block)


def _enter(block: _Block) -> None:
    global _anywhere
    with _lock:
        _all.append(block)
        _anywhere = block.name


def _leave(block: _Block) -> None:
    global _anywhere
    with _lock:
        block.ended = True
        _all.remove(block)
        _anywhere = _all[-1].name if _all else _IN_ENVIRONMENT


def _forced() -> str | None:
    """The implementation that is forced here."""
    if torch.compiler.is_compiling():
        return _anywhere
    for block in reversed(_own.get()):
        if not block.ended:
            return block.name
    return _anywhere


def is_forced(name: str) -> bool:
    """Whether this implementation was forced by `use_impl` or the environment."""
    return _forced() == name


def _missing(implementation: str, device_type: str) -> str | None:
    """Why ``implementation`` can't run on a device of this type; None where it can."""
    if implementation == "reference":
        return None
    if implementation == "native":
        if device_type != "cpu":
            return f"there are no native kernels for {device_type} tensors"
        if native.cpu_missing is not None:
            return f"the C++ library is {native.cpu_missing}"
        return None
    if triton_missing is not None:
        return triton_missing
    if device_type == "cuda" or (device_type == "cpu" and interprets_triton):
        return None
    hint = " (only in its interpreter: set TRITON_INTERPRET=1)" if device_type == "cpu" else ""
    return f"there are no Triton kernels for {device_type} tensors{hint}"


def _choose(device_type: str) -> tuple[str, str]:
    """The implementation for tensors on this type of device, and why."""
    forced = _forced()
    if forced is not None:
        missing = _missing(forced, device_type)
        if missing is not None:
            raise RuntimeError(
                f"the implementation {forced!r} was forced, but {missing}; "
                f"leave use_impl and {_ENVIRONMENT} unset to use what is there"
            )
        return forced, f"forced by use_impl or {_ENVIRONMENT}"
    reasons = []
    for implementation in ("native", "triton"):
        missing = _missing(implementation, device_type)
        if missing is None and (implementation, device_type) == ("triton", "cpu"):
            missing = "Triton's interpreter is only for tests"
        if missing is None:
            return implementation, f"there are {implementation} kernels for {device_type} tensors"
        reasons.append(missing)
    return "reference", "; ".join(reasons)


def implementation(device_type: str) -> str:
    """The implementation for tensors on this type of device."""
    return _choose(device_type)[0]


def convolves(x: Tensor, kernel: int, upsample: str, padding_mode: str) -> bool:
    """Whether the convolution of `upsample_block` is ours: where it is known to be faster than
    PyTorch's, or was asked for.

    That is on CPUs with AVX2 or more, but for channels_last images and transposed kernels with a
    border of zeros: those of 3, which Winograd's method does nothing for, and in bfloat16 where
    PyTorch has instructions for it and we have no tiles. On GPUs it is for channels_last
    images: transposed ones whose border is continued, for cuDNN, which knows zeros only, gets an
    image that was padded; and nearest ones in half precision.

    Not in tiles on AMX where sums of weights, which ``nearest`` makes, are rounded to half
    precision: that shows in single pixels after the norm.
    """
    chosen = implementation(x.device.type)
    channels_last = (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )  # fmt: skip
    if chosen == "native":
        capability = native.cpu_capability
        if capability in (None, "baseline"):
            return False
        in_tiles = x.dtype == torch.bfloat16 and capability.startswith("amx")
        if in_tiles or is_forced("native"):
            return not (in_tiles and upsample == "nearest")
        plain = channels_last and upsample == "transpose" and padding_mode == "zeros"
        in_pairs = x.dtype == torch.bfloat16 and capability == "avx512_bf16"
        return not (plain and (kernel == 3 or in_pairs))
    if chosen != "triton":
        return False
    if upsample == "nearest":
        faster = x.dtype in (torch.bfloat16, torch.float16)
    else:
        faster = padding_mode != "zeros" and x.dtype != torch.float64
    return is_forced("triton") or (faster and channels_last)


def use_reference(x: Tensor) -> bool:
    """Whether an op on ``x`` runs its plain PyTorch formula instead of a kernel."""
    return _choose(x.device.type)[0] == "reference" or transformed()


def tensors_in(arguments: Iterable[object]) -> Iterator[Tensor]:
    """Those among an op's arguments, and in lists there."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_in(argument)


def explain(op: str, *args: object, **kwargs: object) -> str:
    """Say which implementation ``op`` would use for these arguments, and why.

    Args:
        op: name of a public op, e.g. ``"gram_matrix"``.
        args, kwargs: the op's own arguments; the first tensor among them decides.

    Returns:
        One line of text: the op, shape, dtype, layout and device, the implementation, and why.

    Raises:
        ValueError: for an unknown op.
        TypeError: if there is no tensor among the arguments.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    tensor = next(tensors_in((*args, *kwargs.values())), None)
    if tensor is None:
        raise TypeError(f"args: expected the arguments of {op}, a tensor among them, got none")
    chosen, reason = _choose(tensor.device.type)
    if op == "upsample_block":
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        kernel = weight.shape[-1] if isinstance(weight, Tensor) else 4
        mode = kwargs.get("upsample", "transpose"), kwargs.get("padding_mode", "replicate")
        if not convolves(tensor, kernel, *mode):
            reason += "; the convolution is PyTorch's"
    layout = "contiguous"
    if tensor.dim() == 4 and not tensor.is_contiguous():
        dense = tensor.is_contiguous(memory_format=torch.channels_last)
        layout = "channels_last" if dense else "strided (copied to contiguous first)"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{op} {tuple(tensor.shape)} {dtype} {layout} on {tensor.device}: {chosen} ({reason})"
