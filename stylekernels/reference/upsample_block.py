"""Upsampling convolutions, alone and with instance norm and activation, in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.reference.dtypes import wide_dtype
from stylekernels.reference.instance_norm import activate, instance_norm

PADDING_MODES = ("zeros", "reflect", "replicate")


class _Pad(torch.autograd.Function):
    """``F.pad`` for reflect and replicate without its memory: PyTorch keeps the whole input for the
    backward pass, which needs no more than its size."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, border: int, mode: str) -> Tensor:
        return F.pad(x, [border] * 4, mode)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.border, ctx.mode = inputs
        channels_last = (
            x.stride(1) == 1 and x.shape[1] > 1 and x.stride(3) != 1
        )  # is_contiguous fails under vmap
        ctx.layout = torch.channels_last if channels_last else torch.contiguous_format

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x = _fold(grad, (2, 3), ctx.border, ctx.mode).to(grad.dtype)  # rounded once
        return grad_x.contiguous(memory_format=ctx.layout), None, None


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
    """Continue ``x`` by ``border`` pixels on every side."""
    if border == 0:
        return x
    if padding_mode == "zeros":
        return F.pad(x, [border] * 4)
    if not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0:
        return F.pad(x, [border] * 4, padding_mode)
    return _Pad.apply(x, border, padding_mode)


def convolved_image(x: Tensor, kernel: int, upsample: str, padding_mode: str) -> Tensor:
    """What is convolved: each pixel repeated twice for ``nearest``, and a border."""
    if upsample == "nearest":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return pad(x, kernel // 2, padding_mode)
    return pad(x, 0 if padding_mode == "zeros" else 1, padding_mode)


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
    by half the (odd) kernel and convolves.
    """
    kernel = weight.shape[-1]
    image = convolved_image(x, kernel, upsample, padding_mode)
    if upsample == "nearest":
        return F.conv2d(image, weight, bias)
    return F.conv_transpose2d(
        image, weight, bias, stride=2, padding=transposed_padding(padding_mode),
        output_padding=4 - kernel,
    )  # fmt: skip


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
