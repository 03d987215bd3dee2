"""A convolution's mode as what its kernel multiplies, and its weights in that order.

Every mode is the same matrix product. Output pixels are computed in groups; a group sees a window
of input pixels, of which a row lies in one piece in channels_last memory. The rows of the product
are groups, its inner dimension the window's pixels times the input channels, its columns the
pixels of a group times the output channels. The weights hold zeros where a pixel of a group does
not see one of the window.

Most convolutions have groups of one pixel. Where the output is twice the size of the input, the
four pixels that come from one are a group: each sees 2x2 of the window's 3x3 pixels, say, which
costs multiplications and saves half of the loads. With nearest upsampling several kernel elements
meet the same small pixel, and are added up. The large kernels at the ends of a network have three
channels on one side, which would leave matrix instructions idle: there groups are larger. Of 9x9
kernels and groups of 4x4, for example, a pixel is loaded 9 times instead of 81.
"""

import functools
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

#: Up to here a pixel's channels are filled up to a power of two, from there on to a multiple.
_FEW_INPUTS = 8
#: Up to here 16 pixels of a group make no more than 128 columns.
_FEW_OUTPUTS = 8
#: Rows and columns of a group at most. A value that is not finite spoils the pixels of a group
#: beyond those that see it.
_GROUP = 4
#: The kernels that pixels are grouped for.
_LARGE_KERNEL = 5
#: Elements of a window's row that are multiplied in one step.
_STEPS = (64, 32, 16)

