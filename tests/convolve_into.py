"""torch.ops.stylekernels.norm_conv2d_out with named arguments: the op itself takes 19 in order."""

import torch
from torch import Tensor

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels


def convolve_into(
    y: Tensor,
    workspace: Tensor,
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    mode: tuple[int, int, str, str],
    *,
    bias: Tensor | None = None,
    scale_shift: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    norm: tuple[Tensor | None, Tensor | None, float] = (None, None, 1e-5),
    input: Tensor | None = None,
    next_scale_shift: Tensor | None = None,
) -> None:
    """``mode`` is (stride, padding, padding_mode, upsample), ``norm`` (weight, bias, eps)."""
    before = (bias, scale_shift, activation, negative_slope, residual)
    results = (y, input, next_scale_shift, workspace)
    torch.ops.stylekernels.norm_conv2d_out(x, weight, packed, *before, *mode, *norm, *results)
