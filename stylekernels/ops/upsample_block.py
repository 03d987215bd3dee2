"""The upsampling block: upsample, convolve, instance norm, activate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylekernels import native, reference
from stylekernels.namespace import ops
from stylekernels.ops.arguments import (
    autocast_dtype,
    check_can_reflect,
    check_choice,
    check_conv_bias,
    check_conv_weight,
    check_has_planes,
    check_image_batch,
    check_number,
    check_per_channel,
    check_tensor,
)
from stylekernels.ops.autograd import call, forward_of, recorder, vjp
from stylekernels.ops.dispatch import (
    Implementation,
    choose,
    reason_of,
    register,
    use_reference,
)
from stylekernels.ops.forcing import is_forced
from stylekernels.ops.instance_norm import normalize
from stylekernels.ops.norm_conv2d import takes_kernel
from stylekernels.ops.padding import convolved_image
from stylekernels.ops.registration import define, differentiate
from stylekernels.ops.transforms import inside_transform, transformed
from stylekernels.tensors import (
    ACTIVATIONS,
    PADDING_MODES,
    conv_channels,
    dense_like,
    empty_channels_last,
    laid_out_like,
    layout_of,
    wide_dtype,
    without_autocast,
)

SCHEMAS = (
    # Repeats each pixel twice in both directions and pads all sides; the result is channels_last.
    "upsampled_image(Tensor x, int border, str padding_mode) -> Tensor",
    # Runs the convolution by our kernel. With `stats` mean and var are those of the planes of y,
    # else they are empty.
    "upsample_conv2d(Tensor x, Tensor weight, Tensor? bias, str upsample, str padding_mode, "
    "bool stats) -> (Tensor y, Tensor mean, Tensor var)",
)

_MEASURED = "it was measured to be faster"

# Our kernel transforms the weights at each call, which takes as long as the products of few pixels.
# PyTorch is faster below so many pixels times the square root of Cin x Cout: 8x8 to 96x96 pixels,
# 16 to 256 channels, on two cores. AVX2 was measured on Zen 3 in float32, AVX-512 on Zen 4, there
# also in bfloat16, for which PyTorch has instructions and our kernels have not.
_FEWEST_PIXELS = {
    "avx2": {"nearest": 3, "transpose": 8, "transpose with zeros": 16},
    "avx512": {"nearest": 3, "transpose": 8, "transpose with zeros": 5},
    "avx512_bf16": {"nearest": 8, "transpose": 48, "transpose with zeros": 48},
}

_KERNELS = {
    "transpose": ("k = 3 or 4", lambda k: k in (3, 4)),
    "nearest": ("k odd", lambda k: k % 2 == 1),
}


def upsample_block(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    upsample: str = "transpose",
    norm: str = "instance",
    activation: str = "relu",
    negative_slope: float = 0.01,
    padding_mode: str = "replicate",
    eps: float = 1e-5,
) -> Tensor:
    """Double an image's size with a learned convolution, then instance norm and activation.

    The backward pass needs the convolution's input, its raw output and that output's statistics.
    Results of instance norm and activation are not saved.

    On a GPU the convolution is PyTorch's, with two exceptions for channels_last images: transposed
    convolutions with padding other than zeros, and ``nearest`` in half precision. PyTorch's
    convolutions, which the backward pass always uses, may differ in the last digits from run to run
    unless ``torch.backends.cudnn.deterministic`` is True.

    Args:
        x: (N, Cin, H, W), contiguous or channels_last; float32, bfloat16, float16 or float64.
        weight: (Cin, Cout, k, k), k 3 or 4, for ``transpose``; (Cout, Cin, k, k), k odd, for
            ``nearest``.
        norm_weight, norm_bias: instance norm's scale and shift, (Cout,) or (N, Cout).
        bias: the convolution's bias, (Cout,). Instance norm cancels it exactly: with
            ``norm="instance"`` it is left out and its gradient is zero.
        upsample: ``transpose``, a transposed convolution of stride 2, or ``nearest``, each pixel
            repeated twice and a convolution of stride 1.
        norm: ``instance`` or ``none``.
        activation: as for `instance_norm`.
        negative_slope: slope of ``leaky_relu`` below zero.
        padding_mode: ``zeros``, ``reflect`` or ``replicate``: the pixels around the image. A
            transposed convolution with ``zeros`` is torch's; it leaves a visible frame.
        eps: added to the variance.

    Returns:
        (N, Cout, 2 H, 2 W), x's dtype and layout.

    Raises:
        TypeError: if a dtype does not fit, or an argument is no tensor.
        ValueError: if a shape, device or name does not fit, or x is too small to reflect.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer", 2016;
    Odena, Dumoulin and Olah, "Deconvolution and checkerboard artifacts", 2016.
    """
    check_image_batch(x)
    check_has_planes(x)
    check_choice(upsample, "upsample", ("transpose", "nearest"))
    check_choice(norm, "norm", ("instance", "none"))
    check_choice(activation, "activation", ACTIVATIONS)
    check_choice(padding_mode, "padding_mode", PADDING_MODES)
    check_number(negative_slope, "negative_slope")
    check_number(eps, "eps")
    check_tensor(weight, "weight")
    if bias is not None:
        check_tensor(bias, "bias")
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != torch.float64:
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    check_conv_weight(weight, x, upsample, *_KERNELS[upsample])
    _, out_channels = conv_channels(weight, upsample)
    if bias is not None:
        check_conv_bias(bias, x, out_channels)
    for parameter, name in ((norm_weight, "norm_weight"), (norm_bias, "norm_bias")):
        if parameter is not None:
            if norm == "none":
                raise ValueError(f"{name}: expected None with norm='none', got a tensor; use bias")
            check_per_channel(parameter, name, x, channels=out_channels)
    if padding_mode == "reflect":
        border = weight.shape[2] // 2 if upsample == "nearest" else 1
        check_can_reflect(x, border, upsample)
    if norm == "none":
        y, _, _ = _upsample_conv2d(x, weight, bias, upsample, padding_mode, False)
        return reference.activate(y, activation, negative_slope)
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        # Zeros, even for an infinite bias, with a gradient of zeros: distributed training waits for
        # the gradient of every parameter.
        zeros = torch.where(torch.zeros((), dtype=torch.bool, device=bias.device), bias, 0)
        norm_bias = zeros if norm_bias is None else norm_bias + zeros.to(norm_bias.dtype)
    plain = use_reference("upsample_block", x)
    if transformed():
        return reference.upsample_block(
            x,
            weight,
            norm_weight,
            norm_bias,
            None,
            upsample,
            norm,
            activation,
            negative_slope,
            padding_mode,
            eps,
        )
    y, mean, var = _upsample_conv2d(x, weight, None, upsample, padding_mode, True)
    inputs = (y, norm_weight, norm_bias, None, mean, var)
    options = (activation, negative_slope, False, eps)
    if plain:
        return reference.instance_norm(*inputs, *options)
    return normalize(inputs, options, own_stats_known=mean is not None)


def _upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, stats: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Convolve. Mean and variance of the planes are None without ``stats`` or our kernel."""
    nothing = None, None
    chosen = choose("upsample_conv2d", x.device.type, x, weight, upsample, padding_mode)
    if chosen == "reference" or transformed():
        return _in_pytorch(x, weight, bias, upsample, padding_mode), *nothing
    if torch.compiler.is_compiling():
        # With dynamic shapes Inductor fails on the gradient of a convolution whose input is
        # recomputed. It gets PyTorch's convolution if a gradient may be needed.
        given = (tensor for tensor in (x, weight, bias) if tensor is not None)
        differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        if inside_transform() or differentiable:
            return _in_pytorch(x, weight, bias, upsample, padding_mode), *nothing
    arguments = (x, weight, bias, upsample, padding_mode, stats)
    y, mean, var = call(_upsample_conv2d_op, _record, *arguments)
    return (y, mean, var) if stats else (y, *nothing)


