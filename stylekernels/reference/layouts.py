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


def dense_like(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor for a result in x's dtype and layout, of x's shape or another."""
    if shape is None:
        return torch.empty_like(x, memory_format=layout_of(x))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))
