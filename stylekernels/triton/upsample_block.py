"""The image that the convolution of an upsampling block meets."""

from torch import Tensor

from stylekernels.reference.upsample_block import empty_upsampled_image
from stylekernels.triton.norm_conv2d import prepare


def upsampled_image(x: Tensor, border: int, padding_mode: str) -> Tensor:
    """The op of this name."""
    image = empty_upsampled_image(x, border)
    prepare(x, image, border, 2, padding_mode)
    return image
