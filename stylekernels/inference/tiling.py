"""Pictures of any size in bounded memory: by tiles, with the statistics of the whole image."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.inference.layers import Layer
from stylekernels.inference.plan import Plan
from stylekernels.inference.sweep import Sweep, Work
from stylekernels.inference.tiles import strides_of
from stylekernels.models.generator import SMALLEST_SIDE

TILE_MODES = ("exact", "thumbnail")
SMALLEST_TILE = 64

#: Bytes that the kept tensors of a whole image may take.
WHOLE_TENSORS = 2 << 30


def check_tiling(tile: int | None, mode: str) -> None:
    """Check the arguments of `Tiler`.

    Raises:
        TypeError: if tile is not an int.
        ValueError: if tile is too small, or there is no such mode.
    """
    if mode not in TILE_MODES:
        raise ValueError(f"tile_mode: expected one of {', '.join(TILE_MODES)}, got {mode!r}")
    if tile is None:
        return
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise TypeError(
            f"tile: expected a number of pixels, an int, or None, got {type(tile).__name__}"
        )
    if tile < SMALLEST_TILE:
        raise ValueError(
            f"tile: expected at least {SMALLEST_TILE} pixels, got {tile}; smaller tiles would "
            "compute mostly surroundings, 1024 is a good size"
        )


class Tiler:
    """Runs a style generator's layers over images of any size in bounded memory.

    A tile is read together with a halo, the surroundings that its pixels depend on. Tiles then meet
    without a seam if each instance norm uses statistics of the whole image:

    - ``exact``: the statistics are found layer by layer: those of a layer's output are computed for
      each tile and merged. The picture equals that of the whole image at once, up to rounding.
      Every layer needs a sweep over the image, through all layers before it: some eight times the
      arithmetic. If a layer's input for the whole image fits into `WHOLE_TENSORS`, it is kept, and
      later sweeps begin there.
    - ``thumbnail``: all statistics are those of a small copy of the image. One sweep is enough.

    Args:
        layers: a generator's layers, by `layers_of`.
        packed: their weights, by `pack`.
        tile: pixels a side of a tile without its halo, at least `SMALLEST_TILE`.
        mode: ``exact`` or ``thumbnail``.

    Chen, Wang, Xie, Lu and Luo, "Towards ultra-resolution neural style transfer via thumbnail
    instance normalization", AAAI 2022.
    """

    def __init__(
        self, layers: Sequence[Layer], packed: Sequence[Tensor], tile: int, mode: str
    ) -> None:
        self._layers, self._packed, self._tile = layers, packed, tile
        self._run = self._exact if mode == "exact" else self._thumbnail

    def __call__(self, frame: Tensor, picture: Tensor, work: Work) -> None:
        """Stylise an image.

        Args:
            frame: (1, 3, H, W) bytes, channels_last.
            picture: receives the result; same shape and layout.
            work: counts the tiles.
        """
        multiple, size = max(strides_of(self._layers)), tuple(frame.shape[2:])
        sweep = Sweep(self._layers, self._packed, frame, 1, size, self._tile, multiple, work)
        self._run(sweep).paint(picture)

    def _exact(self, sweep: Sweep) -> Sweep:
        """Find the statistics of all layers, and return the last sweep, which is still to run."""
        count = len(self._layers)
        begins = restarts(self._layers, sweep.size, WHOLE_TENSORS)
        parts = itertools.pairwise([0, *begins, count])
        sweep.work.expect(len(sweep.grid(1)) * sum(itertools.starmap(work_between, parts)))
        for index in range(1, count):
            output = sweep.find_scale_shift(keep=index in begins)
            if output is not None:
                sweep = sweep.go_on_from(output)
        return sweep

    def _thumbnail(self, sweep: Sweep) -> Sweep:
        """Return a sweep with the statistics of a small copy of the image."""
        small = thumbnail(sweep.x, self._tile)
        plan = Plan(self._layers, self._packed, 1, *small.shape[2:])
        plan(small, torch.empty_like(small))
        sweep.work.expect(len(sweep.grid(1)) * len(self._layers))
        return dataclasses.replace(sweep, scale_shifts=plan.scale_shifts)


def thumbnail(frame: Tensor, size: int) -> Tensor:
    """Return a small copy of an image. Each pixel is the mean of the pixels that it covers.

    Args:
        frame: (1, 3, H, W) bytes, channels_last.
        size: pixels of the longer side; the shorter one keeps at least `SMALLEST_SIDE`.

    Returns:
        Bytes, channels_last.
    """
    longest = max(frame.shape[2:])
    height, width = (max(SMALLEST_SIDE, round(n * size / longest)) for n in frame.shape[2:])
    small = frame.new_empty(1, height, width, 3).permute(0, 3, 1, 2)
    for row in range(height):
        begin, end = row * frame.shape[2] // height, -(-(row + 1) * frame.shape[2] // height)
        band = frame[:, :, begin:end].float()
        small[:, :, row : row + 1] = F.adaptive_avg_pool2d(band, (1, width)).round_()
    return small


def restarts(layers: Sequence[Layer], size: Sequence[int], budget: int) -> list[int]:
    """Choose the layers whose inputs are kept, where later sweeps begin, for the least work.

    Args:
        layers: a generator's layers.
        size: height and width of the image.
        budget: bytes for two kept inputs: the second is computed from the first.

    Returns:
        Indices of layers, ascending. None is between the two convolutions of a residual block,
        where a second tensor would have to be kept.
    """
    count, needed = len(layers), [0]
    for layer in layers:
        size = layer.size_after(size)
        needed.append(layer.out_channels * math.prod(size) * layer.weight.dtype.itemsize)
    needed[count] = 0  # the picture
    best = {0: (0, [])}  # for each layer: the least work up to it, and the layers kept for that
    for end in range(1, count + 1):
        ways = [
            (work + work_between(begin, end), [*begins, end])
            for begin, (work, begins) in best.items()
            if needed[begin] + needed[end] <= budget and _carries_no_skip(layers, begin, end)
        ]
        if ways:
            best[end] = min(ways)
    return best[count][1][:-1]


def work_between(begin: int, end: int) -> int:
    """The layers that a tile passes in all sweeps between two kept inputs. Each sweep has one layer
    more than the one before."""
    return (end - begin) * (end - begin + 1) // 2


def _carries_no_skip(layers: Sequence[Layer], begin: int, end: int) -> bool:
    """Return whether layer ``end`` and its successors use no skip connection from between ``begin``
    and ``end``."""
    skip = None
    for index in range(begin, end):
        if layers[index].adds_skip:
            skip = None
        if layers[index].keeps_skip:
            skip = index
    if end < len(layers) and layers[end].adds_skip:
        return skip == begin
    return skip is None
