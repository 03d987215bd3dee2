"""The cases: network, size of the picture, and dtype."""

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
#: Networks with random weights, which do not influence time. Other names are bundled styles.
CONFIGS = {"full": GeneratorConfig(), "lite": GeneratorConfig.lite()}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str  # a name in CONFIGS, or a bundled style
    size: Size
    dtype: str
    device: str = "cpu"

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.network}/{self.size[0]}x{self.size[1]}/{self.dtype}"


#: The target for speed over torch.compile. No rival may be faster, besides.
MIN_OVER_COMPILE = {Case("full", (1920, 1080), "bfloat16", "cuda"): 2.0}


def grid(
    networks: Sequence[str] = tuple(CONFIGS),
    sizes: Sequence[Size] = SIZES,
    dtypes: Sequence[str] = tuple(DTYPES),
    device: str = "cpu",
) -> Iterator[Case]:
    """Yield all cases, network by network."""
    for network in networks:
        for size in sizes:
            for dtype in dtypes:
                yield Case(network, size, dtype, device)


def open_network(name: str) -> StyleGenerator:
    """Return the generator of a case: a bundled style, or one with fixed random weights."""
    if name not in CONFIGS:
        return StyleGenerator.from_pretrained(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StyleGenerator(CONFIGS[name]).eval()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 in cuDNN and cuBLAS, and cuDNN's search, which is not worth it for one call."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


class Problem:
    """A case, and the data that its contenders share.

    Args:
        case: the case.
        folder: folder for the network's ONNX file.
        torch_device: torch device of the network and the picture.

    Attributes:
        torch_device: torch device of the network and the picture.
        dtype: dtype of the arithmetic.
        precision: precision of products: the dtype, or tf32 if PyTorch multiplies float32 in it.
        generator: the network, in float32.
        frame: (H, W, 3) uint8, the input of ours: a NumPy array, or a tensor on a GPU.
        x: the frame as (1, 3, H, W) float32 in [0, 1], contiguous.
        plain: the network in torch.nn, float32.
        onnx_file: plain, exported for pictures of x's size.
        truth: (1, 3, H, W), plain's output for x. It is computed in float32, never TF32: in float64
            PyTorch's convolution would take 40 GB for a picture of 1920 x 1080.
    """

    def __init__(self, case: Case, folder: Path, torch_device: str = "cpu") -> None:
        self.torch_device = torch_device
        self.dtype = DTYPES[case.dtype]
        in_tf32 = case.device == "cuda" and torch.backends.cudnn.allow_tf32
        self.precision = "tf32" if in_tf32 and case.dtype == "float32" else case.dtype
        self.generator = open_network(case.network).to(torch_device)
        width, height = case.size
        frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self.frame = frame if torch_device == "cpu" else torch.from_numpy(frame).to(torch_device)
        self._folder = folder

    @cached_property
    def x(self) -> Tensor:
        pixels = torch.as_tensor(self.frame).permute(2, 0, 1)[None]
        return pixels.float().div_(255).contiguous()

    @cached_property
    def plain(self) -> PlainNetwork:
        return plain_copy(self.generator).to(self.torch_device)

    @cached_property
    def onnx_file(self) -> Path:
        path = self._folder / "network.onnx"
        export(self.plain, self.x, path)
        return path

    @cached_property
    def truth(self) -> Tensor:
        with torch.inference_mode(), exact_float32():
            return self.plain(self.x)
