"""The losses of one step by name, and their means over many."""

import torch
from torch import Tensor

from stylekernels.losses import StyleTargets, color_loss, content_loss, total_variation
from stylekernels.models.features import FeatureNetwork
from stylekernels.training.config import TrainConfig

# One of 255 levels: for a painting of one colour, which the colour loss can't be relative to.
_SMALLEST_VARIANCE = 1 / 255**2


class PerceptualLoss:
    """Content, style, total variation and colour of a stylised batch.

    Args:
        features: the frozen loss network.
        style: the painting, (1, 3, H, W) in [0, 1].
        config: gives the weights.
    """

    def __init__(self, features: FeatureNetwork, style: Tensor, config: TrainConfig) -> None:
        self.features = features
        self.weights = (
            config.content_weight,
            config.style_weight,
            config.tv_weight,
            config.color_weight,
        )
        variance = style.float().flatten(2).var(2, correction=0).mean()
        self.variance = variance.clamp_min(_SMALLEST_VARIANCE)
        with torch.no_grad():
            self.targets = StyleTargets(features(style, features.style_layers))

    def __call__(self, target: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """All losses by name, scalars; ``total`` is the one to minimise.

        Args:
            target: what content and colours should be, the photo or the photo in the painting's
                colours; (N, 3, H, W) in [0, 1].
            picture: the same shape.
        """
        with torch.no_grad():
            wanted = self.features(target, self.features.content_layers)
        found = self.features(picture)
        styles = self.targets.losses(found)
        contents = {name: content_loss(found[name], wanted[name]) for name in wanted}
        content = torch.stack([*contents.values()]).mean()
        style = torch.stack([*styles.values()]).mean()
        tv = total_variation(picture.float())
        color = color_loss(picture, target) / self.variance
        parts = zip(self.weights, (content, style, tv, color), strict=True)
        return {
            "total": sum(weight * part for weight, part in parts),
            "content": content,
            "style": style,
            "tv": tv,
            "color": color,
            **{f"content/{name}": value for name, value in contents.items()},
            **{f"style/{name}": value for name, value in styles.items()},
        }


class Means:
    """Running means of named losses; tensors are added up without waiting for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means so far, and start again."""
        means = {name: (total / self.count).item() for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means
