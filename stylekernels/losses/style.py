"""The style loss: distance between the Gram matrices of activations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stylekernels.losses.content import relative_to
from stylekernels.ops import gram_losses, gram_matrix


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
        self.weights = 1.0 / relative_to(squares)

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
