"""The discriminator of style training: whether patches look like the painting."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

SMALLEST_SIDE = 48


class PatchDiscriminator(nn.Module):
    """Judges square patches of 22 pixels, at several scales, each by a network of its own.

    Every network has two 4x4 convolutions of stride 2, one of stride 1, and a 1x1 convolution to
    the logits, with spectral norm and leaky ReLU between them. It has no instance norm: a norm
    would hide the contrast and the colours that tell a painting from its imitation. At the second
    scale the image is half as large, so that a patch covers 44 pixels.

    Args:
        width: channels after the first convolution; twice and four times as many follow.
        scales: number of networks.

    Raises:
        ValueError: if an argument is not positive.

    Isola et al., "Image-to-image translation with conditional adversarial networks", 2017; Miyato
    et al., "Spectral normalization for generative adversarial networks", 2018; Wang et al.,
    "High-resolution image synthesis and semantic manipulation with conditional GANs", 2018.
    """

    def __init__(self, width: int = 32, scales: int = 2) -> None:
        super().__init__()
        for name, value in (("width", width), ("scales", scales)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.scales = nn.ModuleList(_network(width) for _ in range(scales))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of each scale, high where a patch looks real.

        Args:
            x: images, (N, 3, H, W), RGB in about [0, 1], at least 48 pixels a side.

        Returns:
            One tensor (N, 1, h, w) per scale, the finest first.

        Raises:
            ValueError: if x has another shape or is smaller.
        """
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"x: expected RGB images (N, 3, H, W) of at least {SMALLEST_SIDE} pixels a side, "
                f"got {tuple(x.shape)}"
            )
        x = 2 * x - 1
        logits = []
        for i, network in enumerate(self.scales):
            if i:
                x = F.avg_pool2d(x, 2)
            logits.append(network(x))
        return logits


def _network(width: int) -> nn.Sequential:
    def convolution(cin: int, cout: int, kernel_size: int, stride: int = 1) -> nn.Module:
        return spectral_norm(nn.Conv2d(cin, cout, kernel_size, stride, padding=kernel_size // 3))

    return nn.Sequential(
        convolution(3, width, 4, 2),
        nn.LeakyReLU(0.2),
        convolution(width, 2 * width, 4, 2),
        nn.LeakyReLU(0.2),
        convolution(2 * width, 4 * width, 4),
        nn.LeakyReLU(0.2),
        convolution(4 * width, 1, 1),
    )
