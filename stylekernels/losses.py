"""Perceptual losses: content, style, colour and total variation."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.ops import gram_losses, gram_matrix
from stylekernels.tensors import wide_dtype


def _relative_to(mean_square: Tensor) -> Tensor:
    """The divisor of a relative loss: 1 where the target is zero and nothing is relative to it."""
    empty = mean_square < torch.finfo(mean_square.dtype).tiny
    return torch.where(empty, torch.ones_like(mean_square), mean_square)


def _check_not_empty(x: Tensor, name: str) -> None:
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one value, got shape {tuple(x.shape)}")


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one layer's activations, relative to the target's mean square.

    Being relative, it weighs shallow and deep layers alike: 0 for equal features, about 1 for
    features that have nothing of the target. Where the target is all zeros it is the mean squared
    error itself.

    Args:
        features, target: activations of the picture and of the photo, (N, C, H, W) each.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: if the shapes differ or are empty.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016, equation 2 (there without the relative scale).
    """
    if features.shape != target.shape:
        raise ValueError(
            f"target: expected the features' shape {tuple(features.shape)}, "
            f"got {tuple(target.shape)}"
        )
    _check_not_empty(features, "features")
    wide = wide_dtype(features)
    features, target = features.to(wide), target.to(wide)
    return (features - target).square().mean() / _relative_to(target.square().mean())


class StyleTargets:
    """Gram matrices of a style image, layer by layer, and the style loss towards them.

    Args:
        features: activations of the style image by layer name, (1, C, H, W) each, at least one;
            of one dtype and on one device.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    section 2.2; each layer's loss is divided by the mean square of its target, so that 1 is
    what a picture with an empty Gram matrix would get, whatever the layer's width and scale. The
    loss of a layer whose target is all zeros is not divided.
    """

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self.grams = {name: gram_matrix(x.detach()) for name, x in features.items()}
        squares = torch.stack([g.square().mean() for g in self.grams.values()])
        self.weights = 1.0 / _relative_to(squares)

    def losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Relative style loss of each layer.

        Args:
            features: activations of the pictures, (N, C, h, w) each; any size, but the layers
                and widths of the style image.

        Returns:
            A scalar per layer, float32 (float64 for float64 features), averaged over N. They come
            from one node of the graph: to differentiate them one by one, retain it.

        Raises:
            ValueError: if a layer is missing or has another width.
        """
        missing = self.grams.keys() - features.keys()
        if missing:
            raise ValueError(f"features: expected the layers {sorted(missing)} as well")
        losses = gram_losses([features[name] for name in self.grams], [*self.grams.values()])
        return dict(zip(self.grams, (losses * self.weights).unbind(), strict=True))


def color_loss(x: Tensor, target: Tensor, cell: int = 16) -> Tensor:
    """Mean squared difference of the mean colours of square cells.

    It holds a picture to the target's light and dark, and leaves what is smaller than a cell free.

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
    _check_not_empty(x, "x")
    wide = wide_dtype(x)
    difference = x.to(wide) - target.to(wide)
    return F.avg_pool2d(difference, cell, ceil_mode=True).square().mean()


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
    _check_not_empty(x, "x")
    x = x.to(wide_dtype(x))
    down = (x[..., 1:, :] - x[..., :-1, :]).square().mean()
    across = (x[..., :, 1:] - x[..., :, :-1]).square().mean()
    return down + across
