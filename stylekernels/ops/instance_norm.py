"""Instance norm, and the op of group norm: schemas, shapes for tracing, gradients and the public
functions."""

import math

import torch
from torch import Tensor

from stylekernels import reference
from stylekernels.namespace import ops
from stylekernels.ops.arguments import (
    autocast_dtype,
    check_choice,
    check_floating,
    check_image_batch,
    check_like,
    check_number,
    check_per_channel,
    check_tensor,
)
from stylekernels.ops.autograd import call, derivative, forward_of, recorder, with_gradient_of
from stylekernels.ops.dispatch import NATIVE, TRITON, register, use_reference
from stylekernels.ops.registration import define, differentiate
from stylekernels.tensors import (
    ACTIVATIONS,
    as_images,
    dense_like,
    from_images,
    new_like,
    wide_dtype,
)

#: Ranks of images with 1, 2 and 3 spatial dimensions. The ops take rank 4.
RANKS = (3, 4, 5)

SCHEMAS = (
    "instance_norm_stats(Tensor x) -> (Tensor mean, Tensor var)",
    "instance_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, "
    "Tensor? var, str activation, float negative_slope, bool residual_first, float eps, "
    "bool own_stats, int group) -> (Tensor y, Tensor mean, Tensor rstd)",
    # group: consecutive channels that share mean and variance, 1 in instance norm. own_stats: the
    # given mean and var are those of x. Gradients go through them to x, as they do if none are
    # given. The returned mean is (2, N, C): its value and that value's rounding error.
    # sum_grad and sum_grad_normalized are (N, C): the sums over a plane of the gradient before
    # the activation, and of its product with the normalised input. sum_images: they are (C,), of
    # all images.
    "instance_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, "
    "Tensor? residual, Tensor mean, Tensor rstd, str activation, float negative_slope, "
    "bool own_stats, bool want_residual, bool sum_images, int group) "
    "-> (Tensor grad_x, Tensor grad_residual, Tensor sum_grad, Tensor sum_grad_normalized)",
)


def _per_plane_empty(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1]), dtype=wide_dtype(x))


def _stats_formula(x: Tensor) -> tuple[Tensor, Tensor]:
    return reference.instance_norm_stats(x)


def _stats_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return _per_plane_empty(x), _per_plane_empty(x)


def _instance_norm_formula(
    x,
    weight,
    bias,
    residual,
    mean,
    var,
    activation,
    negative_slope,
    residual_first,
    eps,
    own_stats,
    group,
) -> tuple[Tensor, Tensor, Tensor]:
    if mean is None or own_stats:
        mean, var = reference.instance_norm_stats(x, group)
    y = reference.instance_norm(
        x, weight, bias, residual, mean, var, activation, negative_slope, residual_first, eps
    )
    rows = (x.shape[0], x.shape[1])
    mean, var = mean.to(wide_dtype(x)).expand(rows), var.to(wide_dtype(x)).expand(rows)
    exact = torch.stack((mean, torch.zeros_like(mean)))
    return new_like(y, x), exact, reference.inverse_deviation(var, eps)


def _instance_norm_fake(x, *_arguments) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((2, x.shape[0], x.shape[1]), dtype=wide_dtype(x))
    return dense_like(x), mean, _per_plane_empty(x)


