"""Settings of the training of an image generator."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stylekernels.training.config import RunConfig, require


@dataclass(kw_only=True)
class DcganConfig(RunConfig):
    """Settings of the training of a DCGAN; ``stylekernels train-dcgan`` takes each as an option."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of photos to learn from, searched in subfolders too; at least two. Each is scaled and
    cropped to 64 x 64. Those that cannot be read are skipped."""

    output: Path = Path("generator.safetensors")
    """The file that the trained generator is written to."""

    steps: int = 2000
    """Optimiser steps of each network."""

    batch_size: int = 64
    """Photos per pass of the networks."""

    learning_rate: float = 2e-4
    """Adam's for the generator, the same in all steps but the first 20."""

    discriminator_rate: float = 4e-4
    """Adam's for the discriminator, likewise."""

    ema: float = 0.995
    """Decay per step of the average of the generator's weights, which is what is saved; 0 saves
    the weights themselves. At first the average is shorter."""

    workers: Annotated[int, tyro.conf.Suppress] = 0
    """Not used: all photos are decoded before the first step."""

    gan_loss: Literal["hinge", "lsgan", "log"] = "log"
    """The losses of discriminator and generator: hinge, least squares or cross-entropy, which is
    the generator's non-saturating one."""

    conditional: bool = False
    """Learn to draw by label: the names of the folders in the folder of photos."""

    categories: int = 0
    """InfoGAN: values of a code whose meaning training finds, such as 10; 0 for none."""

    continuous: int = 0
    """InfoGAN: number of codes from -1 to 1 whose meaning training finds."""

    info_weight: float = 1.0
    """InfoGAN: weight of the loss of recognising the codes in a picture."""

    augment: float = 0.5
    """Strength of random changes of all pictures that the discriminator sees, in colour and by a
    covered square, from 0 (none) to 1. With few photos it would learn them by heart."""

    r1: float = 0.0
    """Weight of the discriminator's squared gradient at real pictures, every 4th step; 0 for
    none. If the discriminator's accuracy goes to 1, try 0.1."""

    noise: int = 100
    """Random inputs of the generator."""

    def check(self) -> None:
        """Refuse what cannot be trained, and paths that cannot be read or written.

        Raises:
            SettingError: naming the field, what was expected and what came.
        """
        rate = self.discriminator_rate
        require(0 < rate <= 1e38, "discriminator_rate", "above 0 and at most 1e38", rate)
        losses = ("hinge", "lsgan", "log")
        require(self.gan_loss in losses, "gan_loss", f"one of {', '.join(losses)}", self.gan_loss)
        require(self.noise >= 1, "noise", "at least 1", self.noise)
        categories = self.categories
        require(categories == 0 or categories >= 2, "categories", "0 or at least 2", categories)
        require(self.continuous >= 0, "continuous", "0 or more", self.continuous)
        for name in ("info_weight", "r1"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, "0 or more", value)
        require(0 <= self.augment <= 1, "augment", "from 0 to 1", self.augment)
        super().check()
