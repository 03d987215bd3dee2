"""Gram matrix and Gram loss in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylekernels.tensors import wide_dtype, without_autocast


def product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product in the dtype of its factors, under autocast too."""
    with without_autocast(a.device.type):
        return torch.bmm(a, b)


def gram_matrix(x: Tensor, scale: float | None, center: bool) -> Tensor:
    """G[n, i, j] = scale * sum_p x[n, i, p] x[n, j, p]; ``center`` removes the mean first."""
    features = x.flatten(2).to(wide_dtype(x))
    if center:
        features = features - features.mean(dim=2, keepdim=True)
    if scale is None:
        scale = 1.0 / (features.shape[1] * features.shape[2])
    return product(features * scale, features.mT)


def gram_loss(x: Tensor, target: Tensor, scale: float | None, center: bool) -> Tensor:
    """Mean squared error between the Gram matrix of ``x`` and ``target``."""
    gram = gram_matrix(x, scale, center)
    # F.mse_loss has no forward derivative of its gradient at the target.
    return (gram - target.to(gram.dtype)).square().mean()


def gram_losses(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    center: bool,
) -> Tensor:
    """`gram_loss` of each layer, (layers,)."""
    each = [None] * len(features) if scales is None else scales
    layers = zip(features, targets, each, strict=True)
    return torch.stack([gram_loss(*layer, center) for layer in layers])
