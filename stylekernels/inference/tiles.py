"""Division of an image into tiles, and the margin (halo) around a tile that its pixels depend on.

Positions are in pixels of the image. A tensor inside of the network with ``stride`` s has one pixel
for s by s pixels of the image.
"""

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
        begin, end: the pixels that are read: the core and its halo.
        core_begin, core_end: the pixels that are kept. The cores of a grid cover the image once.
        size: height or width of the image.
    """

    begin: int
    end: int
    core_begin: int
    core_end: int
    size: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    def read(self, stride: int) -> slice:
        """The pixels to read, in a tensor of the whole image with this stride."""
        return self._pixels(self.begin, self.end, stride)

    def core(self, stride: int) -> slice:
        """The core, in a tensor of the whole image with this stride."""
        return self._pixels(self.core_begin, self.core_end, stride)

    def core_of_tile(self, stride: int) -> slice:
        """The core, in a tensor of the tile with this stride."""
        core, begin = self.core(stride), self.begin // stride
        return slice(core.start - begin, None if core.stop is None else core.stop - begin)

    def _pixels(self, begin: int, end: int, stride: int) -> slice:
        # None at the end of the image: strided layers round an odd size up.
        return slice(begin // stride, None if end == self.size else end // stride)


def strides_of(layers: Sequence[Layer], first: int = 1) -> list[int]:
    """The strides before the first layer and after each: pixels of the image per pixel."""
    strides = [first]
    for layer in layers:
        stride = strides[-1] * layer.stride
        strides.append(stride if layer.upsample == "none" else stride // 2)
    return strides


def margin_of(layers: Sequence[Layer]) -> int:
    """The margin of input around a region on which its output depends, in pixels of the input."""
    margin = 0
    for layer in reversed(layers):
        margin = layer.margin_before(margin)
    return margin


def spans(size: int, tile: int, halo: int, multiple: int) -> list[Span]:
    """Divide one axis of an image into tiles.

    Args:
        size: pixels of the image, at least `SMALLEST_SIDE`.
        tile: the largest core. The last one may be a few pixels larger, if the rest would be
            smaller than `SMALLEST_SIDE`.
        halo: pixels to read around a core; fewer at the border of the image.
        multiple: cores and halos begin at multiples of it, so that strided layers use the same
            pixels as in the whole image.
    """
    halo, tile = math.ceil(halo / multiple) * multiple, tile // multiple * multiple
    length = math.ceil(size / math.ceil(size / tile) / multiple) * multiple
    edges = [*range(0, size, length), size]
    if len(edges) > 2 and size - edges[-2] < SMALLEST_SIDE:
        del edges[-2]
    return [
        Span(max(0, begin - halo), min(size, end + halo), begin, end, size)
        for begin, end in itertools.pairwise(edges)
    ]
