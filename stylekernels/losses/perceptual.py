"""The perceptual loss: the weighted sum of content, style, smoothness and colour."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stylekernels.losses.color import color_loss
from stylekernels.losses.content import content_loss
from stylekernels.losses.smoothness import total_variation
from stylekernels.losses.style import StyleTargets
from stylekernels.models.features import FeatureNetwork

# The square of one of 255 levels. It replaces the variance of a painting of one colour.
_SMALLEST_VARIANCE = 1 / 255**2


class PerceptualLoss:
    """Content, style, total variation and colour of a stylised batch.

    Args:
        features: the frozen loss network.
        paintings: those of the style, (1, 3, H, W) each, in [0, 1].
        content_weight, style_weight, tv_weight, color_weight: factors of the losses in ``total``.
    """

    def __init__(
        self,
        features: FeatureNetwork,
        paintings: Sequence[Tensor],
        *,
        content_weight: float,
        style_weight: float,
        tv_weight: float,
        color_weight: float,
    ) -> None:
        self.features = features
        self.weights = (content_weight, style_weight, tv_weight, color_weight)
        colors = torch.cat([painting.float().flatten(2) for painting in paintings], 2)
        self.variance = colors.var(2, correction=0).mean().clamp_min(_SMALLEST_VARIANCE)
        with torch.no_grad():
            found = [features(painting, features.style_layers) for painting in paintings]
            self.targets = StyleTargets(found)

    def __call__(self, target: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """Return all losses by name, scalars; ``total`` is the one to minimise.

        Args:
            target: image whose content and colours are wanted, the photo or the photo in the
                painting's colours; (N, 3, H, W) in [0, 1].
            picture: the stylised image, the same shape.
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
