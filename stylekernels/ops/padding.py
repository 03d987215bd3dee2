"""Padding for training: it preserves an image's memory layout, and saves no image for the backward
pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import reference
from stylekernels.ops.transforms import inside_transform
from stylekernels.tensors import channels_last, empty_channels_last, to_channels_last, wide_dtype


def convolved_image(x: Tensor, kernel: int, upsample: str, padding_mode: str) -> Tensor:
    """The image that an upsampling convolution reads: ``x``, enlarged and padded."""
    border = reference.border_of(kernel, upsample, padding_mode)
    return pad(reference.enlarge(x, upsample), border, padding_mode)


def pad(x: Tensor, border: int, padding_mode: str) -> Tensor:
    """Pad ``x`` by ``border`` pixels on every side.

    The gradient of a channels_last image is channels_last. Under transforms of torch.func, which
    have rules only for PyTorch's own ops, PyTorch pads.
    """
    if inside_transform():
        return reference.pad(x, border, padding_mode)
    if border > 0 and padding_mode != "zeros":
        return _Pad.apply(x, border, padding_mode)
    if x.requires_grad and channels_last(x):
        x = _KeepLayout.apply(x)
    return reference.pad(x, border, padding_mode)


def pad_channels_last(x: Tensor, border: int, mode: str) -> Tensor:
    """``F.pad`` for reflect and replicate with a channels_last result. The image is copied first,
    and then its border line by line."""
    height, width = (side + 2 * border for side in x.shape[2:])
    image = empty_channels_last(x, height, width)
    image[:, :, border : height - border, border : width - border].copy_(x)
    for dim in (3, 2):  # rows are copied last, whole, and so fill the corners
        first, last = border, border + x.shape[dim] - 1
        for distance in range(1, border + 1):
            inward = distance if mode == "reflect" else 0
            image.select(dim, first - distance).copy_(image.select(dim, first + inward))
            image.select(dim, last + distance).copy_(image.select(dim, last - inward))
    return image


class _Pad(torch.autograd.Function):
    """``F.pad`` for reflect and replicate that saves nothing for the backward pass. PyTorch saves
    the whole input, and needs only its size."""

    @staticmethod
    def forward(x: Tensor, border: int, mode: str) -> Tensor:
        # PyTorch preserves channels_last only on the CPU. Compilers choose layouts themselves.
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
    """The identity, with a channels_last gradient. Some of PyTorch's convolutions (cuDNN's in
    float64, MIOpen's) return contiguous ones."""

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
    """The gradient of padding: cut the border off, and add it in wide_dtype to the pixels that it
    repeated. The image is copied once; the strips of the border are thin. ``index_add`` is not
    used, for on a GPU its order of additions varies.
    """
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
