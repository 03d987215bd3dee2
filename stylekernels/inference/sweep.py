"""Sweeps: some layers of a generator, run over all tiles of an image."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stylekernels.inference.layers import Layer
from stylekernels.inference.plan import Plan
from stylekernels.inference.tiles import Span, margin_of, spans, strides_of
from stylekernels.ops import instance_norm_stats, norm_scale_shift
from stylekernels.reference.norm_conv2d import normalized_input

_STRIP = 1 << 24  # elements that are normalised at once: normalising makes several copies

#: A function (done, total) that is told of progress, in units of about equal time.
Progress = Callable[[int, int], None]


class Work:
    """Counts work for a progress report. The unit is one tile in one layer.

    Args:
        images: number of images, all of one size.
        progress: called after each tile, or None.
    """

    def __init__(self, images: int, progress: Progress | None) -> None:
        self._images, self._progress = images, progress
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        """Announce that every image takes ``count`` units."""
        self._total = self._images * count

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclasses.dataclass
class Sweep:
    """Consecutive layers, and the tensor of the whole image that they start from.

    Attributes:
        layers, packed: the layers and their weights.
        x: (1, C, H, W), channels_last: the image's bytes, or the input of the first layer.
        stride: pixels of the image per pixel of x, in each direction.
        size: height and width of the image.
        tile: pixels a side of a tile without its halo.
        multiple: the largest stride in the network; tiles begin at multiples of it.
        work: counts the tiles.
        scale_shifts: scale and shift, (1, C, 2) each, of the instance norms that are known so far.
    """

    layers: Sequence[Layer]
    packed: Sequence[Tensor]
    x: Tensor
    stride: int
    size: Sequence[int]
    tile: int
    multiple: int
    work: Work
    scale_shifts: list[Tensor] = dataclasses.field(default_factory=list)

    def grid(self, count: int) -> list[tuple[Span, Span]]:
        """The tiles for the first ``count`` layers, as (rows, columns), sorted by shape."""
        halo = self.stride * margin_of(self.layers[:count])
        axes = [spans(size, self.tile, halo, self.multiple) for size in self.size]
        return sorted(itertools.product(*axes), key=_shape)

    def find_scale_shift(self, *, keep: bool = False) -> Tensor | None:
        """Find the statistics of the first layer whose instance norm is not known yet.

        The statistics of tiles are merged in float64 (Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance", 1983).

        Args:
            keep: also store and return that layer's output, (1, C, H, W).
        """
        index = len(self.scale_shifts)
        layer, stride = self.layers[index], self._strides[index + 1]
        whole = self._empty_output(index + 1) if keep else None
        counts, means, variances = [], [], []
        for row, column, y in self._outputs(index + 1, layer.weight.dtype):
            mean, var = instance_norm_stats(y)
            counts.append(y.shape[2] * y.shape[3])
            means.append(mean)
            variances.append(var)
            if keep:
                whole[:, :, row.core(stride), column.core(stride)] = y
        mean, var = merge_statistics(counts, torch.stack(means), torch.stack(variances))
        self.scale_shifts.append(norm_scale_shift(mean, var, *layer.norm))
        return whole

    def go_on_from(self, output: Tensor) -> "Sweep":
        """Return the sweep over the layers that follow, starting from a tensor in memory.

        Args:
            output: the output that `find_scale_shift` returned last. It is overwritten with the
                next layer's input.
        """
        count = len(self.scale_shifts)
        layer = self.layers[count]
        height = max(1, _STRIP * output.shape[2] // output.numel())
        for row in range(0, output.shape[2], height):
            rows = slice(row, row + height)
            part = output[:, :, rows]
            skip = self.x[:, :, rows] if layer.adds_skip else None
            part.copy_(
                normalized_input(
                    part, self.scale_shifts[-1], layer.activation, layer.negative_slope, skip
                )
            )
        layer = dataclasses.replace(layer, activation="none", adds_skip=False)
        return dataclasses.replace(
            self,
            layers=[layer, *self.layers[count + 1 :]],
            packed=self.packed[count:],
            x=output,
            stride=self._strides[count],
            scale_shifts=[],
        )

    def paint(self, picture: Tensor) -> None:
        """Run all layers. All instance norms must be known.

        Args:
            picture: receives the picture, (1, 3, H, W) bytes.
        """
        for row, column, y in self._outputs(len(self.layers), torch.uint8):
            picture[:, :, row.core(1), column.core(1)] = y

    @property
    def _strides(self) -> list[int]:
        return strides_of(self.layers, self.stride)

    def _outputs(self, count: int, dtype: torch.dtype) -> Iterator[tuple[Span, Span, Tensor]]:
        """Yield each tile and the core of the first ``count`` layers' output for it. The output is
        overwritten by the next tile."""
        stride = self._strides[count]
        for _, tiles in itertools.groupby(self.grid(count), _shape):
            plan = None
            for row, column in tiles:
                x = self.x[:, :, row.read(self.stride), column.read(self.stride)]
                x = x.contiguous(memory_format=torch.channels_last)
                if plan is None:
                    plan = Plan(
                        self.layers[:count],
                        self.packed[:count],
                        1,
                        *x.shape[2:],
                        self.scale_shifts[: count - 1],
                    )
                    channels, *size = plan.output_shape[1:]
                    if count == len(self.layers):
                        size = row.length, column.length
                    y = _empty(channels, *size, dtype, x.device)
                plan(x, y)
                yield row, column, y[:, :, row.core_of_tile(stride), column.core_of_tile(stride)]
                self.work.advance(count)
            del plan, y  # free their memory before those of the next shape are made

    def _empty_output(self, count: int) -> Tensor:
        """Allocate the output of the first ``count`` layers for the whole image."""
        size = self.x.shape[2:]
        for layer in self.layers[:count]:
            size = layer.size_after(size)
        layer = self.layers[count - 1]
        return _empty(layer.out_channels, *size, layer.weight.dtype, self.x.device)


def merge_statistics(counts: Sequence[int], means: Tensor, variances: Tensor) -> tuple:
    """Compute mean and biased variance of an image from those of its parts.

    Args:
        counts: pixels of each part.
        means, variances: (parts, N, C).

    Returns:
        Two tensors (N, C), in the dtype of means and on its device.
    """
    m, v = (tensor.cpu().double() for tensor in (means, variances))
    weights = torch.tensor(counts, dtype=torch.float64)
    weights = (weights / weights.sum()).view(-1, 1, 1)
    mean = (weights * m).sum(0)
    var = (weights * (v + (m - mean).square())).sum(0)
    return mean.to(means), var.to(means)


def _shape(tile: tuple[Span, Span]) -> tuple[int, int]:
    return tile[0].length, tile[1].length


def _empty(c: int, h: int, w: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(1, h, w, c, dtype=dtype, device=device).permute(0, 3, 1, 2)
