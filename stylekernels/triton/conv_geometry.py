"""A convolution's mode as what its kernel loops over, and its weights in that order.

Where the output is twice the size of the input, its even and odd rows and columns are four
convolutions of the small image: a parity. Each has some taps a direction, from a first one on. With
nearest upsampling several kernel elements meet the same small pixel, and are added up.
"""

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

#: Up to here the channels of a kernel row are multiplied together, since alone they would fill
#: only a part of what a matrix instruction multiplies at least, 16.
_FEW_INPUTS = 8


@dataclass(frozen=True)
class Geometry:
    """What of a convolution is known without its images.

    Attributes:
        stride: of output pixels over input pixels.
        parities: 1, or 4 where the output has twice the input's size.
        taps, starts: for even and for odd outputs: how many input pixels a direction, and the first
            relative to ``stride`` times the output pixel's place.
        elements: the kernel elements of each tap, which follow each other, for even and for odd
            outputs.
        repeats: 2 where the padded image is the input with each pixel twice, else 1.
        border: pixels that are read beyond the input.
        padding_mode: how it goes on there.
        run: elements of a kernel row that are multiplied together, its pixels' channels one after
            the other, in groups of ``run_channels``; 0 where each pixel is taken for itself.
    """

    stride: int
    parities: int
    taps: tuple[int, int]
    starts: tuple[int, int]
    elements: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]
    repeats: int
    border: int
    padding_mode: str
    run: int = 0
    run_channels: int = 0

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(
        cls, kernel: int, channels: int, stride: int, padding: int, padding_mode: str, upsample: str
    ) -> "Geometry":
        if upsample == "transpose":
            # Output o gets input i times element o + 1 - 2 i.
            elements = (((3,), (1,)) if kernel == 4 else ((1,),), ((2,), (0,)))
            starts = (-1 if kernel == 4 else 0, 0)
            return cls._of(1, 4, starts, elements, 1, 1, padding_mode)
        if upsample == "nearest" and (padding_mode != "reflect" or kernel == 3):
            starts = tuple((parity - padding) // 2 for parity in (0, 1))
            places = [[(parity - padding + t) // 2 for t in range(kernel)] for parity in (0, 1)]
            elements = tuple(
                tuple(
                    tuple(t for t in range(kernel) if places[parity][t] == place)
                    for place in sorted(set(places[parity]))
                )
                for parity in (0, 1)
            )
            # What a reflected row of the large image shows is the last row of the small one.
            mode = "zeros" if padding_mode == "zeros" else "replicate"
            return cls._of(1, 4, starts, elements, 1, padding, mode)
        single = tuple((t,) for t in range(kernel))
        repeats = 2 if upsample == "nearest" else 1
        few = {}
        if channels <= _FEW_INPUTS and kernel > 1 and repeats == 1:
            run_channels = triton.next_power_of_2(channels)
            few = {
                "run": max(16, triton.next_power_of_2(kernel * run_channels)),
                "run_channels": run_channels,
            }
        return cls._of(
            stride, 1, (-padding, -padding), (single, single), repeats, padding, padding_mode, **few
        )

    @classmethod
    def _of(cls, stride, parities, starts, elements, *rest, **few) -> "Geometry":
        taps = (len(elements[0]), len(elements[1]))
        return cls(stride, parities, taps, starts, elements, *rest, **few)

    def output_size(self, size: int) -> int:
        """Height or width of one parity's output."""
        if self.parities == 4:
            return size
        return (size * self.repeats + 2 * self.border - self.taps[0]) // self.stride + 1

    def pack(self, weight: Tensor, upsample: str) -> Tensor:
        """The weights as the kernel reads them: (taps of all parities, Cin, Cout), or
        (kernel rows, run, Cout)."""
        order = (2, 3, 0, 1) if upsample == "transpose" else (2, 3, 1, 0)
        matrices = weight.permute(order)  # (k, k, Cin, Cout)
        if self.run:
            k, _, channels, outputs = matrices.shape
            packed = weight.new_zeros((k, self.run, outputs))
            rows = packed[:, : k * self.run_channels].unflatten(1, (k, self.run_channels))
            rows[:, :, :channels] = matrices
            return packed
        if self.parities == 1:
            return matrices.flatten(0, 1).contiguous()
        # Slices, for an index made of a list is copied to a GPU, which waits for it.
        wide = torch.promote_types(weight.dtype, torch.float32)
        matrices = matrices.to(wide)
        taps = [
            matrices[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].sum((0, 1))
            for parity_y in (0, 1)
            for parity_x in (0, 1)
            for rows in self.elements[parity_y]
            for columns in self.elements[parity_x]
        ]
        return torch.stack(taps).to(weight.dtype)
