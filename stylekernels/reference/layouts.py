"""Memory layouts of images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last for channels_last ``x``, contiguous for everything else: views with gaps, and
    what is both."""
    plain = x.dim() != 4 or x.is_contiguous()
    if plain or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side, in a view with gaps too. By its strides:
    under vmap PyTorch can't be asked."""
    return x.stride(1) == 1 != x.stride(3)


def to_channels_last(x: Tensor) -> Tensor:
    """``x``, copied where it is not channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def laid_out_like(y: Tensor, x: Tensor) -> Tensor:
    """Dense ``y``, copied where it has to be, in the layout of ``x``; as it is where x is neither
    contiguous nor channels_last."""
    if x.is_contiguous():
        return y.contiguous()
    return to_channels_last(y) if channels_last(x) and not channels_last(y) else y


def new_like(y: Tensor, x: Tensor) -> Tensor:
    """A copy of ``y``, dense in the layout of ``x``; inside a transform of torch.func, which knows
    no layouts, in any."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return y.clone()
    return y.clone(memory_format=layout_of(x))


def dense_like(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor for a result in x's dtype and layout, of x's shape or another."""
    if shape is None:
        return torch.empty_like(x, memory_format=layout_of(x))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
