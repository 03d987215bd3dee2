"""Instance norm with affine, activation and residual in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.tensors import wide_dtype


def activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Apply one of `tensors.ACTIVATIONS`."""
    match activation:
        case "relu":
            return torch.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, negative_slope)
        case "tanh":
            return torch.tanh(z)
        case "sigmoid":
            return torch.sigmoid(z)
    return z


def activation_gradient(grad: Tensor, z: Tensor, activation: str, negative_slope: float) -> Tensor:
    """Return the gradient at the activation's input ``z``, from the gradient at its output."""
    match activation:
        case "relu":
            return torch.where(z <= 0, 0, grad)
        case "leaky_relu":
            return torch.where(z > 0, grad, grad * negative_slope)
        case "tanh":
            return grad * (1 - torch.tanh(z).square())
        case "sigmoid":
            y = torch.sigmoid(z)
            return grad * (y * (1 - y))
    return grad


def instance_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each (image, channel), at least in float32: (N, C) each."""
    var, mean = torch.var_mean(x.to(wide_dtype(x)), dim=(2, 3), correction=0)
    return mean, var


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(var + eps), or 0 where that is infinite: constant planes without eps are
    normalised to 0, with a gradient of 0."""
    square = var + eps
    return torch.rsqrt(torch.where(square == 0, torch.inf, square))


def _per_plane(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Reshape (C,) or (N, C) to broadcast against (N, C, H, W)."""
    return parameter.to(dtype)[..., None, None]


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    activation: str,
    negative_slope: float,
    residual_first: bool,
    eps: float,
) -> Tensor:
    """Compute activation((x - mean) / sqrt(var + eps) * weight + bias) + residual, at least in
    float32, rounded once. With ``residual_first`` the residual is added before the activation.
    """
    wide = wide_dtype(x)
    if mean is None or var is None:
        mean, var = instance_norm_stats(x)
    rstd = inverse_deviation(var.to(wide), eps)
    z = (x.to(wide) - _per_plane(mean, wide)) * _per_plane(rstd, wide)
    if weight is not None:
        z = z * _per_plane(weight, wide)
    if bias is not None:
        z = z + _per_plane(bias, wide)
    if residual is not None and residual_first:
        z = z + residual.to(wide)
    z = activate(z, activation, negative_slope)
    if residual is not None and not residual_first:
        z = z + residual.to(wide)
    return z.to(x.dtype)
