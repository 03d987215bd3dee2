"""Dtypes and memory layouts of tensors, autocast, and the names that several ops take."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

#: The dtypes that every op takes.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: ``gelu_tanh`` is the approximation of ``gelu`` by a tanh.
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")
PADDING_MODES = ("zeros", "reflect", "replicate")


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of sums over ``x``, such as statistics, Gram matrices and losses: float64
    for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def knows_autocast(device_type: str) -> bool:
    """Return whether PyTorch has autocast for this type of device; ``meta`` has none."""
    if torch.compiler.is_compiling():  # PyTorch 2.11 cannot trace is_autocast_available
        return device_type != "meta"
    return torch.amp.is_autocast_available(device_type)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Return a context without autocast, for formulas that choose their own dtypes."""
    if not knows_autocast(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def layout_of(x: Tensor) -> torch.memory_format:
    """Return channels_last for a dense channels_last ``x``, else contiguous. Views with gaps, and
    tensors that are both, are contiguous."""
    plain = x.dim() != 4 or x.is_contiguous()
    if plain or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def channels_last(x: Tensor) -> bool:
    """Return whether the channels of a pixel are adjacent, even in a view with gaps. The strides
    decide, because ``is_contiguous`` fails under vmap."""
    return x.stride(1) == 1 != x.stride(3)


def to_channels_last(x: Tensor) -> Tensor:
    """Return ``x``, or a channels_last copy of it."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def laid_out_like(y: Tensor, x: Tensor) -> Tensor:
    """Return dense ``y`` in the layout of ``x``, copied if necessary. ``y`` is unchanged if ``x``
    is neither contiguous nor channels_last."""
    if x.is_contiguous():
        return y.contiguous()
    return to_channels_last(y) if channels_last(x) and not channels_last(y) else y


def as_images(x: Tensor) -> Tensor:
    """Return (N, C, L) as (N, C, 1, L), (N, C, D, H, W) as (N, C, D H, W), and (N, C, H, W) as it
    is; (N, C) has one pixel. To an op that sees planes, the order of their pixels is all the same.
    Contiguous and channels_last tensors become views of that layout; a tensor that has no such view
    is copied."""
    if x.dim() < 4:
        return x[:, :, None] if x.dim() == 3 else x[:, :, None, None]
    if x.dim() > 4 and x.shape[0] == 1 and x.stride(1) == 1 != x.stride(-1):
        # The gradient of this flatten has x's strides; that of the other has a pixel's stride for
        # the batch, as in from_images.
        return x.movedim(1, -1).flatten(1, -3).movedim(-1, 1)
    return x if x.dim() == 4 else x.flatten(2, -2)


def from_images(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y``, of the shape of ``as_images(x)``, in the shape of ``x``, as a view."""
    if x.dim() == 4:
        return y
    if x.shape[0] == 1 and channels_last(y):
        # y.view would give a batch of one the stride of a pixel, and PyTorch's ops then take the
        # result for contiguous.
        return y.permute(0, 2, 3, 1).view(1, *x.shape[2:], x.shape[1]).movedim(-1, 1)
    return y.view_as(x)


def new_like(y: Tensor, x: Tensor) -> Tensor:
    """Return a dense copy of ``y`` in the layout of ``x``. Under transforms of torch.func, which
    have no layouts, the layout is unspecified."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return y.clone()
    return y.clone(memory_format=layout_of(x))


def dense_like(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return an uninitialised tensor in x's dtype and layout, of x's shape or another one."""
    if shape is None:
        return torch.empty_like(x, memory_format=layout_of(x))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout_of(x))


def conv_channels(weight: Tensor, upsample: str) -> tuple[int, int]:
    """Return the input and the output channels of a convolution's weights."""
    outputs, inputs = weight.shape[:2]
    return (outputs, inputs) if upsample == "transpose" else (inputs, outputs)


def conv_size(
    size: Sequence[int], kernel: int, stride: int, padding: int, upsample: str
) -> tuple[int, int]:
    """Return the height and width of a convolution's output, for those of its input."""
    height, width = size
    if upsample != "none":
        return 2 * height, 2 * width
    reach = 2 * padding - kernel
    return (height + reach) // stride + 1, (width + reach) // stride + 1


def empty_channels_last(x: Tensor, height: int, width: int) -> Tensor:
    """Return an uninitialised channels_last image of another size, with x's batch, channels, dtype
    and device."""
    n, c = x.shape[:2]
    return x.new_empty((n, height, width, c)).permute(0, 3, 1, 2)
