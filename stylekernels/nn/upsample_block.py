"""The upsampling block as a module."""

import math

import torch
from torch import Tensor, nn

from stylekernels.ops import upsample_block
from stylekernels.ops.arguments import check_choice
from stylekernels.tensors import ACTIVATIONS, PADDING_MODES

# Taps of 2x linear interpolation in one dimension. `nearest` convolves repeated pixels: its kernel
# of 3 and the transposed kernel of 4 both give pixels the weights 3/4 and 1/4.
_LINEAR = {
    ("transpose", 3): (0.5, 1.0, 0.5),
    ("transpose", 4): (0.25, 0.75, 0.75, 0.25),
    ("nearest", 3): (0.25, 0.5, 0.25),
}


class UpsampleBlock(nn.Module):
    """Doubles an image's size: learned upsampling convolution, instance norm, activation.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: 3 or 4 for ``transpose`` (4 by default), odd for ``nearest`` (3 by default).
        upsample: ``transpose``, a transposed convolution of stride 2, or ``nearest``, each pixel
            repeated twice and a convolution of stride 1.
        norm: ``instance``, affine, or ``none``.
        activation: as for `instance_norm`.
        padding_mode: ``zeros``, ``reflect`` or ``replicate``: the pixels around the image.
        bias: whether the convolution has a bias; by default only with ``norm="none"``, because
            instance norm cancels it.
        negative_slope: slope of ``leaky_relu`` below zero.
        eps: added to the variance.

    Parameters:
        ``weight``, (Cin, Cout, k, k) for ``transpose`` and (Cout, Cin, k, k) for ``nearest``,
        torch's layouts and initialisation; ``bias``, ``norm_weight`` and ``norm_bias``, (Cout,)
        or None.

    Shape:
        (N, Cin, H, W) to (N, Cout, 2 H, 2 W), in the input's dtype and layout.

    Raises:
        ValueError: if an argument or a shape does not fit.
        TypeError: if the input's dtype is not that of the weights.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer", 2016;
    Odena, Dumoulin and Olah, "Deconvolution and checkerboard artifacts", 2016.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | None = None,
        upsample: str = "transpose",
        norm: str = "instance",
        activation: str = "relu",
        padding_mode: str = "replicate",
        bias: bool | None = None,
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        check_choice(upsample, "upsample", ("transpose", "nearest"))
        check_choice(norm, "norm", ("instance", "none"))
        check_choice(activation, "activation", ACTIVATIONS)
        check_choice(padding_mode, "padding_mode", PADDING_MODES)
        transposed = upsample == "transpose"
        if kernel_size is None:
            kernel_size = 4 if transposed else 3
        if kernel_size not in (3, 4) if transposed else kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size: expected {'3 or 4' if transposed else 'a positive odd number'} for "
                f"upsample={upsample!r}, got {kernel_size}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.upsample = upsample
        self.norm = norm
        self.activation = activation
        self.padding_mode = padding_mode
        self.negative_slope = negative_slope
        self.eps = eps

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        self.weight = parameter(*channels, kernel_size, kernel_size)
        has_bias = norm == "none" if bias is None else bias
        self.bias = parameter(out_channels) if has_bias else None
        self.norm_weight = parameter(out_channels) if norm == "instance" else None
        self.norm_bias = parameter(out_channels) if norm == "instance" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch.nn initialises a convolution and an instance norm."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    @torch.no_grad()
    def init_bilinear_(self) -> "UpsampleBlock":
        """Initialise the kernels as bilinear interpolation of random mixtures of the channels.

        Training then starts without the checkerboard pattern of independent random taps. Returns
        self.

        Raises:
            ValueError: if the kernel has one pixel.

        Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation",
        2015, section 3.3; Odena, Dumoulin and Olah, 2016.
        """
        if self.kernel_size == 1:
            raise ValueError("kernel_size: expected at least 3 to interpolate with, got 1")
        if self.weight.is_meta:  # nothing to initialise, and arithmetic on meta imports slowly
            return self
        if self.upsample == "nearest":
            taps, border = _LINEAR["nearest", 3], (self.kernel_size - 3) // 2
        else:
            taps, border = _LINEAR["transpose", self.kernel_size], 0
        mixture = torch.empty_like(self.weight[:, :, 0, 0])
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(mixture, -bound, bound)
        line = self.weight.new_tensor(taps)
        inner = slice(border, border + len(taps))
        self.weight.zero_()
        self.weight[:, :, inner, inner] = mixture[..., None, None] * torch.outer(line, line)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return upsample_block(
            x,
            self.weight,
            self.norm_weight,
            self.norm_bias,
            bias=self.bias,
            upsample=self.upsample,
            norm=self.norm,
            activation=self.activation,
            negative_slope=self.negative_slope,
            padding_mode=self.padding_mode,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"upsample={self.upsample}, norm={self.norm}, activation={self.activation}, "
            f"padding_mode={self.padding_mode}"
        )
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text if self.bias is None else text + ", bias=True"