def _backward_formula(
    grad,
    x,
    weight,
    bias,
    residual,
    mean,
    rstd,
    activation,
    negative_slope,
    own_stats,
    want_residual,
    sum_images,
    group,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = wide_dtype(x)
    centered = x.to(wide) - mean[0, ..., None, None] - mean[1, ..., None, None]
    normalized = centered * rstd[..., None, None]
    gain = torch.ones_like(rstd) if weight is None else weight.to(wide).expand(rstd.shape)
    z = normalized * gain[..., None, None]
    if bias is not None:
        z = z + bias.to(wide)[..., None, None]
    if residual is not None:
        z = z + residual.to(wide)
    g = reference.activation_gradient(grad.to(wide), z, activation, negative_slope)
    sum_grad, sum_grad_normalized = g.sum((2, 3)), (g * normalized).sum((2, 3))
    projected = g * gain[..., None, None]
    if own_stats:
        count = group * x.shape[2] * x.shape[3]
        level = reference.sums_of_groups(gain * sum_grad, group) / count
        slope = reference.sums_of_groups(gain * sum_grad_normalized, group) / count
        projected = projected - level[..., None, None] - normalized * slope[..., None, None]
    grad_x = new_like((projected * rstd[..., None, None]).to(x.dtype), x)
    grad_residual = new_like(g.to(x.dtype), x) if want_residual else x.new_empty((0,))
    if sum_images:
        sum_grad, sum_grad_normalized = sum_grad.sum(0), sum_grad_normalized.sum(0)
    return grad_x, grad_residual, sum_grad, sum_grad_normalized


def _backward_fake(
    grad, x, weight, bias, residual, mean, rstd, *options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, want_residual, sum_images, _group = options
    grad_residual = dense_like(x) if want_residual else x.new_empty((0,))
    sums = [
        x.new_empty((x.shape[1],), dtype=wide_dtype(x)) if sum_images else _per_plane_empty(x)
        for _ in range(2)
    ]
    return dense_like(x), grad_residual, *sums


define(SCHEMAS[0], _stats_formula, _stats_fake, triton="instance_norm")
define(SCHEMAS[1], _instance_norm_formula, _instance_norm_fake, triton="instance_norm")
define(SCHEMAS[2], _backward_formula, _backward_fake, triton="instance_norm")
_stats_op = ops.instance_norm_stats.default
_instance_norm_op = ops.instance_norm.default
_backward_op = ops.instance_norm_backward.default


class _Stats(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return forward_of(_stats_op, x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        # d mean / d x = 1 / (H W);  d var / d x = 2 (x - mean) / (H W). In plain PyTorch, to be
        # differentiable again. The rounding error of the mean is subtracted.
        x, mean = ctx.saved_tensors
        count = max(1, x.shape[2] * x.shape[3])
        slope, offset = (2.0 / count) * grad_var, grad_mean / count
        centered = x - mean[..., None, None]
        offset = offset - slope * centered.mean((2, 3))
        return torch.addcmul(offset[..., None, None], centered, slope[..., None, None]).to(x.dtype)


class _InstanceNorm(torch.autograd.Function):
    """The inputs are the op's tensors, a tuple of its options, and a list that receives the op's
    other results: an output that has no gradient takes longer than a value in a list."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, mean, var, options, others) -> Tensor:
        y, used_mean, rstd = forward_of(
            _instance_norm_op, x, weight, bias, residual, mean, var, *options
        )
        others += used_mean, rstd
        ctx.options = options
        ctx.set_materialize_grads(False)
        _activation, _slope, residual_first, _eps, own_stats, _group = options
        if own_stats:
            mean = var = None
        ctx.save_for_backward(
            x, weight, bias, residual if residual_first else None, mean, var, used_mean, rstd
        )
        return y

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 8
        activation, negative_slope, residual_first, eps, _own_stats, group = ctx.options
        x, weight, bias, residual, mean, var, used_mean, rstd = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:6])
        # A residual added after the activation has the gradient of the output.
        grad_residual = grad if wanted[3] and not residual_first else None
        wanted[3] = wanted[3] and residual_first
        if mean is None:  # the statistics are those of x, whether they were given or not
            wanted[4] = wanted[5] = False
        grads = [None] * 6
        if any(wanted):
            if torch.is_grad_enabled():  # it may be differentiated again
                used_mean, rstd = _with_gradients(used_mean, rstd, x, mean, var, eps, group)
            inputs = (grad, x, weight, bias, residual, used_mean, rstd)
            grads = _gradients(inputs, mean, var, activation, negative_slope, wanted, group)
        if grad_residual is not None:
            grads[3] = grad_residual
        return *grads, None, None


def _with_gradients(
    used_mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Return the mean (2, N, C) and 1 / sqrt(var + eps) that were used, as differentiable functions
    of the given statistics, or of x if none were given."""
    if mean is None:
        mean, var = reference.instance_norm_stats(x, group)
    mean, var = mean.to(rstd.dtype).expand(rstd.shape), var.to(rstd.dtype).expand(rstd.shape)
    return (
        with_gradient_of(used_mean, torch.stack((mean, torch.zeros_like(mean)))),
        with_gradient_of(rstd, reference.inverse_deviation(var, eps)),
    )


def _sum_over_images(grad: Tensor, like: Tensor) -> Tensor:
    """Reduce (N, C), or (C,) of all images, to the shape and dtype of a parameter, (C,) or
    (N, C)."""
    if like.dim() < grad.dim():
        grad = grad.sum(0)
    return grad if grad.dtype == like.dtype else grad.to(like.dtype)


def _gradients(inputs, mean, var, activation, negative_slope, wanted, group) -> list[Tensor | None]:
    """Gradients of x, weight, bias, residual (if added before the activation), mean and var; None
    for those that are not wanted.

    Args:
        inputs: the tensors of `_backward_op`.
        mean, var: the given statistics, or None if they are those of x.
    """
    _grad, _x, weight, bias, _residual, _used_mean, rstd = inputs
    parameters = [tensor for tensor, want in ((weight, wanted[1]), (bias, wanted[2])) if want]
    sum_images = bool(parameters) and all(each.dim() == 1 for each in parameters)
    options = (mean is None, wanted[3], sum_images and not (wanted[4] or wanted[5]), group)
    grad_x, grad_residual, sum_grad, sum_grad_normalized = derivative(
        _backward_op, *inputs, activation, negative_slope, *options
    )
    grad_weight = grad_bias = grad_mean = grad_var = None
    if wanted[1]:
        grad_weight = _sum_over_images(sum_grad_normalized, weight)
    if wanted[2]:
        grad_bias = _sum_over_images(sum_grad, bias)
    if wanted[4] or wanted[5]:
        gain = rstd if weight is None else rstd * weight
        if wanted[4]:
            grad_mean = _sum_over_images(-gain * sum_grad, mean)
        if wanted[5]:
            grad_var = _sum_over_images(-0.5 * rstd * gain * sum_grad_normalized, var)
    return [
        grad_x if wanted[0] else None,
        grad_weight,
        grad_bias,
        grad_residual if wanted[3] else None,
        grad_mean,
        grad_var,
    ]


_record_stats = recorder(_Stats)
_record = recorder(_InstanceNorm)


def _record_instance_norm(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    others: list[Tensor] = []
    y = _record(*arguments[:6], arguments[6:], others)
    return y, *others


differentiate(_stats_op, _stats_formula, _record_stats)
differentiate(_instance_norm_op, _instance_norm_formula, _record_instance_norm)
differentiate(_backward_op, _backward_formula)
# Triton's kernels are measured on GPUs, those in CUDA C++ are not yet.
for _op in ("instance_norm", "instance_norm_stats"):
    register(_op, cuda=(TRITON, NATIVE))


def instance_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's channels.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, D, H, W), contiguous or channels_last; float32,
            bfloat16, float16 or float64.

    Returns:
        Mean and variance (divided by the pixels of a plane), (N, C) each, float32 (float64 for
        float64 input), differentiable. They are exact even if the mean is large compared to the
        deviation: chunks of a plane are reduced about a local shift and merged in double precision
        (Chan, Golub and LeVeque, 1983).

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has another number of dimensions.
    """
    check_image_batch(x, ranks=RANKS)
    x = as_images(x)
    if use_reference("instance_norm_stats", x):
        return reference.instance_norm_stats(x)
    return call(_stats_op, _record_stats, x)


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual_first: bool = False,
    eps: float = 1e-5,
    stats: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Instance norm, activation and residual in one op.

    ``activation((x - mean) / sqrt(var + eps) * weight + bias) + residual`` with the mean and
    biased variance of each (image, channel), computed in float32 and rounded once.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, D, H, W), contiguous or channels_last (rank 3: a
            transposed (N, L, C)); float32, bfloat16, float16 or float64.
        weight: scale, (C,) for affine instance norm or (N, C) for conditional and adaptive
            instance norm, in x's dtype or float32; 1 by default.
        bias: shift, as weight; 0 by default.
        residual: added after the activation; x's shape and dtype. Under autocast it may have
            another dtype; the result then has the wider one, as a sum has.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh``, ``sigmoid``, ``silu``, ``gelu`` or
            its approximation ``gelu_tanh``.
        negative_slope: slope of ``leaky_relu`` below zero.
        residual_first: add the residual before the activation instead.
        eps: added to the variance. With 0, constant planes are normalised to 0.
        stats: (mean, biased variance) to use instead of the image's own: (C,) or (N, C) each, in
            x's dtype or float32. Examples are running statistics, and those of a whole image for
            its tiles.

    Returns:
        x's shape, dtype and layout.

    Raises:
        TypeError: if a dtype does not fit, or an argument is no tensor or no pair of tensors.
        ValueError: if a shape, device or name does not fit, or if planes have a single pixel and
            no ``stats`` are given.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016; Huang and Belongie, "Arbitrary
    style transfer in real-time with adaptive instance normalization", 2017, equation 8.
    """
    check_image_batch(x, ranks=RANKS)
    check_number(negative_slope, "negative_slope")
    check_number(eps, "eps")
    x, residual = check_operands(x, weight, bias, residual, activation)
    mean = var = None
    if stats is not None:
        if not isinstance(stats, (tuple, list)) or len(stats) != 2:
            size = f" of {len(stats)}" if isinstance(stats, (tuple, list)) else ""
            raise TypeError(
                "stats: expected a pair of tensors (mean, variance) or None, "
                f"got {type(stats).__name__}{size}"
            )
        mean, var = stats
        check_tensor(mean, "stats[0]")
        check_tensor(var, "stats[1]")
        check_per_channel(mean, "stats[0]", x)
        check_per_channel(var, "stats[1]", x)
        if mean.shape != var.shape:
            raise ValueError(
                "stats: expected mean and variance of one shape, got "
                f"{tuple(mean.shape)} and {tuple(var.shape)}"
            )
    elif x.shape[-1] == 1 and math.prod(x.shape[2:]) == 1:  # most sizes need no product (0.2 us)
        raise ValueError(
            f"x: expected more than one pixel per plane to take statistics of, got "
            f"{tuple(x.shape)}; pass stats to normalise by given ones"
        )
    options = (activation, negative_slope, residual_first, eps)
    return run("instance_norm", (x, weight, bias, residual, mean, var), options)


def check_operands(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor | None]:
    """Check arguments that instance and group norm share. Return x and the residual, under autocast
    in one dtype."""
    check_choice(activation, "activation", ACTIVATIONS)
    if isinstance(residual, Tensor) and residual.dtype != x.dtype and autocast_dtype(x) is not None:
        check_floating(residual, "residual")
        wider = torch.promote_types(x.dtype, residual.dtype)  # the dtype of their sum
        x, residual = x.to(wider), residual.to(wider)
    if weight is not None:
        check_per_channel(weight, "weight", x)
    if bias is not None:
        check_per_channel(bias, "bias", x)
    if residual is not None:
        check_like(residual, "residual", x)
    return x, residual


def run(
    op: str,
    inputs: tuple[Tensor | None, ...],
    options: tuple[str, float, bool, float],
    group: int = 1,
) -> Tensor:
    """Normalise x of any rank, on checked arguments: those of `normalize`."""
    x, weight, bias, residual, mean, var = inputs
    if x.dim() != 4:
        added = None if residual is None else as_images(residual)
        inputs = (as_images(x), weight, bias, added, mean, var)
    activation, negative_slope, residual_first, eps = options
    if residual_first and activation == "none":
        # The order makes no difference, and the backward pass needs no residual.
        options = (activation, negative_slope, False, eps)
    if use_reference(op, x):
        y = reference.instance_norm(*inputs, *options, group)
    else:
        y = normalize(inputs, options, group=group)
    return from_images(y, x)


def normalize(
    inputs: tuple[Tensor | None, ...],
    options: tuple[str, float, bool, float],
    *,
    own_stats_known: bool = False,
    group: int = 1,
) -> Tensor:
    """Run the op on checked arguments.

    Args:
        inputs: x, (N, C, H, W); weight, bias, residual, mean, var.
        options: activation, negative_slope, residual_first, eps.
        own_stats_known: mean and var are x's own, and gradients go through them to x.
        group: consecutive channels that share mean and variance.
    """
    arguments = (*inputs, *options, own_stats_known, group)
    return call(_instance_norm_op, _record_instance_norm, *arguments)[0]
