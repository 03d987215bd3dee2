"""Random changes of the pictures that a discriminator sees, differentiable for the generator."""

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.tensors import wide_dtype

_GREY = 0.5


def augment(
    x: Tensor,
    *,
    color: float,
    translation: float,
    cutout: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change the colours of pictures, shift them, and cover a square of each with grey.

    A discriminator that sees real and made pictures only through this can't learn few pictures by
    heart, and the generator doesn't learn to draw the changes. Every picture has random numbers of
    its own.

    Args:
        x: (N, 3, H, W), RGB in [0, 1].
        color: 0 changes no colours. With 1, brightness changes by up to 0.25, saturation by a
            factor from 0 to 2 and contrast by one from 0.5 to 1.5, as in the paper.
        translation: largest shift in each direction, as a share of the side; 0.125 in the paper.
            Grey comes in at the border.
        cutout: side of the grey square, as a share of the picture's; 0.5 in the paper. The square
            may reach over the border.
        generator: of random numbers, on x's device; PyTorch's global one by default.

    Returns:
        The shape of x, in float32 (float64 for float64); differentiable, twice too.

    Raises:
        ValueError: if x is no batch of RGB pictures, or a strength is not in [0, 1].

    Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"x: expected RGB pictures (N, 3, H, W), got {tuple(x.shape)}")
    for name, value in (("color", color), ("translation", translation), ("cutout", cutout)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    x = x.to(wide_dtype(x))
    # All numbers are drawn, whatever is used, so that a strength of 0 leaves the others' alone.
    random = torch.rand(7, len(x), 1, 1, 1, dtype=x.dtype, device=x.device, generator=generator)
    signed = 2 * random - 1
    if color:
        x = _recolored(x, color, *signed[:3])
    if translation:
        x = _shifted(x, translation, *signed[3:5, :, 0, 0])
    if cutout:
        x = _covered(x, cutout, *random[5:, :, 0, 0])
    return x


def _recolored(
    x: Tensor, color: float, brightness: Tensor, saturation: Tensor, contrast: Tensor
) -> Tensor:
    x = x + 0.25 * color * brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + color * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + 0.5 * color * contrast)


def _shifted(x: Tensor, translation: float, down: Tensor, right: Tensor) -> Tensor:
    """Shift each picture by whole pixels. Numbers in [-1, 1] give directions: (N, 1) each."""
    height, width = x.shape[2:]
    # A border of one pixel stands for all that comes in.
    x = F.pad(x, [1] * 4, value=_GREY).permute(0, 2, 3, 1)
    rows, columns = (
        (torch.arange(1, side + 1, device=x.device) - (translation * side * by).round().long())
        .clamp(0, side + 1)
        for side, by in ((height, down), (width, right))
    )  # fmt: skip
    picture = torch.arange(len(x), device=x.device)[:, None, None]
    return x[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _covered(x: Tensor, cutout: float, row: Tensor, column: Tensor) -> Tensor:
    """Cover a square whose centre is anywhere. Numbers in [0, 1): (N, 1) each."""
    near = []
    for side, at in ((x.shape[2], row), (x.shape[3], column)):
        pixel = torch.arange(side, device=x.device) + 0.5
        near.append((pixel - at * side).abs() < cutout * side / 2)
    covered = (near[0][:, None, :, None] & near[1][:, None, None, :]).to(x.dtype)
    return x * (1 - covered) + _GREY * covered
