"""Instance and group norm with affine, activation and residual in plain PyTorch."""

import math

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
        case "silu":
            return F.silu(z)
        case "gelu":
            return F.gelu(z)
        case "gelu_tanh":
            return F.gelu(z, approximate="tanh")
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
        case "silu":
            y = torch.sigmoid(z)
            return grad * (y + z * (y * (1 - y)))
        case "gelu":
            below = torch.special.ndtr(z)
            return grad * (below + z * (torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)))
        case "gelu_tanh":
            a = math.sqrt(2 / math.pi)
            b = 0.044715 * a
            y = torch.tanh(z * (a + b * z * z))
            return grad * (0.5 * (1 + y) + 0.5 * z * ((1 - y * y) * (a + 3 * b * z * z)))
    return grad


def instance_norm_stats(x: Tensor, group: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each (image, channel), at least in float32: (N, C) each. With
    ``group`` they are those of as many consecutive channels together."""
    wide = x.to(wide_dtype(x))
    if group == 1:
        var, mean = torch.var_mean(wide, dim=(2, 3), correction=0)
        return mean, var
    wide = wide.unflatten(1, (x.shape[1] // group, group))
    var, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0)
    return _of_channels(mean, group), _of_channels(var, group)


def _of_channels(of_groups: Tensor, group: int) -> Tensor:
    """Repeat values of groups (N, C / group) for their channels: (N, C)."""
    n, groups = of_groups.shape
    return of_groups[..., None].expand(n, groups, group).reshape(n, groups * group)


def sums_of_groups(of_channels: Tensor, group: int) -> Tensor:
    """Sum (N, C) over each group of consecutive channels; every channel gets its group's sum."""
    if group == 1:
        return of_channels
    n, c = of_channels.shape
    groups = of_channels.reshape(n, c // group, group)  # is_grads_batched has no unflatten
    return _of_channels(groups.sum(2), group)


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
    group: int = 1,
) -> Tensor:
    """Compute activation((x - mean) / sqrt(var + eps) * weight + bias) + residual, at least in
    float32, rounded once. With ``residual_first`` the residual is added before the activation;
    with ``group`` as many channels share mean and variance."""
    wide = wide_dtype(x)
    x_wide = x.to(wide)  # once, so that the gradient of x is rounded once
    if mean is None or var is None:
        mean, var = instance_norm_stats(x_wide, group)
    rstd = inverse_deviation(var.to(wide), eps)
    z = (x_wide - _per_plane(mean, wide)) * _per_plane(rstd, wide)
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
