"""The style loss: distance between the Gram matrices of activations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stylekernels.losses.content import relative_to
from stylekernels.ops import gram_losses, gram_matrix


class StyleTargets:
    """Gram matrices of paintings, layer by layer, and the style loss towards them.

    Activations are centred first: the Gram matrix is then their covariance. Without that, the mean
    activations dominate it, and their loss draws large flat areas of mean colour.

    Args:
        features: activations of each painting by layer name, (1, C, H, W) each, at least one layer
            and one painting; of one dtype and on one device. Several paintings' matrices are
            averaged.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    section 2.2; Novak and Nikulin, "Improving the neural algorithm of artistic style", 2016,
    section 3.4, for the shift of the activations. Each layer's loss is divided by the mean square
    of its target, so that 1 is what a picture with an empty matrix would get, whatever the layer's
    width and scale. The loss of a layer whose target is all zeros is not divided.
    """

    def __init__(self, features: Sequence[Mapping[str, Tensor]]) -> None:
        grams = [
            {name: gram_matrix(x.detach(), center=True) for name, x in found.items()}
            for found in features
        ]
        self.grams = {name: sum(each[name] for each in grams) / len(grams) for name in grams[0]}
        squares = torch.stack([g.square().mean() for g in self.grams.values()])
        self.weights = 1.0 / relative_to(squares)

    def losses(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Relative style loss of each layer.

        Args:
            features: activations of the pictures, (N, C, h, w) each; any size, but the layers
                and widths of the paintings.

        Returns:
            A scalar per layer, float32 (float64 for float64 features), averaged over N. They come
            from one node of the graph: to differentiate them one by one, retain it.

        Raises:
            ValueError: if a layer is missing or has another width.
        """
        missing = self.grams.keys() - features.keys()
        if missing:
            raise ValueError(f"features: expected the layers {sorted(missing)} as well")
        layers = [features[name] for name in self.grams]
        losses = gram_losses(layers, [*self.grams.values()], center=True)
        return dict(zip(self.grams, (losses * self.weights).unbind(), strict=True))
