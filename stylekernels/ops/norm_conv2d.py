"""The deferred-norm convolution: schema, shapes for tracing and the public function."""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from stylekernels import reference
from stylekernels.namespace import ops
from stylekernels.ops.arguments import (
    CONV_KERNELS,
    autocast_dtype,
    check_choice,
    check_conv_bias,
    check_conv_geometry,
    check_conv_weight,
    check_device,
    check_image_batch,
    check_like,
    check_number,
    check_tensor,
    fits,
)
from stylekernels.ops.autograd import below_autograd
from stylekernels.ops.dispatch import register, use_reference
from stylekernels.ops.registration import define, refuse_gradients
from stylekernels.ops.transforms import transformed
from stylekernels.tensors import (
    ACTIVATIONS,
    DTYPES,
    PADDING_MODES,
    conv_channels,
    conv_size,
    dense_like,
    layout_of,
    wide_dtype,
)

# Results that are not requested are empty tensors: mean and var in their own dtype, input in x's.
#
# The last three ops are for `inference`: weights are packed once, and frames allocate nothing.
# x and y may be bytes, 0..255 (y is rounded and clamped). Without upsampling and statistics y may
# be smaller than the convolution's output: it receives the first rows and columns. norm_weight and
# norm_bias are (Cout,).
SCHEMAS = (
    "norm_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale_shift, str activation, "
    "float negative_slope, Tensor? residual, bool return_input, int stride, int padding, "
    "str padding_mode, str upsample, bool return_stats) "
    "-> (Tensor y, Tensor mean, Tensor var, Tensor input)",
    "norm_conv2d_pack(Tensor weight, int stride, int padding, str padding_mode, str upsample) "
    "-> Tensor",
    "norm_conv2d_workspace(Tensor weight, int n, int h, int w, int stride, int padding, "
    "str padding_mode, str upsample) -> int",
    "norm_conv2d_out(Tensor x, Tensor weight, Tensor packed, Tensor? bias, Tensor? scale_shift, "
    "str activation, float negative_slope, Tensor? residual, int stride, int padding, "
    "str padding_mode, str upsample, Tensor? norm_weight, Tensor? norm_bias, float eps, "
    "Tensor(a!) y, Tensor(b!)? input, Tensor(c!)? next_scale_shift, Tensor(d!) workspace) "
    "-> ()",
)


class NormConv2dOutput(NamedTuple):
    """The results of `norm_conv2d`. Those that were not requested are None.

    Attributes:
        y: the raw output of the convolution, (N, Cout, Hout, Wout).
        mean, var: mean and biased variance of the planes of ``y`` as stored, (N, Cout).
        input: the convolved input before upsampling and padding; x's shape.
    """

    y: Tensor
    mean: Tensor | None
    var: Tensor | None
    input: Tensor | None


