"""The perceptual loss as users write it in PyTorch, for the rivals."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.models.features import FeatureNetwork


class PlainLoss(nn.Module):
    """Content, style, colour and total variation losses, summed as in
    :class:`~stylekernels.losses.PerceptualLoss`.

    Args:
        features: the frozen loss network, also in plain PyTorch.
        painting: (1, 3, H, W) in [0, 1].
        weights: those of ``PerceptualLoss``, by its names.
    """

    def __init__(self, features: FeatureNetwork, painting: Tensor, **weights: float) -> None:
        super().__init__()
        self.features, self.weights = features, weights
        self.variance = painting.flatten(2).var(2, correction=0).mean()
        with torch.no_grad():
            found = features(painting, features.style_layers)
            self.grams = {name: gram_matrix(x).float() for name, x in found.items()}

    def forward(self, target: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch, (N, 3, H, W) each; ``total`` is the sum of all."""
        with torch.no_grad():
            wanted = self.features(target, self.features.content_layers)
        found = self.features(picture)
        picture = picture.float()
        style = [self._style(name, found[name]) for name in self.grams]
        content = [_relative(found[name].float(), x.float()) for name, x in wanted.items()]
        cells = F.avg_pool2d(picture - target, 16, ceil_mode=True)
        down = F.mse_loss(picture[:, :, 1:], picture[:, :, :-1])
        across = F.mse_loss(picture[..., 1:], picture[..., :-1])
        weights = self.weights
        total = (
            weights["content_weight"] * torch.stack(content).mean()
            + weights["style_weight"] * torch.stack(style).mean()
            + weights["tv_weight"] * (down + across)
            + weights["color_weight"] * cells.square().mean() / self.variance
        )
        return {"total": total}

    def _style(self, name: str, features: Tensor) -> Tensor:
        target = self.grams[name]
        found = gram_matrix(features).float()
        return _relative(found, target.expand_as(found))


def gram_matrix(x: Tensor) -> Tensor:
    """Gram matrices of centred features, (N, C, H, W) to (N, C, C)."""
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def _relative(found: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(found, target) / target.square().mean()
