"""The content loss: distance between the activations of two images."""

import torch
from torch import Tensor

from stylekernels.ops.arguments import check_not_empty
from stylekernels.tensors import wide_dtype


def relative_to(mean_square: Tensor) -> Tensor:
    """The divisor of a loss relative to the mean square of its target: 1 for a target of zeros."""
    empty = mean_square < torch.finfo(mean_square.dtype).tiny
    return torch.where(empty, torch.ones_like(mean_square), mean_square)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one layer's activations, relative to each target's mean square.

    Being relative, it weighs shallow and deep layers alike: 0 for equal features, about 1 for
    features that have nothing of the target. Where the target is all zeros it is the mean squared
    error itself.

    Args:
        features, target: activations of the picture and of the photo, (N, C, H, W) each.

    Returns:
        A scalar, float32 (float64 for float64 features): the mean over N.

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
    check_not_empty(features, "features")
    wide = wide_dtype(features)
    features, target = features.to(wide), target.to(wide)
    # The gradient of PyTorch's mean fills a contiguous tensor, whatever the layout of the features,
    # and flattening channels_last ones copies them. That of a sum is an expanded number.
    size = features[0].numel()
    dims = tuple(range(1, features.dim()))
    error, energy = (x.square().sum(dims) / size for x in (features - target, target))
    return (error / relative_to(energy)).mean()
