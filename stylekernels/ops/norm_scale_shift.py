"""Statistics of an instance norm as the scale and shift that `norm_conv2d` takes."""

import torch
from torch import Tensor

from stylekernels import reference
from stylekernels.ops.arguments import check_device, check_number, check_tensor, fits
from stylekernels.tensors import DTYPES


def norm_scale_shift(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return the ``scale_shift`` of `norm_conv2d` for an instance norm with these statistics.

    ``scale = weight / sqrt(var + eps)`` and ``shift = bias - mean * scale``, so that
    ``x * scale + shift`` is ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Precision: both numbers are computed in float64 and rounded once. In float32 the rounding of the
    mean and of the shift moves a plane by up to 2^-23 |mean| / sqrt(var) of its deviation (times
    weight): 1e-4 at a mean of 1000 deviations. ``F.instance_norm`` and ``F.batch_norm`` use the
    same two numbers and have the same error. `instance_norm` subtracts the mean and its rounding
    error first, and does not have it.

    Args:
        mean, var: mean and biased variance of each image's channels, (N, C), as `norm_conv2d` and
            `instance_norm_stats` return them; float32 or float64.
        weight: instance norm's scale, (C,), or (N, C) for conditional and adaptive instance norm,
            in any floating-point dtype; 1 by default.
        bias: instance norm's shift, as weight; 0 by default.
        eps: added to the variance.

    Returns:
        (N, C, 2), mean's dtype.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape or device does not fit.
    """
    for tensor, name in ((mean, "mean"), (var, "var")):
        check_tensor(tensor, name)
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name}: expected float32 or float64, got {tensor.dtype}; "
                f"convert with {name}.float()"
            )
    if mean.dim() != 2:
        raise ValueError(
            f"mean: expected shape (N, C), got {tuple(mean.shape)}; for statistics of all images "
            "together, (C,), use mean.expand(N, C)"
        )
    if var.shape != mean.shape or var.dtype != mean.dtype:
        raise ValueError(
            f"var: expected mean's shape {tuple(mean.shape)} and {mean.dtype}, got "
            f"{tuple(var.shape)} and {var.dtype}"
        )
    check_device(var, "var", mean)
    for parameter, name in ((weight, "weight"), (bias, "bias")):
        if parameter is not None:
            _check_parameter(parameter, name, mean)
    check_number(eps, "eps")
    return reference.norm_scale_shift(mean, var, weight, bias, eps)


def _check_parameter(parameter: Tensor, name: str, mean: Tensor) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(parameter).__name__}")
    n, c = mean.shape
    if not fits(parameter, (c,), (n, c)):
        raise ValueError(
            f"{name}: expected shape (C,) = ({c},) or (N, C) = ({n}, {c}), "
            f"got {tuple(parameter.shape)}"
        )
    if parameter.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype, got {parameter.dtype}")
    if parameter.device != mean.device:
        raise ValueError(
            f"{name}: expected mean's device {mean.device}, got {parameter.device}; "
            f"move it with {name}.to(mean.device)"
        )
