"""The colour loss: distance between the mean colours of cells."""

from torch import Tensor
from torch.nn import functional as F

from stylekernels.ops.arguments import check_not_empty
from stylekernels.tensors import wide_dtype


def color_loss(x: Tensor, target: Tensor, cell: int = 16) -> Tensor:
    """Mean squared difference of the mean colours of square cells.

    It holds a picture to the target's light and dark. Details smaller than a cell are free.

    Args:
        x, target: images, (N, C, H, W) each; cells at the right and lower edge may be cut off.
        cell: side of a cell, in pixels.

    Returns:
        A scalar, float32 (float64 for float64 images).

    Raises:
        ValueError: if the shapes differ, are no images' or are empty.

    Ignatov et al., "DSLR-quality photos on mobile devices with deep convolutional networks", 2017,
    section 3.1 (there with a Gaussian blur in place of cells).
    """
    if x.dim() != 4:
        raise ValueError(f"x: expected images (N, C, H, W), got {tuple(x.shape)}")
    if x.shape != target.shape:
        raise ValueError(
            f"target: expected the shape of x {tuple(x.shape)}, got {tuple(target.shape)}"
        )
    check_not_empty(x, "x")
    wide = wide_dtype(x)
    difference = x.to(wide) - target.to(wide)
    return F.avg_pool2d(difference, cell, ceil_mode=True).square().mean()
