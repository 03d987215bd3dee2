"""The matrix product of a convolution: groups of output pixels times windows of input pixels.

Every mode of convolution is the same matrix product. Output pixels are computed in groups, and a
group reads a window of input pixels, each row of which is consecutive in channels_last memory. The
product has a row for each group. Its inner dimension is the window's pixels times the input
channels. Its columns are the pixels of a group times the output channels. The weights are zero
where a pixel of the group does not depend on a pixel of the window.

Most convolutions have groups of one pixel. If the output has twice the size of the input, the four
output pixels at one input pixel are a group. Each depends on, say, 2x2 of the window's 3x3 pixels:
that costs multiplications and saves half of the loads. With nearest upsampling several kernel
elements multiply the same small pixel, and are summed. The large kernels at the ends of a network
have three channels on one side, too few for matrix instructions, so groups are larger there. With a
9x9 kernel and groups of 4x4, for example, a pixel is loaded 9 times instead of 81.
"""

import functools
from dataclasses import dataclass
from math import ceil

#: Up to so many channels a pixel is filled up to a power of two, else to a multiple of 8.
_FEW_INPUTS = 8
#: Up to so many output channels the 16 pixels of a group make at most 128 columns.
_FEW_OUTPUTS = 8
#: The most rows and columns of a group. A value that is not finite spoils the whole group, and not
#: only the pixels that depend on it.
_GROUP = 4
#: The smallest kernel whose output pixels are grouped.
_LARGE_KERNEL = 5
#: Possible sizes of a step: elements of a window's row that are multiplied at once.
_STEPS = (64, 32, 16)


@dataclass(frozen=True)
class Geometry:
    """Properties of a convolution that do not depend on the size of images. Pairs are (rows,
    columns).

    Attributes:
        kernel: side of the kernel.
        group: output pixels that are computed together.
        window: input pixels that a group reads.
        advance: input pixels from one group to the next.
        elements: (a, b, c, count). In each direction the weight between pixel w of the window and
            pixel p of the group is the sum of ``count`` kernel elements, from element
            a w + b p + c on, without those outside of the kernel.
        border: pixels of padding before the input, where the first window begins.
        padding_mode: values of the padding before and behind the input.
        repeats: 2 if each pixel of the input is repeated in both directions, else 1.
        channels: channels of a pixel, including zeros that fill it up.
        step_elements: elements of a window's row that are multiplied in one step.
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
    step_elements: int

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(
        cls,
        kernel: int,
        channels: int,
        outputs: int,
        stride: int,
        padding: int,
        padding_mode: str,
        upsample: str,
    ) -> "Geometry":
        filled = 8 * ceil(channels / 8)
        if channels <= _FEW_INPUTS:
            filled = 1 << (channels - 1).bit_length()
        group, advance, repeats = (2, 2), (1, 1), 1
        if upsample == "transpose":
            # Output o is the sum of input i times kernel element o + 1 - 2 i.
            window, border = (kernel - 1,) * 2, kernel - 3
            elements = (-2, 1, 1 + 2 * border, 1)
        elif upsample == "nearest" and (padding_mode != "reflect" or kernel == 3):
            # Output o is the sum of input (o - padding + t) // 2 times kernel element t.
            border = ceil(padding / 2)
            window = ((kernel - padding) // 2 + border + 1,) * 2
            elements = (2, -1, padding - 2 * border, 2)
            if padding_mode == "reflect":  # reflecting one row of the enlarged image replicates
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
            kernel,
            group,
            window,
            advance,
            elements,
            border,
            padding_mode,
            repeats,
            filled,
            _step(window[1] * filled),
        )

    @property
    def has_parities(self) -> bool:
        """Return whether a group is the four output pixels at one input pixel, one per parity."""
        return self.group == (2, 2)

    @property
    def pixels(self) -> int:
        """The number of pixels of a group."""
        return self.group[0] * self.group[1]

    @property
    def run(self) -> int:
        """The elements of a window's row, filled up to whole steps."""
        return self.step_elements * ceil(self.window[1] * self.channels / self.step_elements)

    @property
    def rows_of_group_row(self) -> tuple[int, int]:
        """(offset, count): the window rows that one row of the group depends on.

        With `has_parities`, those of the group's first row start at 0 and those of its second at
        offset. Otherwise (0, all rows of the window).
        """
        if not self.has_parities:
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
        """The rows and columns of groups in an output of this size."""
        return ceil(rows / self.group[0]), ceil(columns / self.group[1])

    def seen(self, rows: int, columns: int) -> tuple[int, int]:
        """The rows and columns of input that the windows of an output of this size cover."""
        first, second = (
            (groups - 1) * advance + window
            for groups, advance, window in zip(
                self.groups(rows, columns), self.advance, self.window, strict=True
            )
        )
        return first, second


def _large_group(kernel: int, channels: int, outputs: int) -> tuple[int, int]:
    """The group of a large kernel with few channels on one side."""
    if channels <= _FEW_INPUTS:
        # As many columns as fit into the steps that one pixel takes anyway.
        step = _step(kernel * channels)
        room = step * ceil(kernel * channels / step)
        columns = 1
        while columns < _GROUP and (kernel + 2 * columns - 1) * channels <= room:
            columns *= 2
        return 1, columns
    return (_GROUP, _GROUP) if outputs <= _FEW_OUTPUTS else (1, 1)


def _step(run: int) -> int:
    """The step for which a row of this length takes the least time. A step is modelled to cost as
    much as 24 elements, besides its own."""
    return min(_STEPS, key=lambda step: ceil(run / step) * (step + 24))