def _in_pytorch(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str
) -> Tensor:
    """PyTorch's convolution, with our padding."""
    if (
        x.requires_grad
        and 1 in x.shape[2:]
        and not (torch.compiler.is_compiling() or transformed())
    ):
        # PyTorch's gradient has another layout for sides of one pixel.
        given, x = x, x.view_as(x)
        x.register_hook(lambda grad: laid_out_like(grad, given))
    image = convolved_image(x, weight.shape[2], upsample, padding_mode)
    y = reference.convolve_enlarged(image, _laid_out_for(x, weight), bias, upsample, padding_mode)
    return laid_out_like(y, x)


def _laid_out_for(x: Tensor, weight: Tensor) -> Tensor:
    """Return the weights, contiguous if x is: PyTorch's convolution of contiguous images by
    channels_last weights, and its gradient, are channels_last. Strides count for PyTorch even if a
    kernel of one pixel is both."""
    return weight.contiguous().flatten().view(weight.shape) if x.is_contiguous() else weight


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if choose("upsample_conv2d", x.device.type, x, weight, upsample, padding_mode) == "reference":
        # A compiled program has the op for all sizes.
        y, mean, var = _upsample_conv2d_formula(x, weight, bias, upsample, padding_mode, stats)
        return y.contiguous(memory_format=layout_of(x)), mean, var
    padding = weight.shape[2] // 2 if upsample == "nearest" else 0
    image = x
    half = x.dtype in (torch.bfloat16, torch.float16)
    if upsample == "nearest" and half and choose("norm_conv2d", x.device.type) == "triton":
        # If norm_conv2d enlarged the image, it would round sums of weights.
        image = ops.upsampled_image.default(x, padding, padding_mode)
        padding, padding_mode, upsample = 0, "zeros", "none"
    y, mean, var, _ = ops.norm_conv2d.default(
        image,
        weight,
        bias,
        None,
        "none",
        0.0,
        None,
        False,
        1,
        padding,
        padding_mode,
        upsample,
        stats,
    )
    return y.contiguous(memory_format=layout_of(x)), mean, var


