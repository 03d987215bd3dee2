"""Upsampling convolutions, alone and with instance norm and activation, in plain PyTorch."""

from torch import Tensor
from torch.nn import functional as F

from stylekernels.reference.instance_norm import activate, instance_norm

TORCH_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


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
    if upsample == "nearest":
        large = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(F.pad(large, [kernel // 2] * 4, TORCH_PAD_MODES[padding_mode]), weight, bias)
    border = 0 if padding_mode == "zeros" else 1
    if border:
        x = F.pad(x, [border] * 4, TORCH_PAD_MODES[padding_mode])
    # One padded pixel adds two output pixels on each side; the padding argument crops them.
    return F.conv_transpose2d(
        x, weight, bias, stride=2, padding=1 + 2 * border, output_padding=4 - kernel
    )


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
