"""The objective of a style: losses of a picture, given the photo and the paintings."""

from torch import Tensor

from stylekernels.losses import PerceptualLoss
from stylekernels.models.features import FeatureNetwork, load_features
from stylekernels.training.art import Art
from stylekernels.training.color_transfer import ColorTransfer
from stylekernels.training.config import TrainConfig
from stylekernels.training.errors import SettingError


class Objective:
    """Content, style, total variation and colour of pictures in a style.

    Args:
        art: the paintings.
        features: the frozen loss network, on the paintings' device.
        config: the weights of the losses, and ``art_colors``.
    """

    def __init__(self, art: Art, features: FeatureNetwork, config: TrainConfig) -> None:
        self.art = art
        paintings = [painting[None] for painting in art.paintings]
        self.loss = PerceptualLoss(features, paintings, **config.loss_weights())
        self.transfer = ColorTransfer(art.colors(), config.art_colors)

    def target(self, photo: Tensor) -> Tensor:
        """The image that gives content and colours, of the photo's shape and layout."""
        return self.transfer(photo) if self.transfer.strength else photo

    def __call__(self, photo: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """Return the losses of pictures of photos, (N, 3, H, W) each; scalars by name."""
        return self.loss(self.target(photo), picture)

    @property
    def variance(self) -> Tensor:
        """Variance of the paintings' colours, a scalar."""
        return self.loss.variance


def load_loss_network(config: TrainConfig) -> FeatureNetwork:
    """Open the loss network of a run.

    Raises:
        SettingError: if it cannot be read or downloaded.
    """
    try:
        return load_features(config.features, config.backbones)
    except (ValueError, OSError) as error:
        name = "features" if config.backbones is None else "backbones"
        raise SettingError(f"{name}: {str(error).removeprefix('path: ')}") from error
