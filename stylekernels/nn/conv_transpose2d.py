"""Transposed convolution: a drop-in for torch's module."""

import torch
from torch import Tensor, nn

from stylekernels.ops import upsample_block
from stylekernels.ops.dispatch import choose
from stylekernels.ops.norm_conv2d import takes_kernel
from stylekernels.tensors import DTYPES


def doubles_size(conv: nn.ConvTranspose2d) -> bool:
    """Return whether a convolution doubles the size of an image as `upsample_block` does: a kernel
    of 3 or 4, stride 2, padding 1, and output padding 1 with a kernel of 3."""
    kernel = conv.kernel_size[0]
    return (
        conv.kernel_size == (kernel, kernel)
        and takes_kernel(kernel, "transpose")
        and (conv.stride, conv.padding, conv.dilation) == ((2, 2), (1, 1), (1, 1))
        and conv.output_padding == (kernel % 2, kernel % 2)
        and conv.groups == 1
    )


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, faster where it doubles the size of contiguous images on a CPU.

    Arguments, parameters and state_dict are those of torch's class. With stride 2, padding 1 and a
    kernel of 4, or of 3 with output padding 1, the forward pass is that of `upsample_block` where
    this is faster: ``stylekernels.explain("upsample_block", x, weight, norm="none",
    padding_mode="zeros")`` tells. All others, and the backward pass, are PyTorch's. Our kernel
    spreads NaN and infinities, as NaN, to at most 7 pixels more than PyTorch's.

    Shape:
        (N, Cin, H, W) or (Cin, H, W) to (N, Cout, H', W') or (Cout, H', W'), in the input's dtype.

    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve images.

        Args:
            input: see the class.
            output_size: height and width of the result, which choose the output padding, or its
                whole shape; None for the module's own output padding.

        Raises:
            RuntimeError: if the channels or the dtype do not fit the weights.
            ValueError: if no output padding gives ``output_size``.
        """
        if output_size is None and self._is_ours(input):
            return upsample_block(
                input,
                self.weight,
                bias=self.bias,
                norm="none",
                activation="none",
                padding_mode="zeros",
            )
        return super().forward(input, output_size)

    def _casts(self, x: Tensor) -> bool:
        """Return whether autocast gives the image and the weights one dtype: not in float64."""
        return torch.is_autocast_enabled(x.device.type) and torch.float64 not in (
            x.dtype,
            self.weight.dtype,
        )

    def _is_ours(self, x: Tensor) -> bool:
        """Return whether our kernel takes an image, and is faster. What does not fit is refused by
        PyTorch, in its words."""
        return (
            doubles_size(self)
            and x.dim() == 4
            and x.shape[1] == self.in_channels
            and x.numel() > 0
            and x.device == self.weight.device
            and x.dtype in DTYPES
            and (x.dtype == self.weight.dtype or self._casts(x))
            and choose("upsample_conv2d", x.device.type, x, self.weight, "transpose", "zeros")
            != "reference"
        )
