"""Properties of Triton and of the device that every launcher asks for."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

#: True under TRITON_INTERPRET=1: kernels run in NumPy, on tensors of any device. The interpreter
#: stores bfloat16 as integers. Conversions of these are right, arithmetic on them is wrong, so
#: kernels convert to float32 before they multiply.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded(values, TYPE: tl.constexpr):
    """``values`` in another dtype, rounded to the nearest, halves to even."""
    if INTERPRETED and tl.bfloat16 == TYPE:  # its own conversion truncates and breaks denormals
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where(values == values, bits, 0x7FC00000)  # a NaN
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(TYPE)


@triton.jit
def _sums(values, AXIS: tl.constexpr):
    """Sum over an axis. A GPU adds in a tree. The interpreter adds sequentially, for which float32
    is not precise enough."""
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
    """The type of sums over ``x``: float64 for float64, else float32."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def product_precision(x: Tensor, flags) -> str:
    """The ``input_precision`` of ``tl.dot``: tf32 where PyTorch's flags allow it for float32 ``x``,
    else three tf32 products. These have the error of float32 and several times the speed of plain
    multiply-adds.

    Args:
        x: an operand of the product.
        flags: PyTorch's flags for such products, ``torch.backends.cuda.matmul`` for example.
    """
    if x.dtype == torch.float64 or on_amd():  # AMD's matrix instructions take float32 itself
        return "ieee"
    return "tf32" if x.dtype == torch.float32 and flags.fp32_precision == "tf32" else "tf32x3"


def on_amd() -> bool:
    """Return whether kernels are compiled for a GPU of AMD's."""
    if INTERPRETED.value:
        return False
    return triton.runtime.driver.active.get_current_target().backend == "hip"


def on_hopper() -> bool:
    """Return whether kernels are compiled for an H100, an H200 or a data-centre GPU of the next
    generation: 227 KB of shared memory."""
    if INTERPRETED.value or on_amd():
        return False
    return triton.runtime.driver.active.get_current_target().arch in (90, 100, 103)


def stages() -> int:
    """Stages of the software pipeline of a product. Their operands share one processor's memory:
    99 KB on desktop GPUs, 64 KB on AMD's."""
    return 2 if on_amd() else 3


@functools.lru_cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """The number of processors (SMs) of a device: at least so many programs run at once.

    4 in the interpreter, so that it splits small tensors as a GPU splits large ones. 132, an
    H100's, if kernels are compiled without a device.
    """
    if INTERPRETED.value:
        return 4
    if device.type != "cuda":
        return 132
    return _processors(torch.cuda.current_device() if device.index is None else device.index)
