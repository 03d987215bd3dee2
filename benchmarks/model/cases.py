"""The cases: which network, on what size of picture, in which dtype."""

import contextlib
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
CUDA_SIZES: tuple[Size, ...] = ((512, 512), (1920, 1080), (3840, 2160))
#: Networks with random weights, which say nothing about time; any other name is a bundled style.
CONFIGS = {"full": GeneratorConfig(), "lite": GeneratorConfig.lite()}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str  # of CONFIGS, or a bundled style
    size: Size
    dtype: str
    device: str = "cpu"

    @property
    def id(self) -> str:
        """Unique, and what ``--only`` searches."""
        return f"{self.network}/{self.size[0]}x{self.size[1]}/{self.dtype}"


#: Speed over torch.compile that is aimed at, beside never being slower than a rival.
MIN_OVER_COMPILE = {Case("full", (1920, 1080), "bfloat16", "cuda"): 2.0}


def grid(
    networks: Sequence[str] = tuple(CONFIGS),
    sizes: Sequence[Size] = SIZES,
    dtypes: Sequence[str] = tuple(DTYPES),
    device: str = "cpu",
) -> Iterator[Case]:
    """All cases, network by network."""
    for network in networks:
        for size in sizes:
            for dtype in dtypes:
                yield Case(network, size, dtype, device)


def open_network(name: str) -> StyleGenerator:
    """The generator of a case: a bundled style, or random weights, the same ones every time."""
    if name not in CONFIGS:
        return StyleGenerator.from_pretrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleGenerator(CONFIGS[name]).eval()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """cuDNN and cuBLAS without TF32; and without cuDNN's search, which a single call doesn't pay
    for."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


class Problem:
    """A case with what its contenders share.

    Args:
        case: which network and size.
        folder: for the network's ONNX file.
        place: the torch device that the network and the picture are on.

    Attributes:
        place: as given.
        dtype: of the arithmetic.
        precision: of its products: the dtype, or tf32 where PyTorch multiplies float32 so.
        generator: the network, in float32.
        frame: (H, W, 3) uint8, what ours is given: a NumPy array, or a tensor on a GPU.
        x: the frame as (1, 3, H, W) float32 in [0, 1], contiguous.
        plain: the network in torch.nn, float32.
        onnx_file: plain, exported for pictures of x's size.
        truth: (1, 3, H, W), what plain makes of x. It is in float32, never TF32: in float64,
            PyTorch's convolution would take 40 GB for a picture of 1920 x 1080.
    """

    def __init__(self, case: Case, folder: Path, place: str = "cpu") -> None:
        self.place = place
        self.dtype = DTYPES[case.dtype]
        in_tf32 = case.device == "cuda" and torch.backends.cudnn.allow_tf32
        self.precision = "tf32" if in_tf32 and case.dtype == "float32" else case.dtype
        self.generator = open_network(case.network).to(place)
        width, height = case.size
        frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self.frame = frame if place == "cpu" else torch.from_numpy(frame).to(place)
        self._folder = folder

    @cached_property
    def x(self) -> Tensor:
        pixels = torch.as_tensor(self.frame).permute(2, 0, 1)[None]
        return pixels.float().div_(255).contiguous()

    @cached_property
    def plain(self) -> PlainNetwork:
        return plain_copy(self.generator).to(self.place)

    @cached_property
    def onnx_file(self) -> Path:
        path = self._folder / "network.onnx"
        export(self.plain, self.x, path)
        return path

    @cached_property
    def truth(self) -> Tensor:
        with torch.inference_mode(), exact_float32():
            return self.plain(self.x)
