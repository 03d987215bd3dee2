"""Upsampling convolutions, alone and with instance norm and activation, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.reference.instance_norm import activate, instance_norm
from stylekernels.reference.transforms import inside_transform
from stylekernels.tensors import channels_last, laid_out_like, to_channels_last, wide_dtype


def pad_channels_last(x: Tensor, border: int, mode: str) -> Tensor:
    """``F.pad`` for reflect and replicate, channels_last: the image is copied, and then its border
    line by line."""
    n, c, *size = x.shape
    height, width = (side + 2 * border for side in size)
    image = x.new_empty((n, height, width, c)).permute(0, 3, 1, 2)
    image[:, :, border : height - border, border : width - border].copy_(x)
    for dim in (3, 2):  # the corners come with the rows
        first, last = border, border + x.shape[dim] - 1
        for step in range(1, border + 1):
            inward = step if mode == "reflect" else 0
            image.select(dim, first - step).copy_(image.select(dim, first + inward))
            image.select(dim, last + step).copy_(image.select(dim, last - inward))
    return image


class _Pad(torch.autograd.Function):
    """``F.pad`` for reflect and replicate without its memory: PyTorch keeps the whole input for the
    backward pass, which needs no more than its size."""

    @staticmethod
    def forward(x: Tensor, border: int, mode: str) -> Tensor:
        # PyTorch's is channels_last on the CPU alone, and a compiler chooses layouts itself.
        if channels_last(x) and x.device.type != "cpu" and not torch.compiler.is_compiling():
            return pad_channels_last(x, border, mode)
        return F.pad(x, [border] * 4, mode)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.border, ctx.mode = inputs
        ctx.channels_last = channels_last(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x = _fold(grad, (2, 3), ctx.border, ctx.mode).to(grad.dtype)  # rounded once
        return to_channels_last(grad_x) if ctx.channels_last else grad_x.contiguous(), None, None


class _KeepLayout(torch.autograd.Function):
    """An image as it is, whose gradient is channels_last as well: some of PyTorch's convolutions
    (cuDNN's in float64, MIOpen's) know contiguous images alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return to_channels_last(grad)


def _fold(grad: Tensor, dims: tuple[int, ...], border: int, mode: str) -> Tensor:
    """Cut the border off and add it, in wide_dtype, to the pixels that it repeated: one copy of
    the image, and thin strips. (No index_add, which adds in any order on a GPU.)"""
    dim, *rest = dims
    size = grad.shape[dim] - 2 * border
    inner = grad.narrow(dim, border, size)
    strips = [grad.narrow(dim, start, border) for start in (0, border + size)]
    strips = [strip.to(wide_dtype(grad)) for strip in strips]
    if mode == "replicate":
        strips, starts = [strip.sum(dim, keepdim=True) for strip in strips], (0, size - 1)
    else:
        strips, starts = [strip.flip(dim) for strip in strips], (1, size - 1 - border)
    if rest:
        inner, *strips = (_fold(part, rest, border, mode) for part in (inner, *strips))
    else:
        inner = inner.to(wide_dtype(grad), copy=True)
    for strip, start in zip(strips, starts, strict=True):
        inner.narrow(dim, start, strip.shape[dim]).add_(strip)
    return inner


def pad(x: Tensor, border: int, padding_mode: str) -> Tensor:
    """Continue ``x`` by ``border`` pixels on every side. The gradient of a channels_last image is
    channels_last."""
    plain = inside_transform()
    if border > 0 and padding_mode != "zeros":
        if plain:
            return F.pad(x, [border] * 4, padding_mode)
        return _Pad.apply(x, border, padding_mode)
    if x.requires_grad and channels_last(x) and not plain:
        x = _KeepLayout.apply(x)
    return F.pad(x, [border] * 4) if border > 0 else x


def convolved_image(x: Tensor, kernel: int, upsample: str, padding_mode: str) -> Tensor:
    """What is convolved: each pixel repeated twice for ``nearest``, and a border."""
    if upsample == "nearest":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return pad(x, kernel // 2, padding_mode)
    return pad(x, 0 if padding_mode == "zeros" else 1, padding_mode)


def empty_upsampled_image(x: Tensor, border: int) -> Tensor:
    """Room for `convolved_image` of ``nearest``, channels_last."""
    n, c, height, width = x.shape
    size = 2 * (height + border), 2 * (width + border)
    return x.new_empty((n, *size, c)).permute(0, 3, 1, 2)


def transposed_padding(padding_mode: str) -> int:
    """The padding argument of a transposed convolution of `convolved_image`: one pixel of border
    adds two output pixels on each side, which it crops."""
    return 1 if padding_mode == "zeros" else 3


def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str
) -> Tensor:
    """Double the size of ``x`` and convolve: (N, Cin, H, W) to (N, Cout, 2 H, 2 W).

    ``transpose`` is torch's transposed convolution of stride 2 and padding 1 (kernel 4, or
    kernel 3 with output padding 1); the padding modes other than zeros continue the input past
    its border first, so that no frame of zeros shows. ``nearest`` repeats each pixel twice, pads
    by half the (odd) kernel and convolves. The result has x's layout.
    """
    kernel = weight.shape[-1]
    image = convolved_image(x, kernel, upsample, padding_mode)
    if upsample == "nearest":
        y = F.conv2d(image, weight, bias)
    else:
        y = F.conv_transpose2d(
            image, weight, bias, stride=2, padding=transposed_padding(padding_mode),
            output_padding=4 - kernel,
        )  # fmt: skip
    return laid_out_like(y, x)


def upsample_block(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    bias: Tensor | None,
    upsample: str,
    norm: str,
    activation: str,
    negative_slope: float,
    padding_mode: str,
    eps: float,
) -> Tensor:
    """Upsample, convolve, instance norm (or bias), activate."""
    if norm == "none":
        y = upsample_conv2d(x, weight, bias, upsample, padding_mode)
        return activate(y, activation, negative_slope)
    y = upsample_conv2d(x, weight, None, upsample, padding_mode)
    return instance_norm(
        y, norm_weight, norm_bias, None, None, None, activation, negative_slope, False, eps
    )
