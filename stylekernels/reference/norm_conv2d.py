"""Convolution that normalises its input first, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.reference.instance_norm import activate, instance_norm_stats, inverse_deviation
from stylekernels.reference.upsample_block import pad, upsample_conv2d
from stylekernels.tensors import wide_dtype


def norm_scale_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return scale and shift of an instance norm with these statistics: (N, C, 2).

    The shift is computed from the rounded scale, and rounded once itself. A rounding error of the
    scale then multiplies x - mean, and not x, which may be far larger.
    """
    wide = torch.float32 if mean.device.type == "mps" else torch.float64  # mps has no float64
    scale = inverse_deviation(var.to(wide), eps)
    if weight is not None:
        scale = scale * weight
    scale = scale.to(mean.dtype)
    offset = mean * scale.to(wide)
    shift = -offset if bias is None else bias - offset
    return torch.stack((scale, shift.to(mean.dtype)), dim=-1)


def normalized_input(
    x: Tensor,
    scale_shift: Tensor | None,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
) -> Tensor:
    """Compute activation(x * scale + shift) + residual, at least in float32, rounded once."""
    z = x.to(wide_dtype(x))
    if scale_shift is not None:
        scale, shift = scale_shift[..., None, None, :].unbind(-1)
        z = torch.addcmul(shift, z, scale)  # one rounding: the product may be far larger
    z = activate(z, activation, negative_slope)
    if residual is not None:
        z = z + residual.to(z.dtype)
    return z.to(x.dtype)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: str,
) -> Tensor:
    """Upsample, pad, convolve and add the bias, rounded once to x's dtype."""
    dtype = x.dtype
    if bias is not None:
        # PyTorch may round half precision before adding the bias, and takes no float32 bias.
        x, weight, bias = (tensor.to(wide_dtype(x)) for tensor in (x, weight, bias))
    if upsample != "none":
        y = upsample_conv2d(x, weight, bias, upsample, padding_mode)
    elif padding_mode == "zeros":
        y = F.conv2d(x, weight, bias, stride, padding)
    else:
        y = F.conv2d(pad(x, padding, padding_mode), weight, bias, stride)
    return y.to(dtype)


def norm_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_shift: Tensor | None,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
    return_input: bool,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: str,
    return_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the output, its mean and biased variance, and the input of the convolution.

    Half precision: the input is computed in float32 and rounded once. The convolution sums in
    float32. The statistics are computed from the rounded output.
    """
    given = normalized_input(x, scale_shift, activation, negative_slope, residual)
    y = convolve(given, weight, bias, stride, padding, padding_mode, upsample)
    mean, var = instance_norm_stats(y) if return_stats else (None, None)
    return y, mean, var, given if return_input else None
