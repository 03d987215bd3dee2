"""The losses of one step by name, and their means over many."""

import torch
from torch import Tensor

from stylekernels.losses import StyleTargets, content_loss, total_variation
from stylekernels.models.features import FeatureNetwork
from stylekernels.training.config import TrainConfig


class PerceptualLoss:
    """Content, style and total variation of a stylised batch.

    Args:
        features: the frozen loss network.
        style: the painting, (1, 3, H, W) in [0, 1].
        config: gives the weights.
    """

    def __init__(self, features: FeatureNetwork, style: Tensor, config: TrainConfig) -> None:
        self.features = features
        self.weights = (config.content_weight, config.style_weight, config.tv_weight)
        with torch.no_grad():
            self.targets = StyleTargets(features(style, features.style_layers))

    def __call__(self, photo: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """All losses by name, scalars; ``total`` is the one to minimise.

        Args:
            photo, picture: (N, 3, H, W) each, in [0, 1].
        """
        with torch.no_grad():
            wanted = self.features(photo, self.features.content_layers)
        found = self.features(picture)
        styles = self.targets.losses(found)
        contents = {name: content_loss(found[name], wanted[name]) for name in wanted}
        content = torch.stack([*contents.values()]).mean()
        style = torch.stack([*styles.values()]).mean()
        tv = total_variation(picture.float())
        parts = zip(self.weights, (content, style, tv), strict=True)
        return {
            "total": sum(weight * part for weight, part in parts),
            "content": content,
            "style": style,
            "tv": tv,
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
