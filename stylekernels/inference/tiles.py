"""The division of an image into tiles, and the margin around a tile that its pixels depend on."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from stylekernels.inference.layers import Layer
from stylekernels.models.generator import SMALLEST_SIDE


@dataclass(frozen=True)
class Span:
    """The rows or the columns of a tile, in pixels of the image.

    Attributes:
        begin, end: the pixels that are read.
        core_begin, core_end: the pixels among them that are kept; the cores of a grid cover the
            image once.
        size: pixels of the image.
    """

    begin: int
    end: int
    core_begin: int
    core_end: int
    size: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    def read(self, step: int) -> slice:
        """The cells to read, in a tensor of the whole image with ``step`` pixels to a cell."""
        return self._cells(self.begin, self.end, step)

    def core(self, step: int) -> slice:
        """The core, in a tensor of the whole image with ``step`` pixels to a cell."""
        return self._cells(self.core_begin, self.core_end, step)

    def core_of_tile(self, step: int) -> slice:
        """The core, in a tensor of what is read with ``step`` pixels to a cell."""
        core, begin = self.core(step), self.begin // step
        return slice(core.start - begin, None if core.stop is None else core.stop - begin)

    def _cells(self, begin: int, end: int, step: int) -> slice:
        # To the very end at the image's: strided layers round an odd size up.
        return slice(begin // step, None if end == self.size else end // step)


def steps_of(layers: Sequence[Layer], first: int = 1) -> list[int]:
    """Pixels of the image to a cell: before the first layer, and after each."""
    steps = [first]
    for layer in layers:
        step = steps[-1] * layer.stride
        steps.append(step if layer.upsample == "none" else step // 2)
    return steps


def margin_of(layers: Sequence[Layer]) -> int:
    """The margin around a region of the output that the layers read, in cells of their input."""
    margin = 0
    for layer in reversed(layers):
        margin = layer.margin_before(margin)
    return margin


def spans(size: int, tile: int, halo: int, unit: int) -> list[Span]:
    """One axis of a grid of tiles.

    Args:
        size: pixels of the image, at least `SMALLEST_SIDE`.
        tile: the largest core; a few pixels more where the rest would be smaller than
            `SMALLEST_SIDE`.
        halo: pixels that are read around a core, as far as there are any.
        unit: cores begin at its multiples, and so does what is read. Strided layers then meet the
            same pixels as they do in the whole image.
    """
    halo, tile = math.ceil(halo / unit) * unit, tile // unit * unit
    length = math.ceil(size / math.ceil(size / tile) / unit) * unit
    edges = [*range(0, size, length), size]
    if len(edges) > 2 and size - edges[-2] < SMALLEST_SIDE:
        del edges[-2]
    return [
        Span(max(0, begin - halo), min(size, end + halo), begin, end, size)
        for begin, end in itertools.pairwise(edges)
    ]
