"""Instance norm in plain formulas, for the tests of the op and its users."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import instance_norm
from tests.conftest import random

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}


def gate_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(z), torch.sigmoid(z) * torch.sigmoid(-z)


def silu_slope(z: Tensor) -> Tensor:
    gate, slope = gate_and_slope(z)
    return gate + z * slope


def gelu_slope(z: Tensor) -> Tensor:
    return torch.special.ndtr(z) + z * (-z * z / 2).exp() / math.sqrt(2 * math.pi)


def gelu_tanh_slope(z: Tensor) -> Tensor:
    twice = 2 * math.sqrt(2 / math.pi)
    gate, slope = gate_and_slope(twice * (z + 0.044715 * z**3))
    return gate + z * twice * (1 + 3 * 0.044715 * z**2) * slope


#: Derivatives of activations, without cancellation.
SLOPES = {
    "tanh": lambda z: 1 / torch.cosh(z) ** 2,
    "sigmoid": lambda z: gate_and_slope(z)[1],
    "silu": silu_slope,
    "gelu": gelu_slope,
    "gelu_tanh": gelu_tanh_slope,
}


def planes(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.expand(x.shape[:2]).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def before_activation(
    x, weight=None, bias=None, residual=None, mean=None, var=None, *, residual_first=False
) -> Tensor:
    if mean is None:
        spatial = tuple(range(2, x.dim()))
        mean, var = x.mean(spatial), x.var(spatial, correction=0)
    z = (x - planes(mean, x)) / (planes(var, x) + 1e-5).sqrt()
    z = z if weight is None else z * planes(weight, x)
    z = z if bias is None else z + planes(bias, x)
    return z + residual if residual_first else z


def exact(
    x,
    weight=None,
    bias=None,
    residual=None,
    mean=None,
    var=None,
    *,
    activation="none",
    residual_first=False,
) -> Tensor:
    first = residual_first and residual is not None
    z = before_activation(x, weight, bias, residual, mean, var, residual_first=first)
    y = ACTIVATIONS[activation](z)
    return y if residual is None or first else y + residual


def in_torch(
    x,
    weight=None,
    bias=None,
    residual=None,
    mean=None,
    var=None,
    *,
    activation="none",
    residual_first=False,
) -> Tensor:
    """PyTorch's own ops. Half precision is computed in float32 and rounded once, as our op
    promises, which is stricter than a chain of half-precision ops."""
    wide = x if x.dtype == torch.float64 else x.float()
    cast = [None if t is None else t.to(wide.dtype) for t in (weight, bias, residual, mean, var)]
    weight, bias, residual, mean, var = cast
    if mean is None:
        z = F.instance_norm(wide)
    else:
        z = (wide - planes(mean, x)) * torch.rsqrt(planes(var, x) + 1e-5)
    z = z if weight is None else z * planes(weight, x)
    z = z if bias is None else z + planes(bias, x)
    if residual is not None and residual_first:
        return ACTIVATIONS[activation](z + residual).to(x.dtype)
    y = ACTIVATIONS[activation](z)
    return (y if residual is None else y + residual).to(x.dtype)


def ours(x, weight=None, bias=None, residual=None, mean=None, var=None, **options) -> Tensor:
    stats = None if mean is None else (mean, var)
    return instance_norm(
        x, weight, bias, residual=residual, stats=stats, negative_slope=0.2, **options
    )


def per_channel(kind: str, x: Tensor, dtype: torch.dtype, seed: int, positive=False):
    if kind == "none":
        return None
    shape = {"(C,)": x.shape[1:2], "(N, C)": x.shape[:2]}[kind]
    values = random(*shape, dtype=dtype, device=x.device.type, seed=seed)
    return values.abs() + 0.5 if positive else values
