"""The smoothness loss: total variation."""

from torch import Tensor

from stylekernels.ops.arguments import check_not_empty
from stylekernels.tensors import wide_dtype


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, down and across.

    Args:
        x: images, (N, C, H, W), both sides at least 2 pixels.

    Returns:
        A scalar, float32 (float64 for float64 images).

    Raises:
        ValueError: if x has another rank, is smaller or is empty.

    Mahendran and Vedaldi, "Understanding deep image representations by inverting them", 2015,
    section 3.1, with the exponent 2.
    """
    if x.dim() != 4 or min(x.shape[2:]) < 2:
        raise ValueError(
            f"x: expected images (N, C, H, W) of at least 2 pixels a side, got {tuple(x.shape)}"
        )
    check_not_empty(x, "x")
    x = x.to(wide_dtype(x))
    down = (x[..., 1:, :] - x[..., :-1, :]).square().mean()
    across = (x[..., :, 1:] - x[..., :, :-1]).square().mean()
    return down + across