def _in_layout_of(x: Tensor, *results: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the results in x's layout. A result that is x itself is copied."""
    layout = layout_of(x)

    def laid_out(result: Tensor | None) -> Tensor | None:
        if result is x:
            return result.clone(memory_format=layout)
        return None if result is None else result.contiguous(memory_format=layout)

    return tuple(map(laid_out, results))


def _formula(x: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, var, given = reference.norm_conv2d(x, *arguments)
    y, given = _in_layout_of(x, y, given)
    nothing = x.new_empty((0,), dtype=wide_dtype(x))
    return (
        y,
        nothing if mean is None else mean,
        nothing.clone() if var is None else var,
        x.new_empty((0,)) if given is None else given,
    )


def _fake(
    x,
    weight,
    bias,
    scale_shift,
    activation,
    negative_slope,
    residual,
    return_input,
    stride,
    padding,
    padding_mode,
    upsample,
    return_stats,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, outputs = conv_channels(weight, upsample)
    size = conv_size(x.shape[2:], weight.shape[2], stride, padding, upsample)
    y = dense_like(x, (x.shape[0], outputs, *size))
    rows = (x.shape[0], outputs) if return_stats else (0,)
    mean, var = (x.new_empty(rows, dtype=wide_dtype(x)) for _ in range(2))
    return y, mean, var, dense_like(x) if return_input else x.new_empty((0,))


def norm_conv2d_out_formula(
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
    """The op `norm_conv2d_out` in plain PyTorch."""
    whole, mean, var, given = reference.norm_conv2d(
        x.to(weight.dtype),
        weight,
        bias,
        scale_shift,
        activation,
        negative_slope,
        residual,
        input is not None,
        stride,
        padding,
        padding_mode,
        upsample,
        next_scale_shift is not None,
    )
    if input is not None:
        input.copy_(given)
    if next_scale_shift is not None:
        next_scale_shift.copy_(reference.norm_scale_shift(mean, var, norm_weight, norm_bias, eps))
    part = whole[..., : y.shape[2], : y.shape[3]]
    y.copy_(part.round().clamp(0, 255) if y.dtype == torch.uint8 else part)


define(SCHEMAS[0], _formula, _fake, triton="norm_conv2d")
define(SCHEMAS[1], lambda weight, *mode: weight.clone(), None, triton="norm_conv2d")
define(SCHEMAS[2], lambda *arguments: 0, None, triton="norm_conv2d")
define(SCHEMAS[3], norm_conv2d_out_formula, lambda *arguments: None, triton="norm_conv2d")
_op = ops.norm_conv2d.default
_INSTEAD = (
    "call it under torch.no_grad() or torch.inference_mode(), or train with upsample_block and "
    "instance_norm and use it afterwards"
)
refuse_gradients(_op, _INSTEAD)
register("norm_conv2d")


def takes_kernel(kernel: int, upsample: str) -> bool:
    """Return whether `norm_conv2d` takes kernels of this size."""
    return CONV_KERNELS[upsample][1](kernel)


def _check_scale_shift(scale_shift: Tensor, x: Tensor) -> None:
    if not isinstance(scale_shift, Tensor):
        raise TypeError(
            "scale_shift: expected a torch.Tensor or None, got "
            f"{type(scale_shift).__name__}; norm_scale_shift makes one"
        )
    shape = (x.shape[0], x.shape[1], 2)
    if not fits(scale_shift, shape):
        raise ValueError(
            f"scale_shift: expected shape (N, Cin, 2) = {shape}, got {tuple(scale_shift.shape)}; "
            "norm_scale_shift makes it from statistics"
        )
    if scale_shift.dtype != wide_dtype(x):
        raise TypeError(
            f"scale_shift: expected {wide_dtype(x)} for x of {x.dtype}, got {scale_shift.dtype}; "
            f"convert with scale_shift.to({wide_dtype(x)})"
        )
    check_device(scale_shift, "scale_shift", x)


def _refuse_gradients(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"norm_conv2d has no gradient, but {name} requires one: {_INSTEAD}")


def norm_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale_shift: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    return_input: bool = False,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    upsample: str = "none",
    return_stats: bool = True,
) -> NormConv2dOutput:
    """A convolution that normalises its input while reading, and takes statistics while writing.

    The order is: ``activation(x * scale + shift) + residual``, upsample, pad, convolve, add the
    bias. If instance norm stands between two convolutions, `norm_scale_shift` turns the statistics
    of the first into the ``scale_shift`` of the second. Only raw output is stored between them::

        a = norm_conv2d(image, weight1, padding=4, padding_mode="reflect")
        b = norm_conv2d(a.y, weight2, scale_shift=norm_scale_shift(a.mean, a.var, gain, offset),
                        activation="relu", stride=2, padding=1, padding_mode="reflect")

    An instance norm cancels the bias of the convolution before it: leave that bias out. This op is
    for inference; train with `upsample_block` and `instance_norm`.

    Args:
        x: (N, Cin, H, W), contiguous or channels_last; float32, bfloat16, float16 or float64.
        weight: (Cout, Cin, k, k), k from 1 to 9, odd and at least 3 for ``nearest``;
            (Cin, Cout, k, k), k 3 or 4, for ``transpose``. x's dtype.
        bias: (Cout,), in x's dtype or float32; added before the output is rounded.
        scale_shift: (N, Cin, 2), scale and shift of each image's channels, float32 (float64 for
            float64 ``x``), as `norm_scale_shift` makes it. None: x is not normalised.
        activation: as for `instance_norm`.
        negative_slope: slope of ``leaky_relu`` below zero.
        residual: added after the activation; x's shape and dtype.
        return_input: also return the convolved input, for the next skip connection.
        stride: 1 or 2; 1 with ``nearest`` and ``transpose``.
        padding: pixels on every side; k // 2 with ``nearest``; left at 0 with ``transpose``, which
            implies it.
        padding_mode: ``zeros``, ``reflect`` or ``replicate``: the pixels around the normalised,
            upsampled image (zeros are zeros after normalising). A transposed convolution with
            ``zeros`` is torch's; with another mode its input is padded instead.
        upsample: ``none``; ``nearest``, each pixel repeated twice in both directions; or
            ``transpose``, a transposed convolution of stride 2 and padding 1 (and output padding
            1 for k = 3). Both give 2 H by 2 W.
        return_stats: also return the mean and biased variance of the output's planes.

    Returns:
        ``NormConv2dOutput(y, mean, var, input)``. There are always four results; those that were
        not requested are None. ``y`` is (N, Cout, Hout, Wout) in x's dtype and layout. ``mean`` and
        ``var`` are (N, Cout), float32 (float64 for float64): the statistics of ``y`` after
        rounding, since its reader normalises the rounded values. ``input`` has x's shape, dtype and
        layout, and is never x itself.

        Half precision is computed in float32 and rounded twice: the input and the output. With
        ``nearest``, on AMX and in Triton's kernels, sums of weights are rounded as well. Inf and
        NaN spread, as NaN, a few pixels further than the kernel reaches if pixels are computed
        together: by Winograd's method on the CPU, and for large kernels and upsampling on GPUs.
        Under autocast x, weight and residual are cast first, as a convolution's are.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape, device, number or name does not fit.
        RuntimeError: if a gradient would have to be recorded.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016; Johnson, Alahi and Fei-Fei,
    "Perceptual losses for real-time style transfer", 2016; Odena, Dumoulin and Olah,
    "Deconvolution and checkerboard artifacts", 2016; Lavin and Gray, "Fast algorithms for
    convolutional neural networks", 2016.
    """
    check_image_batch(x)
    check_tensor(weight, "weight")
    check_choice(upsample, "upsample", tuple(CONV_KERNELS))
    check_choice(activation, "activation", ACTIVATIONS)
    check_choice(padding_mode, "padding_mode", PADDING_MODES)
    check_number(negative_slope, "negative_slope")
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != torch.float64:
        x, weight = x.to(dtype), weight.to(dtype)
        if isinstance(residual, Tensor) and residual.dtype in DTYPES:
            residual = residual.to(dtype)
    check_conv_weight(weight, x, upsample, *CONV_KERNELS[upsample])
    if bias is not None:
        check_conv_bias(bias, x, conv_channels(weight, upsample)[1], or_float32=True)
    if scale_shift is not None:
        _check_scale_shift(scale_shift, x)
    if residual is not None:
        check_like(residual, "residual", x)
    check_conv_geometry(x, weight.shape[2], stride, padding, padding_mode, upsample)
    _refuse_gradients(x=x, weight=weight, bias=bias, scale_shift=scale_shift, residual=residual)
    arguments = (
        x,
        weight,
        bias,
        scale_shift,
        activation,
        negative_slope,
        residual,
        return_input,
        stride,
        padding,
        padding_mode,
        upsample,
        return_stats,
    )
    # Dtypes are chosen at this point. Autocast would round what the formula computes in float32.
    device = x.device.type
    with torch.autocast(device, enabled=False) if dtype is not None else contextlib.nullcontext():
        if use_reference("norm_conv2d", x):
            y, mean, var, given = reference.norm_conv2d(*arguments)
            if not transformed():  # under vmap tensors have no known layout
                y, given = _in_layout_of(x, y, given)
            return NormConv2dOutput(y, mean, var, given)
        if torch.compiler.is_compiling():
            y, mean, var, given = _op(*arguments)
        else:
            y, mean, var, given = below_autograd(_op, *arguments)
    return NormConv2dOutput(
        y,
        mean if return_stats else None,
        var if return_stats else None,
        given if return_input else None,
    )
