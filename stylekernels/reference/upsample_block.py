"""Upsampling convolutions, alone and with instance norm and activation, in plain PyTorch."""

from torch import Tensor
from torch.nn import functional as F

from stylekernels.reference.instance_norm import activate, instance_norm
from stylekernels.tensors import laid_out_like


def pad(x: Tensor, border: int, padding_mode: str) -> Tensor:
    """Pad ``x`` by ``border`` pixels on every side."""
    if border == 0:
        return x
    return F.pad(x, [border] * 4, "constant" if padding_mode == "zeros" else padding_mode)


def enlarge(x: Tensor, upsample: str) -> Tensor:
    """Repeat each pixel twice in both directions for ``nearest``; return x for ``transpose``."""
    return F.interpolate(x, scale_factor=2, mode="nearest") if upsample == "nearest" else x


def border_of(kernel: int, upsample: str, padding_mode: str) -> int:
    """Return the padding of the enlarged image on every side, before it is convolved.

    A transposed convolution with zeros pads by itself. With the other modes its input is padded by
    one pixel, so that no frame of zeros is visible.
    """
    if upsample == "nearest":
        return kernel // 2
    return 0 if padding_mode == "zeros" else 1


def convolve_enlarged(
    image: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str
) -> Tensor:
    """Convolve an enlarged and padded image. ``nearest`` has stride 1 and no padding; ``transpose``
    doubles the size with a stride of 2."""
    if upsample == "nearest":
        return F.conv2d(image, weight, bias)
    return F.conv_transpose2d(
        image,
        weight,
        bias,
        stride=2,
        padding=transposed_padding(padding_mode),
        output_padding=4 - weight.shape[-1],
    )


def transposed_padding(padding_mode: str) -> int:
    """Return the padding argument of the transposed convolution. Each pixel of border adds two
    output pixels on each side, which this argument crops."""
    return 1 if padding_mode == "zeros" else 3


def upsample_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, upsample: str, padding_mode: str
) -> Tensor:
    """Double the size of ``x`` and convolve: (N, Cin, H, W) to (N, Cout, 2 H, 2 W).

    ``transpose`` is torch's transposed convolution of stride 2 and padding 1 (kernel 4, or kernel 3
    with output padding 1). With padding modes other than zeros the input is padded first.
    ``nearest`` repeats each pixel twice, pads by half the (odd) kernel and convolves. The result
    has x's layout.
    """
    border = border_of(weight.shape[-1], upsample, padding_mode)
    image = pad(enlarge(x, upsample), border, padding_mode)
    return laid_out_like(convolve_enlarged(image, weight, bias, upsample, padding_mode), x)


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
