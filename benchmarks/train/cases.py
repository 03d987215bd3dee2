"""The cases: network, number and size of crops, and dtype."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import suite
from benchmarks.dtypes import DTYPES, leaves_bfloat16_out
from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.models.features import VGG
from stylekernels.training import TrainConfig

#: Photos a step: the default of ``stylekernels train``, and more of them, which keep a GPU busy.
BATCHES = {"cpu": (1, 4), "cuda": (1, 4, 16)}
#: Weights of the losses as in the command. Its files are not opened.
CONFIG = TrainConfig(art=Path("painting"), photos=Path("photos"))
#: New networks, initialised as the command does it.
NETWORKS = {
    "full": GeneratorConfig(upsample=CONFIG.upsample),
    "lite": GeneratorConfig.lite(upsample=CONFIG.upsample),
}

_PAINTING_SIDES = 384, 512


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str  # a name in NETWORKS
    batch: int
    dtype: str  # dtype of the arithmetic; weights and losses are float32
    device: str = "cpu"
    crop: int = CONFIG.crop

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.network}/{self.batch}x{self.crop}/{self.dtype}"


def select(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options select."""
    dtypes = tuple(DTYPES)
    if options.device == "cuda":
        dtypes = (options.dtype or "bfloat16",)
    elif leaves_bfloat16_out(options):
        dtypes = ("float32",)
    cases = [
        Case(network, batch, dtype, options.device, options.crop)
        for network in NETWORKS
        for batch in BATCHES[options.device]
        for dtype in dtypes
    ]
    cases = [case for case in cases if suite.fits(options, case.id, case.dtype)]
    return cases[:1] if options.quick else cases


class Problem:
    """A case, and the data that its contenders share. All data is random, with a fixed seed.

    Args:
        case: the case.
        torch_device: torch device of all tensors.

    Attributes:
        dtype: dtype of the arithmetic.
        precision: precision of products: the dtype, or tf32 if PyTorch multiplies float32 in it.
        generator: the network, in training mode.
        features: the loss network, a VGG19.
        painting: (1, 3, H, W) in [0, 1].
        photo: (N, 3, crop, crop) in [0, 1].
    """

    def __init__(self, case: Case, torch_device: str = "cpu") -> None:
        random = torch.Generator().manual_seed(0)
        self.dtype = DTYPES[case.dtype]
        in_tf32 = case.device == "cuda" and torch.backends.cudnn.allow_tf32
        self.precision = "tf32" if in_tf32 and case.dtype == "float32" else case.dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.generator = StyleGenerator(NETWORKS[case.network]).to(torch_device).train()
        self.features = _vgg19(random).to(torch_device)
        self.painting = torch.rand(1, 3, *_PAINTING_SIDES, generator=random).to(torch_device)
        self.photo = torch.rand(case.batch, 3, case.crop, case.crop, generator=random).to(
            torch_device
        )


def _vgg19(random: torch.Generator) -> VGG:
    """Return a VGG19 whose random weights keep the scale of activations."""
    weights: dict[str, Tensor] = {}
    channels, index = 3, 0
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            kernel = torch.randn(width, channels, 3, 3, generator=random)
            weights[f"features.{index}.weight"] = kernel * math.sqrt(2 / (9 * channels))
            weights[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        index += 1  # skip the pooling layer
    return VGG("vgg19", weights)
