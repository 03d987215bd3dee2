"""Convolutions of torch.nn, and the padding and upsampling before them, as options of
`norm_conv2d`."""

from math import prod
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from stylekernels.nn.conv_transpose2d import ConvTranspose2d, doubles_size
from stylekernels.nn.pairs import is_unchanged
from stylekernels.ops.norm_conv2d import takes_kernel
from stylekernels.tensors import PADDING_MODES

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, ConvTranspose2d)

# Largest weight of a 4x4 convolution, in elements, that PyTorch is not faster with.
_MOST_WEIGHTS_4X4 = 1 << 20
_FEWEST_CHANNELS, _FEW_OUTPUTS = 32, 4
# The most channels of a strided convolution by Winograd's method, and of their products.
_MOST_STRIDED, _MOST_STRIDED_PRODUCT = 256, 128 * 256

_PADS = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
}
_MODES = {"reflect": "reflect", "replicate": "replicate", "constant": "zeros"}


class Geometry(NamedTuple):
    """Options of `norm_conv2d` that say which pixels are convolved."""

    kernel: int
    stride: int
    padding: int
    padding_mode: str
    upsample: str


def why_no_kernel(conv: nn.Conv2d | nn.ConvTranspose2d) -> str | None:
    """Return why a convolution stays PyTorch's; None if `geometry_of` takes it."""
    if parametrize.is_parametrized(conv):
        return "its weight is parametrized; remove the parametrization first"
    if type(conv) not in CONVOLUTIONS:
        base = next(kind.__name__ for kind in type(conv).__mro__ if kind in CONVOLUTIONS)
        return f"a subclass of {base}, which may compute something else"
    if not is_unchanged(conv):
        return "it has hooks or a forward of its own; remove them first"
    if conv.groups != 1 or conv.dilation != (1, 1):
        return "groups or dilation"
    if conv.kernel_size == (4, 4) and conv.weight.numel() > _MOST_WEIGHTS_4X4:
        return "PyTorch is faster at 4x4 with so many channels"
    if geometry_of(conv) is None:
        return "no kernel for this size, stride or padding"
    return None


def geometry_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> Geometry | None:
    """Return the options for a convolution alone; None if `norm_conv2d` has none."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if conv.kernel_size != (kernel, kernel) or conv.stride != (stride, stride):
        return None
    if isinstance(conv, nn.ConvTranspose2d):
        return Geometry(kernel, 1, 0, "zeros", "transpose") if doubles_size(conv) else None
    padding = {"valid": (0, 0), "same": (kernel // 2, kernel // 2)}.get(conv.padding, conv.padding)
    fits = (
        takes_kernel(kernel, "none")
        and stride in (1, 2)
        and padding == (padding[0], padding[0])
        and (conv.padding != "same" or kernel % 2 == 1)
        and conv.padding_mode in PADDING_MODES
    )
    return Geometry(kernel, stride, padding[0], conv.padding_mode, "none") if fits else None


def is_faster(geometry: Geometry, conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether `norm_conv2d` is measured to be faster than PyTorch with no norm to save:
    by Winograd's method, for large kernels and few outputs, and where it saves a larger image.

    Strided convolutions are faster in float32 on a CPU: the dtype and the device are those that the
    weight has now."""
    channels = (conv.in_channels, conv.out_channels)
    dense = geometry.kernel == 3 and geometry.stride == 1
    strided = (
        geometry.kernel in (3, 4)
        and geometry.stride == 2
        and max(channels) <= _MOST_STRIDED
        and prod(channels) <= _MOST_STRIDED_PRODUCT
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )
    return (
        geometry.upsample != "none"
        or geometry.kernel >= 5
        or (dense and conv.out_channels <= _FEW_OUTPUTS)
        or ((dense or strided) and min(channels) >= _FEWEST_CHANNELS)
    )


def with_padding(geometry: Geometry, node: fx.Node, module: nn.Module | None) -> Geometry | None:
    """Return the options for a convolution after a call that pads; None if that is no padding, or
    none that `norm_conv2d` can do."""
    if geometry.padding or geometry.upsample != "none":
        return None
    if type(module) in _PADS and is_unchanged(module):
        mode, padding = _PADS[type(module)], module.padding
    elif node.target is F.pad:
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False))
        given |= node.kwargs
        mode, padding = _MODES.get(given.get("mode", "constant")), given["pad"]
        if mode is None or given.get("value"):
            return None
    else:
        return None
    if not isinstance(padding, (tuple, list)) or not isinstance(padding[0], int):
        return None
    if padding[0] < 0 or tuple(padding) != (padding[0],) * 4:
        return None
    return geometry._replace(padding=padding[0], padding_mode=mode)


def with_upsampling(geometry: Geometry, node: fx.Node, module: nn.Module | None) -> Geometry | None:
    """Return the options for a convolution after a call that doubles the size by repeating pixels;
    None if that is another call, or `norm_conv2d` cannot do both."""
    if type(module) in (nn.Upsample, nn.UpsamplingNearest2d) and is_unchanged(module):
        given = vars(module)
    elif node.target is F.interpolate:
        names = ("input", "size", "scale_factor", "mode")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
    else:
        return None
    scale = given.get("scale_factor")
    doubles = scale == 2 or (isinstance(scale, (tuple, list)) and tuple(scale) == (2, 2))
    nearest = given.get("mode", "nearest") == "nearest" and given.get("size") is None
    fits = (
        geometry.stride == 1
        and geometry.upsample == "none"
        and takes_kernel(geometry.kernel, "nearest")
        and geometry.padding == geometry.kernel // 2
    )
    return geometry._replace(upsample="nearest") if doubles and nearest and fits else None
