"""The cases: networks in the sizes of their papers, forward and as a training step. Volumes, and
the picture of the VAE decoder, are smaller than there: two cores take minutes for those."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.networks import models, packages


@dataclass(frozen=True)
class Network:
    """A network with random weights.

    Attributes:
        make: a function that builds it.
        size: (C, H, W) or (C, D, H, W) of its input.
        package: the name to import and the name to install of what builds it; None if it is
            torch.nn alone.
    """

    make: Callable[[], nn.Module]
    size: tuple[int, ...]
    package: tuple[str, str] | None = None

    @property
    def missing(self) -> str | None:
        """The name to install, if the package is not there."""
        if self.package is None or importlib.util.find_spec(self.package[0]):
            return None
        return self.package[1]


NETWORKS = {
    "cyclegan": Network(models.cyclegan_resnet, (3, 256, 256)),
    "transformer": Network(models.Transformer, (3, 512, 512)),
    "adain": Network(models.adain_decoder, (512, 64, 64)),
    "animegan": Network(models.AnimeGan, (3, 512, 512)),
    "pix2pix": Network(models.pix2pix_unet, (3, 256, 256)),
    "pix2pix-batch": Network(lambda: models.pix2pix_unet(norm=nn.BatchNorm2d), (3, 256, 256)),
    "patchgan": Network(models.patchgan, (3, 256, 256)),
    "dynunet": Network(packages.dynunet, (1, 48, 48, 48), ("monai", "monai")),
    "plainconvunet": Network(
        packages.plain_conv_unet,
        (1, 48, 48, 48),
        ("dynamic_network_architectures", "dynamic-network-architectures"),
    ),
    "vae-decoder": Network(packages.vae_decoder, (4, 16, 16), ("diffusers", "diffusers")),
}

#: A call under torch.inference_mode; a call and the gradients of all parameters.
WORKS = ("forward", "step")


@dataclass(frozen=True)
class Case:
    """One row of the table: a name in `NETWORKS`, one of `WORKS`, and a dtype."""

    network: str
    work: str
    dtype: str

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.network}/{self.work}/{self.dtype}"
