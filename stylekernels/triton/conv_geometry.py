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


@dataclass(frozen=True)
class Geometry:
    """What of a convolution is known without its images. Pairs are of rows and columns.

    Attributes:
        kernel: its side.
        group: output pixels that are computed together.
        window: input pixels that they see.
        advance: input pixels from a group to the next.
        elements: a, b, c and how many: between pixel w of the window and pixel p of the group lie
            the kernel elements from a w + b p + c on, in one direction, as far as there are such.
        border: pixels before the input that the first window begins with.
        padding_mode: how the input goes on there and behind.
        repeats: 2 where the input is each pixel twice, else 1.
        channels: of a pixel, with those that are filled up with zeros.
        step: elements of a window's row that are multiplied in one step.
    """

    kernel: int
    group: tuple[int, int]
    window: tuple[int, int]
    advance: tuple[int, int]
    elements: tuple[int, int, int, int]
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
        group, advance, repeats = (2, 2), (1, 1), 1
        if upsample == "transpose":
            # Output o gets input i times element o + 1 - 2 i.
            window, border = (kernel - 1,) * 2, kernel - 3
            elements = (-2, 1, 1 + 2 * border, 1)
        elif upsample == "nearest" and (padding_mode != "reflect" or kernel == 3):
            # Output o meets input (o - padding + t) // 2 with element t.
            border = ceil(padding / 2)
            window = ((kernel - padding) // 2 + border + 1,) * 2
            elements = (2, -1, padding - 2 * border, 2)
            if padding_mode == "reflect":  # one row of the large image, the last of the small one
                padding_mode = "replicate"
        else:
            repeats = 2 if upsample == "nearest" else 1
            group, border = (1, 1), padding
            if kernel >= _LARGE_KERNEL and stride == 1:
                group = _large_group(kernel, filled, outputs)
            window = (stride * (group[0] - 1) + kernel, stride * (group[1] - 1) + kernel)
            advance = (stride * group[0], stride * group[1])
            elements = (1, -stride, 0, 1)
        return cls(
            kernel, group, window, advance, elements, border, padding_mode, repeats, filled,
            _step(window[1] * filled),
        )  # fmt: skip

    @property
    def doubles(self) -> bool:
        """Whether a group is the four pixels that come from one."""
        return self.group == (2, 2)

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
        """Of the window's rows those that one of the two rows of a group sees, where the image is
        doubled: how many rows further on for the second, and how many. Else 0, and all."""
        if not self.doubles:
            return 0, self.window[0]
        of_window, of_pixel, first, count = self.elements
        firsts, ends = [], []
        for pixel in (0, 1):
            seen = [
                w
                for w in range(self.window[0])
                if -count < of_window * w + of_pixel * pixel + first < self.kernel
            ]
            firsts.append(seen[0])
            ends.append(seen[-1] + 1)
        return firsts[1], max(ends[0], ends[1] - firsts[1])

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
