"""The dtype that results which are no images come in."""

import torch
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over ``x`` (statistics, Gram matrices, losses): float32, but float64 for
    float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
