"""Group norm in plain formulas, for the tests of the op and its users."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import group_norm
from tests.instance_norms import ACTIVATIONS, planes


def before_activation(
    x, weight=None, bias=None, residual=None, *, groups=1, residual_first=False
) -> Tensor:
    grouped = x.unflatten(1, (groups, x.shape[1] // groups)).flatten(2)
    var, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
    z = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    z = z if weight is None else z * planes(weight, x)
    z = z if bias is None else z + planes(bias, x)
    return z + residual if residual_first else z


def exact(
    x, weight=None, bias=None, residual=None, *, groups=1, activation="none", residual_first=False
) -> Tensor:
    first = residual_first and residual is not None
    z = before_activation(x, weight, bias, residual, groups=groups, residual_first=first)
    y = ACTIVATIONS[activation](z)
    return y if residual is None or first else y + residual


def in_torch(
    x, weight=None, bias=None, residual=None, *, groups=1, activation="none", residual_first=False
) -> Tensor:
    """PyTorch's own ops. Half precision is computed in float32 and rounded once."""
    wide = x if x.dtype == torch.float64 else x.float()
    weight, bias, residual = (
        None if t is None else t.to(wide.dtype) for t in (weight, bias, residual)
    )
    z = F.group_norm(wide.contiguous(), groups)
    z = z if weight is None else z * planes(weight, x)
    z = z if bias is None else z + planes(bias, x)
    if residual is not None and residual_first:
        return ACTIVATIONS[activation](z + residual).to(x.dtype)
    y = ACTIVATIONS[activation](z)
    return (y if residual is None else y + residual).to(x.dtype)


def ours(x, weight=None, bias=None, residual=None, *, groups=1, **options) -> Tensor:
    return group_norm(x, groups, weight, bias, residual=residual, negative_slope=0.2, **options)