#: The kernel elements between each pixel of a group and each pixel of its window, in one direction.
Elements = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Geometry:
    """What of a convolution is known without its images. Pairs are of rows and columns.

    Attributes:
        group: output pixels that are computed together.
        window: input pixels that they see.
        advance: input pixels from a group to the next.
        elements: by pixel of the group and pixel of the window the kernel elements between them,
            for rows and for columns.
        border: pixels before the input that the first window begins with.
        padding_mode: how the input goes on there and behind.
        repeats: 2 where the input is each pixel twice, else 1.
        channels: of a pixel, with those that are filled up with zeros.
        step: elements of a window's row that are multiplied in one step.
    """

    group: tuple[int, int]
    window: tuple[int, int]
    advance: tuple[int, int]
    elements: tuple[Elements, Elements]
    border: int
    padding_mode: str
    repeats: int
    channels: int
    step: int

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(
        cls, kernel: int, channels: int, outputs: int, stride: int, padding: int,
        padding_mode: str, upsample: str,
    ) -> "Geometry":  # fmt: skip
        filled = 8 * ceil(channels / 8)
        if channels <= _FEW_INPUTS:
            filled = 1 << (channels - 1).bit_length()
        group, repeats = (1, 1), 1
        if upsample == "transpose":
            # Output o gets input i times element o + 1 - 2 i.
            places = [{o + 1 - 2 * i: i for i in (-1, 0, 1) if 0 <= o + 1 - 2 * i < kernel}
                      for o in (0, 1)]  # fmt: skip
        elif upsample == "nearest" and (padding_mode != "reflect" or kernel == 3):
            places = [{t: (o - padding + t) // 2 for t in range(kernel)} for o in (0, 1)]
            if padding_mode == "reflect":  # one row of the large image, the last of the small one
                padding_mode = "replicate"
        else:
            repeats = 2 if upsample == "nearest" else 1
            if kernel >= _LARGE_KERNEL and stride == 1:
                group = _large_group(kernel, filled, outputs)
            by_direction = [
                [{t: o * stride + t - padding for t in range(kernel)} for o in range(size)]
                for size in group
            ]
            advance = (stride * group[0], stride * group[1])
        if upsample != "none" and repeats == 1:
            group, advance, by_direction = (2, 2), (1, 1), [places, places]
        windows = [_window(places) for places in by_direction]
        (first, rows, _), (_, columns, _) = windows
        return cls(
            group, (rows, columns), advance, (windows[0][2], windows[1][2]), -first, padding_mode,
            repeats, filled, _step(columns * filled),
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        """Of a group."""
        return self.group[0] * self.group[1]

    @property
    def run(self) -> int:
        """Elements of a window's row, with those that fill up its last step."""
        return self.step * ceil(self.window[1] * self.channels / self.step)

    @property
    def rows_of_one(self) -> tuple[int, int]:
        """Of the window's rows those that one of two rows of a group sees: how many rows further on
        for the second, and how many."""
        if self.group[0] != 2:
            return 0, self.window[0]
        seen = [[w for w, found in enumerate(row) if found] for row in self.elements[0]]
        return seen[1][0], max(seen[0][-1], seen[1][-1] - seen[1][0]) + 1

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """Of an output of this size."""
        return ceil(rows / self.group[0]), ceil(columns / self.group[1])

    def seen(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that all windows of an output of this size see."""
        first, second = (
            (groups - 1) * advance + window
            for groups, advance, window in zip(
                self.groups(rows, columns), self.advance, self.window, strict=True
            )
        )
        return first, second

    def pack(self, weight: Tensor, upsample: str) -> Tensor:
        """The weights as the kernel reads them: (columns of the product, its inner dimension)."""
        # One more element, which is zero, is between pixels that don't see each other.
        elements = torch.nn.functional.pad(weight.reshape(-1), (0, 1))
        parts = [
            elements.index_select(0, index)
            for index in _indices(self, tuple(weight.shape), upsample == "transpose", weight.device)
        ]
        if len(parts) > 1:
            wide = torch.promote_types(weight.dtype, torch.float32)
            parts = [functools.reduce(torch.add, (part.to(wide) for part in parts))]
        return parts[0].to(weight.dtype).view(-1, self.window[0] * self.run)


def _large_group(kernel: int, channels: int, outputs: int) -> tuple[int, int]:
    """Of a large kernel with few channels on one side."""
    if channels <= _FEW_INPUTS:
        # As many as there is room for in the steps that one pixel takes.
        step = _step(kernel * channels)
        room = step * ceil(kernel * channels / step)
        columns = 1
        while columns < _GROUP and (kernel + 2 * columns - 1) * channels <= room:
            columns *= 2
        return 1, columns
    return (_GROUP, _GROUP) if outputs <= _FEW_OUTPUTS else (1, 1)


def _step(run: int) -> int:
    """The step by which a row of this length takes the least time, if a step has a cost of its own
    besides what it multiplies."""
    return min(_STEPS, key=lambda step: ceil(run / step) * (step + 24))


def _window(places: list[dict[int, int]]) -> tuple[int, int, Elements]:
    """First pixel and size of the window of pixels, given for each by kernel element the place
    that it meets, and the elements between them."""
    met = [place for of_pixel in places for place in of_pixel.values()]
    first, size = min(met), max(met) - min(met) + 1
    elements = tuple(
        tuple(
            tuple(element for element, place in of_pixel.items() if place == first + w)
            for w in range(size)
        )
        for of_pixel in places
    )
    return first, size, elements


@functools.lru_cache(maxsize=64)
def _indices(
    geometry: Geometry, shape: tuple[int, ...], transposed: bool, device: torch.device
) -> list[Tensor]:
    """Which elements of a kernel of this shape `Geometry.pack` adds up for every place, and the one
    after the last where there is none. Kept, for making them takes longer than a small layer."""
    nothing = torch.Size(shape).numel()
    numbers = (
        torch.arange(nothing).view(shape).permute((2, 3, 0, 1) if transposed else (2, 3, 1, 0))
    )
    kernel, _, channels, _ = numbers.shape
    # (rows and columns of the kernel, and one more, input and output channels)
    numbers = torch.nn.functional.pad(
        numbers, (0, 0, 0, geometry.channels - channels, 0, 1, 0, 1), value=nothing
    )
    rows, columns = (_by_depth(elements, kernel) for elements in geometry.elements)
    found = []
    for of_row in rows:
        for of_column in columns:
            # (rows of the group, of the window, columns of the group, of the window, Cin, Cout)
            placed = numbers[of_row][:, :, of_column].permute(0, 2, 5, 1, 3, 4).flatten(-2)
            filled = geometry.run - placed.shape[-1]
            placed = torch.nn.functional.pad(placed, (0, filled), value=nothing)
            found.append(placed.reshape(-1).to(device))
    return found


def _by_depth(elements: Elements, kernel: int) -> list[Tensor]:
    """The first elements, the second ones and so on of all places; ``kernel`` for none."""
    most = max(len(found) for of_pixel in elements for found in of_pixel)
    return [
        torch.tensor([
            [(*found, *[kernel] * most)[depth] for found in of_pixel] for of_pixel in elements
        ])
        for depth in range(most)
    ]  # fmt: skip
