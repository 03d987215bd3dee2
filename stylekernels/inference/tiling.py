"""Pictures of any size in bounded memory: tile by tile, with the statistics of the whole."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels.inference.plan import Layer, Plan
from stylekernels.inference.sweep import Progress, Sweep, Work
from stylekernels.inference.tiles import steps_of
from stylekernels.models.generator import SMALLEST_SIDE
from stylekernels.ops import norm_conv2d, norm_scale_shift
from stylekernels.reference.norm_conv2d import normalized_input

TILE_MODES = ("exact", "thumbnail")
SMALLEST_TILE = 64

#: Bytes that the tensors between the smallest layers may take for a whole image.
WHOLE_TENSORS = 4 << 30

_ROWS = 64  # of a whole tensor at a time, in steps that make copies


def check_tiling(tile: int, mode: str) -> None:
    """Refuse what `Tiler` can't do.

    Raises:
        TypeError: if tile isn't an int.
        ValueError: if tile is too small, or there is no such mode.
    """
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise TypeError(
            f"tile: expected a number of pixels, an int, or None, got {type(tile).__name__}"
        )
    if tile < SMALLEST_TILE:
        raise ValueError(
            f"tile: expected at least {SMALLEST_TILE} pixels, got {tile}; smaller ones would be "
            "surroundings for the most part, 1024 is a good size"
        )
    if mode not in TILE_MODES:
        raise ValueError(f"tile_mode: expected one of {', '.join(TILE_MODES)}, got {mode!r}")


class Tiler:
    """Runs a style generator's layers over images of any size in bounded memory.

    A tile is read with as much of the picture around it as its pixels depend on, so that tiles
    meet without a seam once each instance norm is given statistics of the whole image:

    - ``exact``: layer by layer, the statistics of its output are taken tile by tile and merged.
      The picture is that of the whole image at once, to rounding. Every layer needs a sweep over
      the image through all layers before it, some eight times the arithmetic. Where the tensors
      between the smallest layers fit into `WHOLE_TENSORS`, these layers run once, on the whole
      image, and sweeps go as far as the first of them or begin at the last: a third more.
    - ``thumbnail``: all statistics are those of a small copy of the image, and there is one sweep.

    Args:
        layers: of a generator, by `layers_of`.
        packed: their weights, by `pack`.
        tile: pixels a side of a tile without its surroundings, at least `SMALLEST_TILE`.
        mode: ``exact`` or ``thumbnail``.

    Chen, Wang, Xie, Lu and Luo, "Towards ultra-resolution neural style transfer via thumbnail
    instance normalization", AAAI 2022.
    """

    def __init__(
        self, layers: Sequence[Layer], packed: Sequence[Tensor], tile: int, mode: str
    ) -> None:
        self._layers, self._packed, self._tile = layers, packed, tile
        self._run = self._exact if mode == "exact" else self._thumbnail

    def __call__(self, frames: Tensor, y: Tensor, progress: Progress | None = None) -> None:
        """Stylise images, one after the other.

        Args:
            frames: (N, H, W, 3) bytes.
            y: what the pictures are written to, of the same shape.
            progress: called after each tile.
        """
        work = Work(len(frames), progress)
        for frame, picture in zip(frames.split(1), y.split(1), strict=True):
            frame, picture = frame.permute(0, 3, 1, 2), picture.permute(0, 3, 1, 2)
            size = tuple(frame.shape[2:])
            sweep = Sweep(self._layers, self._packed, frame, 1, size, self._tile, work)
            self._run(sweep).paint(picture)

    def _exact(self, sweep: Sweep) -> Sweep:
        """The sweep that is left to do once the statistics of all layers are known."""
        tiles, count = len(sweep.grid(1)), len(self._layers)
        first, end = _smallest(self._layers)
        if _whole_bytes(self._layers[: end + 1], first, sweep.size) > WHOLE_TENSORS:
            sweep.work.expect(tiles * _sum_to(count))
        else:
            before, after = first + 1, count - end
            sweep.work.expect(tiles * (_sum_to(before) + end - before + _sum_to(after)))
            sweep = self._past_the_smallest(sweep, first, end)
        while len(sweep.scale_shifts) < len(sweep.layers) - 1:
            sweep.find_scale_shift()
        return sweep

    def _past_the_smallest(self, sweep: Sweep, first: int, end: int) -> Sweep:
        """Run the smallest layers on the whole image; the sweep from there on."""
        tiles = len(sweep.grid(1))
        while len(sweep.scale_shifts) < first:
            sweep.find_scale_shift()
        x, skip = sweep.find_scale_shift(keep=True), None
        scale_shift = sweep.scale_shifts[-1]
        for layer in self._layers[first + 1 : end]:
            output = norm_conv2d(
                x, layer.weight, bias=layer.bias, scale_shift=scale_shift,
                activation=layer.activation, negative_slope=layer.negative_slope,
                residual=skip if layer.adds_skip else None, return_input=layer.keeps_skip,
                stride=layer.stride, padding=layer.padding, padding_mode=layer.padding_mode,
                upsample=layer.upsample,
            )  # fmt: skip
            x, skip = output.y, output.input if layer.keeps_skip else skip
            scale_shift = norm_scale_shift(output.mean, output.var, *layer.norm)
            del output
            sweep.work.advance(tiles)
        layer = self._layers[end]
        _normalize(x, scale_shift, layer, skip if layer.adds_skip else None)
        layer = dataclasses.replace(layer, activation="none", adds_skip=False)
        return dataclasses.replace(
            sweep,
            layers=[layer, *self._layers[end + 1 :]],
            packed=self._packed[end:],
            x=x,
            step=steps_of(self._layers)[end],
            scale_shifts=[],
        )

    def _thumbnail(self, sweep: Sweep) -> Sweep:
        """The sweep with the statistics of a small copy of the image."""
        small = thumbnail(sweep.x, self._tile)
        plan = Plan(self._layers, self._packed, 1, *small.shape[2:])
        plan(small, torch.empty_like(small))
        sweep.work.expect(len(sweep.grid(1)) * len(self._layers))
        return dataclasses.replace(sweep, scale_shifts=plan.scale_shifts)


def thumbnail(frame: Tensor, size: int) -> Tensor:
    """A small copy of an image, each pixel the mean of those it stands for.

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


def _smallest(layers: Sequence[Layer]) -> tuple[int, int]:
    """Those layers whose output is smallest: the first, and the first one after them."""
    steps = steps_of(layers)[1:]
    smallest = [index for index, step in enumerate(steps) if step == max(steps)]
    return smallest[0], smallest[-1] + 1


def _whole_bytes(layers: Sequence[Layer], first: int, size: tuple[int, int]) -> int:
    """Memory of the input and output of a layer after ``first``, and of two skip connections."""
    cells = 1
    for length in size:
        for layer in layers[: first + 1]:
            length = layer.size_after(length)
        cells *= length
    channels = max(layer.in_channels for layer in layers[first + 1 :])
    return 4 * channels * cells * layers[0].weight.dtype.itemsize


def _normalize(x: Tensor, scale_shift: Tensor, layer: Layer, skip: Tensor | None) -> None:
    """Make of a layer's raw input what it convolves, in place."""
    for row in range(0, x.shape[2], _ROWS):
        rows = slice(row, row + _ROWS)
        part, residual = x[:, :, rows], None if skip is None else skip[:, :, rows]
        part.copy_(
            normalized_input(part, scale_shift, layer.activation, layer.negative_slope, residual)
        )


def _sum_to(count: int) -> int:
    return count * (count + 1) // 2
