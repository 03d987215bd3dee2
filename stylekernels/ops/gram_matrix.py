"""Gram matrix and Gram losses: schemas, shapes for tracing, gradients and the public functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylekernels import reference
from stylekernels.namespace import ops
from stylekernels.ops.arguments import (
    autocast_dtype,
    check_channels,
    check_device,
    check_dtype,
    check_has_planes,
    check_number,
    check_tensor,
    fits,
)
from stylekernels.ops.autograd import call, derivative, forward_of, recorder, with_gradient_of
from stylekernels.ops.dispatch import NATIVE, TRITON, register, use_reference
from stylekernels.ops.registration import define, differentiate
from stylekernels.tensors import DTYPES, as_images, dense_like, new_like, wide_dtype

# The returned mean is (2, N, C): its value, and the rounding error of that value. Without
# ``center`` it is empty, and so is a list of means.
SCHEMAS = (
    "gram_matrix(Tensor x, float? scale, bool center) -> (Tensor gram, Tensor mean)",
    "gram_matrix_backward(Tensor grad, Tensor x, Tensor? mean, float? scale) -> Tensor grad_x",
    "gram_loss(Tensor x, Tensor target, float? scale, bool center) "
    "-> (Tensor loss, Tensor grad_gram, Tensor mean)",
    "gram_losses(Tensor[] features, Tensor[] targets, float[]? scales, bool center) "
    "-> (Tensor losses, Tensor[] grad_grams, Tensor[] means)",
    "gram_losses_backward(Tensor[] features, Tensor[] grad_grams, Tensor[] means, Tensor grad, "
    "float[]? scales) -> Tensor[] grad_features",
)


def _gram_matrix_formula(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
    gram = reference.gram_matrix(x, scale, center)
    if not center:
        return gram, gram.new_empty((0,))
    mean = x.flatten(2).mean(dim=2, dtype=torch.float64)
    rounded = mean.to(gram.dtype)
    return gram, torch.stack((rounded, (mean - rounded).to(gram.dtype)))


def _gram_matrix_fake(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
    n, c = x.shape[0], x.shape[1]
    return (
        x.new_empty((n, c, c), dtype=wide_dtype(x)),
        x.new_empty((2, n, c) if center else (0,), dtype=wide_dtype(x)),
    )


def _gram_matrix_backward_formula(
    grad: Tensor, x: Tensor, mean: Tensor | None, scale: float | None
) -> Tensor:
    features = x.flatten(2).to(grad.dtype)
    if scale is None:
        scale = 1.0 / (features.shape[1] * features.shape[2])
    if mean is not None:
        features = features - mean[0, ..., None] - mean[1, ..., None]
    grad_x = reference.product((grad + grad.mT) * scale, features)
    return new_like(grad_x.view(x.shape).to(x.dtype), x)


def _gram_matrix_backward_fake(
    grad: Tensor, x: Tensor, mean: Tensor | None, scale: float | None
) -> Tensor:
    return dense_like(x)


def _gram_loss_formula(
    x: Tensor, target: Tensor, scale: float | None, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gram, mean = _gram_matrix_formula(x, scale, center)
    difference = gram - target
    return difference.square().mean(), difference / (difference.numel() / 2), mean


def _gram_loss_fake(
    x: Tensor, target: Tensor, scale: float | None, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((), dtype=wide_dtype(x)), *_gram_matrix_fake(x, scale, center)


def _gram_losses_formula(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    center: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    layers = zip(features, targets, _of_each(features, scales), strict=True)
    results = [_gram_loss_formula(*layer, center) for layer in layers]
    losses, grad_grams, means = zip(*results, strict=True)
    return torch.stack(losses), list(grad_grams), list(means) if center else []


def _gram_losses_fake(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    center: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    grams, means = zip(*(_gram_matrix_fake(x, None, center) for x in features), strict=True)
    losses = features[0].new_empty((len(features),), dtype=wide_dtype(features[0]))
    return losses, list(grams), list(means) if center else []


def _of_each(features: Sequence[Tensor], values: Sequence | None) -> Sequence:
    """An optional value for each layer. An empty list has none."""
    return values or [None] * len(features)


def _gram_losses_backward_formula(
    features: Sequence[Tensor],
    grad_grams: Sequence[Tensor],
    means: Sequence[Tensor],
    grad: Tensor,
    scales: Sequence[float] | None,
) -> list[Tensor]:
    options = _of_each(features, means), _of_each(features, scales)
    return [
        _gram_matrix_backward_formula(grad_gram * slope, x, mean, scale)
        for x, grad_gram, slope, mean, scale in zip(
            features, grad_grams, grad, *options, strict=True
        )
    ]


def _gram_losses_backward_fake(
    features: Sequence[Tensor],
    grad_grams: Sequence[Tensor],
    means: Sequence[Tensor],
    grad: Tensor,
    scales: Sequence[float] | None,
) -> list[Tensor]:
    return [dense_like(x) for x in features]


define(SCHEMAS[0], _gram_matrix_formula, _gram_matrix_fake, triton="gram_matrix")
define(SCHEMAS[1], _gram_matrix_backward_formula, _gram_matrix_backward_fake, triton="gram_matrix")
define(SCHEMAS[2], _gram_loss_formula, _gram_loss_fake, triton="gram_matrix")
define(SCHEMAS[3], _gram_losses_formula, _gram_losses_fake, triton="gram_matrix")
define(SCHEMAS[4], _gram_losses_backward_formula, _gram_losses_backward_fake, triton="gram_matrix")
_gram_matrix_op = ops.gram_matrix.default
_gram_matrix_backward_op = ops.gram_matrix_backward.default
_gram_loss_op = ops.gram_loss.default
_gram_losses_op = ops.gram_losses.default
_gram_losses_backward_op = ops.gram_losses_backward.default


class _GramMatrix(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
        return forward_of(_gram_matrix_op, x, scale, center)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.scale, ctx.center = inputs
        _gram, mean = output
        ctx.mark_non_differentiable(mean)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean if ctx.center else None)

    @staticmethod
    def backward(ctx, grad: Tensor | None, _grad_mean: None):
        if grad is None:
            return None, None, None
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            mean = _differentiable_mean(mean, x)
        return derivative(_gram_matrix_backward_op, grad, x, mean, ctx.scale), None, None


class _GramLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, target: Tensor, scale: float | None, center: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return forward_of(_gram_loss_op, x, target, scale, center)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, target, ctx.scale, ctx.center = inputs
        _loss, grad_gram, mean = output
        ctx.mark_non_differentiable(grad_gram, mean)
        ctx.set_materialize_grads(False)
        # The target is saved for second derivatives only. It is small, and the caller holds it.
        ctx.save_for_backward(x, target, grad_gram, mean if ctx.center else None)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_grads_of_other_results: None):
        if grad is None:
            return None, None, None, None
        x, target, grad_gram, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_gram = _gram_gradient(x, target, ctx.scale, ctx.center)
            mean = _differentiable_mean(mean, x)
        scaled = grad_gram * grad
        grad_x = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_x = derivative(_gram_matrix_backward_op, scaled, x, mean, ctx.scale)
        if ctx.needs_input_grad[1]:
            grad_target = (-scaled).sum_to_size(target.shape).to(target.dtype)
        return grad_x, grad_target, None, None


class _GramLosses(torch.autograd.Function):
    """`_GramLoss` for several layers. The inputs are the options, all features and all targets."""

    @staticmethod
    def forward(
        scales: Sequence[float] | None, center: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        layers = len(tensors) // 2
        losses, grad_grams, means = forward_of(
            _gram_losses_op, tensors[:layers], tensors[layers:], scales, center
        )
        return losses, *grad_grams, *means

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.scales, ctx.center, *tensors = inputs
        _losses, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *others)

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_grads_of_other_results: None):
        wanted = ctx.needs_input_grad[2:]
        if grad is None:
            return None, None, *[None] * len(wanted)
        layers = len(wanted) // 2
        saved = ctx.saved_tensors  # read once: each read unpacks all of them
        features, targets, grad_grams, means = (
            saved[begin : begin + layers] for begin in range(0, 4 * layers, layers)
        )
        if torch.is_grad_enabled():
            each = zip(features, targets, _of_each(features, ctx.scales), strict=True)
            grad_grams = [_gram_gradient(*layer, ctx.center) for layer in each]
            means = [
                _differentiable_mean(mean, x)
                for mean, x in zip(means, features[: len(means)], strict=True)
            ]
        grad_features = [None] * layers
        if any(wanted[:layers]):  # mostly all or none: they are layers of one network
            grad_features = derivative(
                _gram_losses_backward_op, features, grad_grams, means, grad, ctx.scales
            )
        grad_targets = [
            (-grad_gram * slope).sum_to_size(target.shape).to(target.dtype) if want else None
            for target, grad_gram, slope, want in zip(
                targets, grad_grams, grad.unbind(), wanted[layers:], strict=True
            )
        ]
        return None, None, *grad_features, *grad_targets


def _gram_gradient(x: Tensor, target: Tensor, scale: float | None, center: bool) -> Tensor:
    """The gradient of a Gram loss with respect to the Gram matrix, differentiable once more."""
    difference = _gram_matrix_op(x, scale, center)[0] - target
    return difference * (2 / difference.numel())


def _differentiable_mean(mean: Tensor | None, x: Tensor) -> Tensor | None:
    """The mean that an op returned for ``x``, differentiable once more."""
    if mean is None:
        return None
    plain = x.to(mean.dtype).flatten(2).mean(2)
    return with_gradient_of(mean, torch.stack((plain, torch.zeros_like(plain))))


_record_gram_matrix = recorder(_GramMatrix)
_record_gram_loss = recorder(_GramLoss)
_record_layers = recorder(_GramLosses)


def _record_gram_losses(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    center: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    losses, *others = _record_layers(scales, center, *features, *targets)
    return losses, others[: len(features)], others[len(features) :]


differentiate(_gram_matrix_op, _gram_matrix_formula, _record_gram_matrix)
differentiate(_gram_matrix_backward_op, _gram_matrix_backward_formula)
differentiate(_gram_loss_op, _gram_loss_formula, _record_gram_loss)
differentiate(_gram_losses_op, _gram_losses_formula, _record_gram_losses)
differentiate(_gram_losses_backward_op, _gram_losses_backward_formula)


def _checked_features(x: Tensor, name: str = "x") -> Tensor:
    """Check features of any rank, and return them as (N, C, H, W): a Gram matrix sums over pixels
    in any order."""
    check_channels(x, name, rank=3)
    check_has_planes(x, name)
    return as_images(x)


def _checked_target(target: Tensor, x: Tensor, name: str = "target", of: str = "x") -> Tensor:
    """Check a target for the Gram matrices of ``x``, which messages call ``of``, and return it in
    their dtype."""
    check_tensor(target, name)
    n, c = x.shape[0], x.shape[1]
    if not fits(target, (1, c, c), (n, c, c), (c, c)):
        raise ValueError(
            f"{name}: expected shape (N, C, C) = ({n}, {c}, {c}), (1, C, C) or (C, C), "
            f"got {tuple(target.shape)}"
        )
    if autocast_dtype(x) is not None and target.dtype in DTYPES:
        target = target.to(wide_dtype(x))  # a target computed under autocast has autocast's dtype
    if target.dtype != wide_dtype(x):
        raise TypeError(
            f"{name}: expected dtype {wide_dtype(x)} for {of} of {x.dtype}, got {target.dtype}; "
            "make targets with gram_matrix"
        )
    check_device(target, name, x, of)
    return target


for _name in ("gram_matrix", "gram_loss", "gram_losses"):
    register(_name, cuda=(TRITON, NATIVE))


def gram_matrix(x: Tensor, *, scale: float | None = None, center: bool = False) -> Tensor:
    """Gram matrix of feature maps: the inner products of every pair of channels.

    Computes ``G[n, i, j] = scale * sum_p x[n, i, p] * x[n, j, p]`` over the pixels p. Only one
    triangle is computed; sums are kept in float32 (float64 for float64 input).

    Args:
        x: features, (N, C, ...) of 3 dimensions or more, contiguous or channels_last; float32,
            bfloat16, float16 or float64.
        scale: factor; ``1 / (C * H * W)`` by default.
        center: remove each channel's mean first, which gives the covariance (times the scale).

    Returns:
        (N, C, C), float32 (float64 for float64 input).

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has fewer dimensions, no channel or no pixel.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    section 2.2.
    """
    x = _checked_features(x)
    if scale is not None:
        check_number(scale, "scale")
    if use_reference("gram_matrix", x):
        return reference.gram_matrix(x, scale, center)
    return call(_gram_matrix_op, _record_gram_matrix, x, scale, center)[0]


def gram_loss(
    x: Tensor, target: Tensor, *, scale: float | None = None, center: bool = False
) -> Tensor:
    """Style loss of one layer: mean squared error between ``gram_matrix(x)`` and ``target``.

    The gradient is one product of x with a C x C matrix. Nothing of image size is saved besides x.

    Args:
        x: features, (N, C, ...) of 3 dimensions or more, contiguous or channels_last; float32,
            bfloat16, float16 or float64.
        target: Gram matrices to reach, (N, C, C), or (1, C, C) or (C, C) for one target for all
            images; float32 (float64 for float64 x), any floating-point dtype under autocast. It
            may require a gradient.
        scale: factor of the Gram matrix of x; ``1 / (C * H * W)`` by default.
        center: remove each channel's mean of x first, as ``gram_matrix(x, center=True)`` does.

    Returns:
        The loss, a scalar, float32 (float64 for float64 x).

    Raises:
        TypeError: if x is not a floating-point tensor or target has another dtype.
        ValueError: if a shape or device does not fit.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    equations 4 to 6.
    """
    x = _checked_features(x)
    if scale is not None:
        check_number(scale, "scale")
    target = _checked_target(target, x)
    if use_reference("gram_loss", x):
        return reference.gram_loss(x, target, scale, center)
    return call(_gram_loss_op, _record_gram_loss, x, target, scale, center)[0]


def gram_losses(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    scales: Sequence[float] | None = None,
    center: bool = False,
) -> Tensor:
    """Style losses of several layers: the `gram_loss` of each, for a weighted sum.

    On a GPU all layers share the kernel launches of one: deep layers are too small to fill a GPU.

    Args:
        features: for each layer (N, C, ...) of 3 dimensions or more, contiguous or channels_last;
            float32, bfloat16, float16 or float64, the same for all layers. Sizes and memory layouts
            may differ from layer to layer.
        targets: Gram matrices to reach, one for each layer: (N, C, C), or (1, C, C) or (C, C) for
            one target for all images; float32 (float64 for float64 features), any floating-point
            dtype under autocast. They may require gradients.
        scales: factors of the layers' Gram matrices; ``1 / (C * H * W)`` by default.
        center: remove each channel's mean of all features first.

    Returns:
        The loss of each layer, (layers,), float32 (float64 for float64 features).

    Raises:
        TypeError: if features or targets are not lists of tensors of these dtypes, or scales is
            not a list.
        ValueError: if there is no layer, if a layer lacks a target or a scale, or if a shape or
            device does not fit.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    equations 4 to 6.
    """
    for layers, name in ((features, "features"), (targets, "targets")):
        if not isinstance(layers, list | tuple):
            raise TypeError(f"{name}: expected a list of tensors, got {type(layers).__name__}")
    if not features:
        raise ValueError("features: expected at least one layer, got none")
    if scales is not None and not isinstance(scales, list | tuple):
        raise TypeError(f"scales: expected a list of numbers, got {type(scales).__name__}")
    for values, name in ((targets, "targets"), (scales, "scales")):
        if values is not None and len(values) != len(features):
            raise ValueError(
                f"{name}: expected one for each of {len(features)} layers, got {len(values)}"
            )
    for i, scale in enumerate(scales or ()):
        check_number(scale, f"scales[{i}]")
    features = [_checked_features(x, f"features[{i}]") for i, x in enumerate(features)]
    for i, x in enumerate(features):
        check_dtype(x, f"features[{i}]", features[0], "features[0]")
        check_device(x, f"features[{i}]", features[0], "features[0]")
    targets = [
        _checked_target(target, x, f"targets[{i}]", f"features[{i}]")
        for i, (target, x) in enumerate(zip(targets, features, strict=True))
    ]
    if use_reference("gram_losses", features[0]):
        return reference.gram_losses(features, targets, scales, center)
    return call(_gram_losses_op, _record_gram_losses, features, targets, scales, center)[0]
