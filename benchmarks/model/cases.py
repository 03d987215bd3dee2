"""The cases: which network, on what size of picture, in which dtype."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.dtypes import DTYPES
from benchmarks.model.engines import export
from benchmarks.model.plain_network import PlainNetwork, plain_copy
from stylekernels.models import GeneratorConfig, StyleGenerator

Size = tuple[int, int]  # width, height

SIZES: tuple[Size, ...] = ((256, 256), (512, 512), (640, 480), (1280, 720), (1920, 1080))
#: Networks with random weights, which say nothing about time; any other name is a bundled style.
CONFIGS = {"full": GeneratorConfig(), "lite": GeneratorConfig.lite()}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str  # of CONFIGS, or a bundled style
    size: Size
    dtype: str

    @property
    def id(self) -> str:
        """Unique, and what ``--only`` searches."""
        return f"{self.network}/{self.size[0]}x{self.size[1]}/{self.dtype}"


def grid(networks: Sequence[str] = tuple(CONFIGS), sizes: Sequence[Size] = SIZES) -> Iterator[Case]:
    """All cases, network by network."""
    for network in networks:
        for size in sizes:
            for dtype in DTYPES:
                yield Case(network, size, dtype)


def open_network(name: str) -> StyleGenerator:
    """The generator of a case: a bundled style, or random weights, the same ones every time."""
    if name not in CONFIGS:
        return StyleGenerator.from_pretrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleGenerator(CONFIGS[name]).eval()


class Problem:
    """A case with what its contenders share.

    Args:
        case: which network and size.
        folder: for the network's ONNX file.

    Attributes:
        dtype: of the arithmetic.
        generator: the network, in float32.
        frame: (H, W, 3) uint8, what ours is given.
        x: the frame as (1, 3, H, W) float32 in [0, 1], contiguous.
        plain: the network in torch.nn, float32.
        onnx_file: plain, exported for pictures of x's size.
        truth: what plain makes of x. It is in float32: in float64, PyTorch's convolution would
            take 40 GB for a picture of 1920 x 1080.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.dtype = DTYPES[case.dtype]
        self.generator = open_network(case.network)
        width, height = case.size
        self.frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self._folder = folder

    @cached_property
    def x(self) -> Tensor:
        pixels = torch.from_numpy(self.frame).permute(2, 0, 1)[None]
        return pixels.float().div_(255).contiguous()

    @cached_property
    def plain(self) -> PlainNetwork:
        return plain_copy(self.generator)

    @cached_property
    def onnx_file(self) -> Path:
        path = self._folder / "network.onnx"
        export(self.plain, self.x, path)
        return path

    @cached_property
    def truth(self) -> Tensor:
        with torch.inference_mode():
            return self.plain(self.x)