class _UpsampleConv2d(torch.autograd.Function):
    """Our convolution forward, PyTorch's backward. Only the inputs are saved: the enlarged or
    padded image is recomputed."""

    @staticmethod
    def forward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
        return forward_of(_upsample_conv2d_op, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, bias, ctx.upsample, ctx.padding_mode, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    def backward(ctx, grad, _grad_mean, _grad_var):
        if grad is None:
            return (None,) * 6
        inputs = ctx.saved_tensors
        mode, wanted = (ctx.upsample, ctx.padding_mode), ctx.needs_input_grad[:3]
        with without_autocast(grad.device.type):
            if torch.is_grad_enabled() or transformed():  # it may be differentiated again
                grads = _plain_gradients(grad, inputs, mode, wanted)
            else:
                grads = _conv_gradients(grad, *inputs, *mode, wanted)
        return *grads, None, None, None


def _plain_gradients(
    grad: Tensor, inputs: Sequence[Tensor | None], mode: tuple[str, str], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by PyTorch's own ops, so that they can be differentiated again."""

    def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.upsample_conv2d(x, weight, bias, *mode)

    return vjp(formula, inputs, grad, wanted)


_record = recorder(_UpsampleConv2d)


def _conv_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    upsample: str,
    padding_mode: str,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    kernel = weight.shape[2]
    with torch.enable_grad():
        given = x.detach().requires_grad_(wanted[0])
        image = convolved_image(given, kernel, upsample, padding_mode)
    transposed = upsample == "transpose"
    stride, padding = (2, reference.transposed_padding(padding_mode)) if transposed else (1, 0)
    grad_image, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        image.detach(),
        _laid_out_for(x, weight),
        None if bias is None else [bias.shape[0]],
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        transposed,
        [4 - kernel if transposed else 0] * 2,
        1,
        wanted,
    )
    grad_x = None
    if wanted[0]:
        (grad_x,) = torch.autograd.grad(image, given, grad_image)
        grad_x = laid_out_like(grad_x, x)  # PyTorch's layout differs for sides of one pixel
    return grad_x, grad_weight, grad_bias


def _upsample_conv2d_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = reference.upsample_conv2d(x, weight, bias, upsample, padding_mode)
    mean, var = reference.instance_norm_stats(y.detach()) if stats else _no_stats(x)
    return y, mean, var


def _no_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    nothing = x.new_empty((0,), dtype=wide_dtype(x))
    return nothing, nothing.clone()


def _fake_upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str, stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _, channels = conv_channels(weight, upsample)
    y = dense_like(x, (x.shape[0], channels, 2 * x.shape[2], 2 * x.shape[3]))
    if not stats:
        return y, *_no_stats(x)
    mean, var = (x.new_empty((x.shape[0], channels), dtype=wide_dtype(x)) for _ in range(2))
    return y, mean, var


def _upsampled_image(x: Tensor, border: int, padding_mode: str) -> Tensor:
    image = convolved_image(x, 2 * border + 1, "nearest", padding_mode)
    return _fake_upsampled_image(x, border, padding_mode).copy_(image)


def _fake_upsampled_image(x: Tensor, border: int, padding_mode: str) -> Tensor:
    height, width = (2 * (side + border) for side in x.shape[2:])
    return empty_channels_last(x, height, width)


define(SCHEMAS[0], _upsampled_image, _fake_upsampled_image, triton="upsample_block")
define(SCHEMAS[1], _forward, _fake_upsample_conv2d)
_upsample_conv2d_op = ops.upsample_conv2d.default
differentiate(_upsample_conv2d_op, _upsample_conv2d_formula, _record)


def native_declines(
    x: Tensor, weight: Tensor | None, upsample: str, padding_mode: str
) -> str | None:
    """Return why PyTorch convolves on the CPU; None if our kernel is faster or forced.

    PyTorch is faster without AVX2, and for few pixels. It is also faster for channels_last images
    and transposed kernels with zero padding in two cases: kernels of 3, where Winograd's method
    saves nothing, and bfloat16 with AVX512-BF16, where PyTorch has instructions for it and our
    kernels have no tiles.

    On AMX the sums of weights for ``nearest`` are rounded to half precision. The error is visible
    in single pixels after the norm, so PyTorch convolves there even if our kernel is forced.
    """
    kernel = 4 if weight is None else weight.shape[2]
    if not takes_kernel(kernel, upsample):
        return f"our kernel does not take a kernel of {kernel}"
    capability = native.cpu_capability
    if capability in (None, "baseline"):
        return "it is faster without AVX2"
    in_tiles = x.dtype == torch.bfloat16 and capability.startswith("amx")
    if in_tiles and upsample == "nearest":
        return "it is more exact on AMX"
    if in_tiles or is_forced("native"):
        return None
    plain = upsample == "transpose" and padding_mode == "zeros"
    if plain and _dense_channels_last(x) and (kernel == 3 or _runs_in_pairs(x)):
        return _MEASURED
    # A program that compared sizes while it is compiled could not vary them: `_forward` does.
    if weight is None or torch.compiler.is_compiling():
        return None
    few = _has_few_pixels(x, weight, upsample, padding_mode)
    return f"{_MEASURED} for few pixels" if few else None


def triton_declines(
    x: Tensor, weight: Tensor | None, upsample: str, padding_mode: str
) -> str | None:
    """Return why PyTorch convolves on a GPU; None if our kernel is faster or forced.

    Our kernel is faster for channels_last images in two cases: transposed convolutions with padding
    other than zeros, because cuDNN pads with zeros only and needs a padded copy; and ``nearest`` in
    half precision.
    """
    kernel = 4 if weight is None else weight.shape[2]
    if not takes_kernel(kernel, upsample):
        return f"our kernel does not take a kernel of {kernel}"
    if upsample == "nearest":
        faster = x.dtype in (torch.bfloat16, torch.float16)
    else:
        faster = padding_mode != "zeros" and x.dtype != torch.float64
    if is_forced("triton") or (faster and _dense_channels_last(x)):
        return None
    return _MEASURED


def _runs_in_pairs(x: Tensor) -> bool:
    """Return whether PyTorch multiplies by the instructions of AVX512-BF16."""
    return x.dtype == torch.bfloat16 and native.cpu_capability == "avx512_bf16"


def _has_few_pixels(x: Tensor, weight: Tensor, upsample: str, padding_mode: str) -> bool:
    """Return whether PyTorch is faster on the CPU because the weights are large for the image."""
    measured = "avx2"  # also without vectors of ours, and emulated
    if native.cpu_capability in ("avx512", "avx512_bf16", "amx"):
        measured = "avx512_bf16" if _runs_in_pairs(x) else "avx512"
    plain = upsample == "transpose" and padding_mode == "zeros"
    fewest = _FEWEST_PIXELS[measured]["transpose with zeros" if plain else upsample]
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return pixels**2 < fewest**2 * weight.shape[0] * weight.shape[1]


def _dense_channels_last(x: Tensor) -> bool:
    """Return whether ``x`` is channels_last, and not contiguous at the same time."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()


def _note(x: Tensor, weight: object = None, *_: object, **options: object) -> str:
    """Return the text that `explain` adds if the convolution is PyTorch's."""
    given = weight if isinstance(weight, Tensor) else options.get("weight")
    if x.dim() != 4 or (isinstance(given, Tensor) and given.dim() != 4):
        return ""
    mode = options.get("upsample", "transpose"), options.get("padding_mode", "replicate")
    arguments = ("upsample_conv2d", x.device.type, x, given, *mode)
    if choose(*arguments) != "reference":
        return ""
    return f"the convolution is PyTorch's: {reason_of(*arguments)}"


register("upsample_block", note=_note)
register(
    "upsample_conv2d",
    cpu=(Implementation("native", native_declines), Implementation("triton", triton_declines)),
    cuda=(Implementation("triton", triton_declines),),
    public=False,
)
