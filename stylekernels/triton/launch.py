"""What every launcher needs to know of Triton and of the device."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Under TRITON_INTERPRET=1 kernels run in NumPy, on tensors of any device. It keeps bfloat16 as
#: integers, which it converts rightly and computes with wrongly: products too take float32 there.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(values, TYPE: tl.constexpr):
    """``values`` in another dtype, rounded to the nearest, halves to even."""
    if INTERPRETED and tl.bfloat16 == TYPE:  # it cuts digits off, and turns denormals into others
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where(values == values, bits, 0x7FC00000)  # a NaN
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(TYPE)


@triton.jit
def _sums(values, AXIS: tl.constexpr):
    """A GPU adds in a tree; the interpreter adds one after the other, for which float32 is too
    narrow."""
    if INTERPRETED:
        return tl.sum(values.to(tl.float64), AXIS).to(values.dtype)
    else:
        return tl.sum(values, AXIS)


@triton.jit
def column_sums(values):
    """Sums over the first axis."""
    return _sums(values, 0)


@triton.jit
def row_sums(values):
    """Sums over the second axis."""
    return _sums(values, 1)


def wide_type(x: Tensor) -> tl.dtype:
    """What sums over ``x`` are kept in: float32, float64 for float64."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def product_precision(x: Tensor, flags) -> str:
    """How ``tl.dot`` multiplies float32: in tf32 where PyTorch may for ``x`` of float32, else in
    three tf32 products, whose error is that of float32 at several times the speed of plain
    multiply-adds.

    Args:
        x: what is multiplied.
        flags: PyTorch's for such products, ``torch.backends.cuda.matmul`` for example.
    """
    if x.dtype == torch.float64 or on_amd():  # whose matrix instructions take float32 itself
        return "ieee"
    return "tf32" if x.dtype == torch.float32 and flags.fp32_precision == "tf32" else "tf32x3"


def on_amd() -> bool:
    """Whether kernels are compiled for one of AMD's GPUs."""
    if INTERPRETED.value:
        return False
    return triton.runtime.driver.active.get_current_target().backend == "hip"


def on_hopper() -> bool:
    """Whether kernels are compiled for an H100 or H200, or for the like of them of the generation
    after: 227 KB of shared memory."""
    if INTERPRETED.value or on_amd():
        return False
    return triton.runtime.driver.active.get_current_target().arch in (90, 100, 103)


def stages() -> int:
    """Steps of a loop over products that are under way at once. Their tiles share one processor's
    memory: 99 KB on GPUs for desktops, 64 KB on AMD's."""
    return 2 if on_amd() else 3


@functools.lru_cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """How many programs run side by side at least. A few in the interpreter, so that small tensors
    are split there as large ones are on a GPU; as many as on an H100 where kernels are compiled for
    no device."""
    if INTERPRETED.value:
        return 4
    if device.type != "cuda":
        return 132
    return _processors(torch.cuda.current_device() if device.index is None else device.index)
