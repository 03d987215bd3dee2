"""Checks of the shapes that Triton's kernels index by, before each launch. Each op has a function
here, with the op's arguments.

Public functions check before, and their messages name a remedy. These checks are for direct calls
of ``torch.ops.stylekernels`` and for exported programs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylekernels.ops.arguments import (
    CONV_KERNELS,
    check_choice,
    check_conv_geometry,
    check_has_planes,
)
from stylekernels.tensors import (
    ACTIVATIONS,
    DTYPES,
    PADDING_MODES,
    conv_channels,
    conv_size,
    wide_dtype,
)


def _expect(
    tensor: Tensor | None,
    name: str,
    x: Tensor,
    *shapes: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> None:
    """``tensor`` must be None, or have x's device, one of the shapes and ``dtype`` (None: any
    floating-point dtype)."""
    if tensor is None:
        return
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected x's device {x.device}, got {tensor.device}")
    if tensor.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype and (dtype is not None or tensor.dtype not in DTYPES):
        wanted = "a floating-point dtype" if dtype is None else dtype
        raise TypeError(f"{name}: expected {wanted}, got {tensor.dtype}")


def _expect_dense(tensor: Tensor | None, name: str, *, or_channels_last: bool = False) -> None:
    """``tensor``, which a kernel uses as it is in memory, must be None or have no gaps."""
    if tensor is None or tensor.is_contiguous():
        return
    if or_channels_last and tensor.is_contiguous(memory_format=torch.channels_last):
        return
    layouts = "contiguous or channels_last" if or_channels_last else "contiguous"
    raise ValueError(
        f"{name}: expected {layouts} memory, got strides {tensor.stride()} for "
        f"{tuple(tensor.shape)}; allocate it without gaps"
    )


def _images(x: Tensor, name: str = "x", ranks: tuple[int, ...] = (4,)) -> None:
    if x.dim() not in ranks:
        expected = " or ".join(map(str, ranks))
        raise ValueError(f"{name}: expected rank {expected}, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def instance_norm_stats(x: Tensor) -> None:
    _images(x)


def _group(x: Tensor, group: int) -> None:
    if group < 1 or x.shape[1] % group != 0:
        raise ValueError(
            f"group: expected a number that divides the channels, {x.shape[1]}, got {group}"
        )


def instance_norm(x, weight, bias, residual, mean, var, activation, *options) -> None:
    _images(x)
    _group(x, options[-1])
    check_choice(activation, "activation", ACTIVATIONS)
    n, c = x.shape[:2]
    parameters = {"weight": weight, "bias": bias, "mean": mean, "var": var}
    for name, parameter in parameters.items():
        _expect(parameter, name, x, (c,), (n, c))
    _expect(residual, "residual", x, x.shape, dtype=x.dtype)
    if (mean is None) != (var is None):
        raise ValueError("mean, var: expected both or neither, got one of them; pass both")


def instance_norm_backward(
    grad, x, weight, bias, residual, mean, rstd, activation, *options
) -> None:
    _images(x)
    _group(x, options[-1])
    check_choice(activation, "activation", ACTIVATIONS)
    n, c = x.shape[:2]
    _expect(grad, "grad", x, x.shape, dtype=x.dtype)
    _expect(residual, "residual", x, x.shape, dtype=x.dtype)
    _expect(weight, "weight", x, (c,), (n, c))
    _expect(bias, "bias", x, (c,), (n, c))
    _expect(mean, "mean", x, (2, n, c), dtype=wide_dtype(x))
    _expect(rstd, "rstd", x, (n, c), dtype=wide_dtype(x))


def gram_matrix(x: Tensor, *_options) -> None:
    _images(x, ranks=(3, 4))
    check_has_planes(x)


def gram_matrix_backward(grad: Tensor, x: Tensor, mean: Tensor | None, *_options) -> None:
    gram_matrix(x)
    n, c = x.shape[:2]
    _expect(grad, "grad", x, (n, c, c), dtype=wide_dtype(x))
    _expect(mean, "mean", x, (2, n, c), dtype=wide_dtype(x))


def gram_loss(x: Tensor, target: Tensor, *_options) -> None:
    gram_matrix(x)
    n, c = x.shape[:2]
    _expect(target, "target", x, (n, c, c), (1, c, c), (c, c), dtype=wide_dtype(x))


def gram_losses(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    *_options,
) -> None:
    _one_per_layer(features, targets=targets, scales=scales)
    for x, target in zip(features, targets, strict=True):
        _expect(x, "features", features[0], x.shape, dtype=features[0].dtype)
        gram_loss(x, target)


def gram_losses_backward(
    features: Sequence[Tensor],
    grad_grams: Sequence[Tensor],
    means: Sequence[Tensor],
    grad: Tensor,
    scales: Sequence[float] | None,
) -> None:
    _one_per_layer(features, grad_grams=grad_grams, means=means or None, scales=scales)
    _expect(grad, "grad", features[0], (len(features),), dtype=wide_dtype(features[0]))
    each = means or [None] * len(features)
    for x, grad_gram, mean in zip(features, grad_grams, each, strict=True):
        gram_matrix_backward(grad_gram, x, mean)


def _one_per_layer(features: Sequence[Tensor], **others: Sequence | None) -> None:
    for name, values in others.items():
        if values is not None and len(values) != len(features):
            raise ValueError(
                f"{name}: expected one for each of {len(features)} layers, got {len(values)}"
            )


def norm_conv2d(
    x, weight, bias, scale_shift, activation, negative_slope, residual, return_input, *mode
) -> None:
    _images(x)
    _expect(weight, "weight", x, weight.shape, dtype=x.dtype)
    _convolution(x, weight, bias, scale_shift, activation, residual, mode[:4])


def norm_conv2d_pack(weight, stride, padding, padding_mode, upsample) -> None:
    _kernel(weight, padding_mode, upsample)


def norm_conv2d_workspace(weight, n, h, w, *mode) -> None:
    _kernel(weight, *mode[2:])
    check_conv_geometry(weight.new_empty(n, 0, h, w), weight.shape[2], *mode)


def norm_conv2d_out(
    x,
    weight,
    packed,
    bias,
    scale_shift,
    activation,
    negative_slope,
    residual,
    stride,
    padding,
    padding_mode,
    upsample,
    norm_weight,
    norm_bias,
    eps,
    y,
    input,
    next_scale_shift,
    workspace,
) -> None:
    if x.dim() != 4 or y.dim() != 4:
        raise ValueError(f"x, y: expected rank 4, got {tuple(x.shape)} and {tuple(y.shape)}")
    mode = (stride, padding, padding_mode, upsample)
    outputs = _convolution(x, weight, bias, scale_shift, activation, residual, mode)
    _expect(input, "input", x, x.shape, dtype=weight.dtype)
    _expect(norm_weight, "norm_weight", x, (outputs,))
    _expect(norm_bias, "norm_bias", x, (outputs,))
    wide = wide_dtype(weight)
    _expect(next_scale_shift, "next_scale_shift", x, (x.shape[0], outputs, 2), dtype=wide)
    whole = (x.shape[0], outputs, *conv_size(x.shape[2:], weight.shape[2], *mode[:2], upsample))
    parts = upsample == "none" and next_scale_shift is None
    if not (_is_crop(y, whole) if parts else y.shape == whole):
        smaller = " or fewer rows and columns" if parts else ""
        raise ValueError(
            f"y: expected the size of the whole output {whole}{smaller}, got {tuple(y.shape)}; "
            "only an output without upsampling and statistics can be cropped"
        )
    for image, name in ((y, "y"), (input, "input")):
        _expect_dense(image, name, or_channels_last=True)
    for numbers, name in ((packed, "packed"), (next_scale_shift, "next_scale_shift")):
        _expect_dense(numbers, name)
    _expect(workspace, "workspace", x, workspace.shape, dtype=torch.float64)


def _is_crop(y: Tensor, whole: tuple[int, ...]) -> bool:
    """Return whether y has the images and channels of the whole output, and no more pixels."""
    rows, columns = y.shape[2:]
    return y.shape[:2] == whole[:2] and rows <= whole[2] and columns <= whole[3]


def upsampled_image(x: Tensor, border: int, padding_mode: str) -> None:
    _images(x)
    check_choice(padding_mode, "padding_mode", PADDING_MODES)
    largest = 2 * min(x.shape[2:]) - 1 if padding_mode == "reflect" else border
    if not 0 <= border <= largest:
        raise ValueError(f"border: expected 0 to {largest}, got {border}")


def _kernel(weight: Tensor, padding_mode: str, upsample: str) -> None:
    _images(weight, "weight")
    check_choice(upsample, "upsample", tuple(CONV_KERNELS))
    check_choice(padding_mode, "padding_mode", PADDING_MODES)
    words, takes = CONV_KERNELS[upsample]
    if weight.shape[2] != weight.shape[3] or not takes(weight.shape[2]):
        raise ValueError(
            f"weight: expected a square kernel with {words} for upsample={upsample!r}, got "
            f"{tuple(weight.shape)}"
        )


def _convolution(x, weight, bias, scale_shift, activation, residual, mode) -> int:
    """Check a convolution's arguments and return the channels of its output."""
    *_, padding_mode, upsample = mode
    _kernel(weight, padding_mode, upsample)
    check_choice(activation, "activation", ACTIVATIONS)
    channels, outputs = conv_channels(weight, upsample)
    if x.shape[1] != channels:
        raise ValueError(f"x: expected weight's Cin = {channels}, got {tuple(x.shape)}")
    check_conv_geometry(x, weight.shape[2], *mode)
    _expect(bias, "bias", x, (outputs,))
    _expect(scale_shift, "scale_shift", x, (x.shape[0], channels, 2), dtype=wide_dtype(weight))
    _expect(residual, "residual", x, x.shape, dtype=weight.dtype)
    return outputs
