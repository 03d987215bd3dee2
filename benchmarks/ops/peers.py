"""PyTorch code that users write instead of our ops: the rivals, eager and compiled.

Each function returns dictionaries of torch expressions by name. All compute the same result from
the tensors of an op. The fastest on this machine is timed, once eager and once under
``torch.compile``; the report names it. The first one of each dictionary also runs in float64, as
the truth for all answers.

Activations and additions are in place if autograd allows it, since style networks use
``nn.ReLU(inplace=True)``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Expression = Callable[..., Tensor | tuple[Tensor, ...]]
Normalize = Callable[[Tensor, Tensor, Tensor], Tensor]

EPS = 1e-5


def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=EPS)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Instance norm as group norm with one channel to a group, which has a channels_last kernel."""
    return F.group_norm(x, x.shape[1], weight, bias, EPS)


def _formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Instance norm written out, which a compiler can schedule freely."""
    wide = torch.promote_types(x.dtype, torch.float32)
    spatial = tuple(range(2, x.dim()))
    var, mean = torch.var_mean(x.to(wide), spatial, correction=0, keepdim=True)
    weight, bias = (parameter.view(-1, *(1 for _ in spatial)) for parameter in (weight, bias))
    return ((x - mean) * (torch.rsqrt(var + EPS) * weight) + bias).to(x.dtype)


NORMS: dict[str, Normalize] = {
    "F.instance_norm": _instance_norm,
    "F.group_norm": _group_norm,
    "var_mean": _formula,
}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": partial(F.leaky_relu, inplace=True),
}


def instance_norm(activation: str) -> dict[str, Expression]:
    """Expressions of (x, weight, bias)."""

    def activated(norm: Normalize) -> Expression:
        return lambda x, weight, bias: ACTIVATIONS[activation](norm(x, weight, bias))

    return {name: activated(norm) for name, norm in NORMS.items()}


def group_norm_silu(groups: int) -> dict[str, Expression]:
    """Expressions of (x, weight, bias)."""

    def module(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias, EPS))

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        grouped = x.to(wide).unflatten(1, (groups, -1))
        var, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        normalized = ((grouped - mean) * torch.rsqrt(var + EPS)).flatten(1, 2)
        return F.silu(normalized * weight[:, None, None] + bias[:, None, None]).to(x.dtype)

    return {"F.group_norm": module, "var_mean": formula}


def instance_norm_residual() -> dict[str, Expression]:
    """Expressions of (x, weight, bias, residual): the end of a residual block."""

    def with_residual(norm: Normalize) -> Expression:
        return lambda x, weight, bias, residual: norm(x, weight, bias).add_(residual)

    return {name: with_residual(norm) for name, norm in NORMS.items()}


def instance_norm_stats() -> dict[str, Expression]:
    """Expressions of (x,): mean and biased variance."""

    def var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(x.to(wide), (2, 3), correction=0)
        return mean, var

    return {"var_mean": var_mean}


def _grams(dtype: torch.dtype, scale: float) -> dict[str, Expression]:
    """Expressions of (x,). ``flatten(2)`` is a view in both layouts, so that nothing is copied. The
    small product is scaled instead of the features."""

    def bmm(x: Tensor) -> Tensor:
        features = x.flatten(2)
        return torch.bmm(features, features.mT) * scale

    def einsum(x: Tensor) -> Tensor:
        return torch.einsum("nchw,ndhw->ncd", x, x) * scale

    def float32_bmm(x: Tensor) -> Tensor:
        return bmm(x.float())

    expressions: dict[str, Expression] = {"bmm": bmm, "einsum": einsum}
    if dtype in (torch.bfloat16, torch.float16):  # for CPUs without instructions for half precision
        expressions["bmm in float32"] = float32_bmm
    return expressions


def gram_matrix(dtype: torch.dtype, scale: float) -> dict[str, Expression]:
    """Expressions of (x,)."""
    return _grams(dtype, scale)


def _sum_of_losses(losses: Sequence[Expression]) -> Expression:
    """Expressions of (x of each loss, target of each loss)."""

    def total(*tensors: Tensor) -> Tensor:
        features, targets = tensors[: len(losses)], tensors[len(losses) :]
        each = zip(losses, features, targets, strict=True)
        return torch.stack([loss(x, target) for loss, x, target in each]).sum()

    return losses[0] if len(losses) == 1 else total


def gram_loss(
    dtype: torch.dtype, scales: Sequence[float], center: bool = False
) -> dict[str, Expression]:
    """Expressions of (x, target), or of as many of each as there are scales: the sum over
    layers."""

    def centered(x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True) if center else x

    def with_loss(gram: Expression) -> Expression:
        return lambda x, target: F.mse_loss(gram(centered(x)).to(target.dtype), target)

    of_layers = [_grams(dtype, scale) for scale in scales]
    return {
        name: _sum_of_losses([with_loss(grams[name]) for grams in of_layers])
        for name in of_layers[0]
    }


def _transposed(x: Tensor, weight: Tensor, replicate: bool) -> Tensor:
    output_padding = 4 - weight.shape[-1]
    if not replicate:
        return F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=output_padding)
    x = F.pad(x, [1] * 4, "replicate")
    return F.conv_transpose2d(x, weight, stride=2, padding=3, output_padding=output_padding)


def _nearest(x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    if padding_mode == "zeros":
        return F.conv2d(large, weight, padding=weight.shape[-1] // 2)
    return F.conv2d(F.pad(large, [weight.shape[-1] // 2] * 4, padding_mode), weight)


def _convolution(
    stride: int, padding_mode: str, upsample: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Expressions of (x, weight), padded by half the kernel."""

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        if upsample == "transpose":
            return _transposed(x, weight, padding_mode == "replicate")
        if upsample == "nearest":
            return _nearest(x, weight, padding_mode)
        if padding_mode == "zeros":
            return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        x = F.pad(x, [weight.shape[-1] // 2] * 4, padding_mode)
        return F.conv2d(x, weight, stride=stride)

    return convolve


def upsample_norm(upsample: str, padding_mode: str) -> dict[str, Expression]:
    """Expressions of (x, weight, norm_weight, norm_bias): the upsampling block up to its
    activation. The convolution has no bias, for the norm cancels it: the rivals save a pass too."""
    convolve = _convolution(1, padding_mode, upsample)

    def of(norm: Normalize) -> Expression:
        return lambda x, weight, norm_weight, norm_bias: norm(
            convolve(x, weight), norm_weight, norm_bias
        )

    return {name: of(norm) for name, norm in NORMS.items()}


def upsample_block(upsample: str, padding_mode: str) -> dict[str, Expression]:
    """Expressions of (x, weight, norm_weight, norm_bias)."""

    def with_relu(normalized: Expression) -> Expression:
        return lambda *tensors: normalized(*tensors).relu_()

    return {
        name: with_relu(normalized)
        for name, normalized in upsample_norm(upsample, padding_mode).items()
    }


def norm_conv2d(
    stride: int, padding_mode: str, upsample: str, norm: bool, skip: bool
) -> dict[str, Expression]:
    """Expressions of (x, weight, norm_weight, norm_bias, mean, var), and residual with ``skip``.

    A layer as users write it: the norm before the convolution computes the statistics of x. Our op
    is given these, and computes those of its output. A network of either computes as many.
    """
    convolve = _convolution(stride, padding_mode, upsample)
    if not norm:
        return {"conv2d": convolve}

    def layer(normalize: Normalize) -> Expression:
        def with_relu(x, weight, norm_weight, norm_bias, _mean, _var) -> Tensor:
            return convolve(normalize(x, norm_weight, norm_bias).relu_(), weight)

        def with_residual(x, weight, norm_weight, norm_bias, _mean, _var, residual):
            given = normalize(x, norm_weight, norm_bias).add_(residual)
            return convolve(given, weight), given

        return with_residual if skip else with_relu

    return {name: layer(normalize) for name, normalize in NORMS.items()}
