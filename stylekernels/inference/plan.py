"""Layers for one size of frame, with memory for every intermediate tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylekernels.inference.layers import Layer
from stylekernels.ops.dispatch import use_reference
from stylekernels.ops.norm_conv2d import norm_conv2d_out_formula

_ALIGNMENT = 64  # bytes: a cache line


def pack(layers: Sequence[Layer]) -> list[Tensor]:
    """Return the weights of every layer in the order its kernel reads them."""
    ops = torch.ops.stylekernels
    return [ops.norm_conv2d_pack(layer.weight, *layer.mode) for layer in layers]


@dataclass(frozen=True)
class Step:
    """One layer with the tensors that it reads and writes in a plan.

    Attributes:
        layer: the convolution.
        packed: its weights as the kernel reads them.
        norm: scale, shift and eps for ``next_scale_shift``; None where that is given or unused.
        x: the input; None for the first layer, which reads the frames.
        scale_shift: scale and shift of the input's instance norm, (N, Cin, 2), or None.
        residual: the tensor added to the normalised input, or None.
        y: the output; None for the last layer, which writes the picture.
        input: receives the normalised input for a later skip connection, or None.
        next_scale_shift: receives scale and shift for the reader of ``y``, or None.
        workspace: scratch memory, shared by all layers.
    """

    layer: Layer
    packed: Tensor
    norm: tuple[Tensor, Tensor, float] | None
    x: Tensor | None
    scale_shift: Tensor | None
    residual: Tensor | None
    y: Tensor | None
    input: Tensor | None
    next_scale_shift: Tensor | None
    workspace: Tensor

    def arguments(self, x: Tensor, y: Tensor) -> tuple:
        """Return the arguments of ``norm_conv2d_out`` for an input and an output."""
        layer = self.layer
        return (
            x, layer.weight, self.packed, layer.bias, self.scale_shift, layer.activation,
            layer.negative_slope, self.residual, *layer.mode, *(self.norm or (None, None, 0.0)),
            y, self.input, self.next_scale_shift, self.workspace,
        )  # fmt: skip


class Plan:
    """A list of layers for frames of one size, with memory for every intermediate tensor.

    The implementation is chosen here, once for all frames.

    Args:
        layers: all layers of a network, or some that follow each other.
        packed: their weights, by :func:`pack`.
        n, height, width: size of the frames, or of the first layer's input.
        scale_shifts: scale and shift of the instance norm after every layer but the last,
            (N, Cout, 2) each. None: those of each image's own statistics.

    Attributes:
        steps: the layers with their tensors, in order.
        scale_shifts: the given ones, or those of the last frames.
        output_shape: (N, Cout, H, W) of the last layer's output.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        packed: Sequence[Tensor],
        n: int,
        height: int,
        width: int,
        scale_shifts: Sequence[Tensor] | None = None,
    ) -> None:
        ops = torch.ops.stylekernels
        device, dtype = layers[0].weight.device, layers[0].weight.dtype
        channels_in = [layers[0].in_channels, *(layer.out_channels for layer in layers)]
        sizes = [(height, width)]
        for layer in layers:
            sizes.append(tuple(layer.size_after(size) for size in sizes[-1]))
        shapes = [(n, c, *size) for c, size in zip(channels_in, sizes, strict=True)]
        self.output_shape = shapes[-1]
        places = _Places()
        last = len(layers) - 1
        for index, layer in enumerate(layers):
            if index < last:
                places.need(("y", index), shapes[index + 1], index, index + 1)
            if layer.keeps_skip:
                users = [i for i in range(index + 1, last + 1) if layers[i].adds_skip]
                places.need(("input", index), shapes[index], index, min(users, default=index))
        tensors = places.tensors(device, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        given = scale_shifts is not None
        self.scale_shifts = list(scale_shifts) if given else [
            torch.empty(n, layer.out_channels, 2, dtype=wide, device=device)
            for layer in layers[:last]
        ]  # fmt: skip
        needed = [
            ops.norm_conv2d_workspace(layer.weight, n, *size, *layer.mode)
            for size, layer in zip(sizes, layers, strict=False)
        ]
        workspace = torch.empty(max(needed), dtype=torch.float64, device=device)
        skip = None
        steps: list[Step] = []
        for index, layer in enumerate(layers):
            kept = tensors.get(("input", index))
            norm = layer.norm if index < last and not given else None
            steps.append(
                Step(
                    layer=layer,
                    packed=packed[index],
                    norm=norm,
                    x=tensors.get(("y", index - 1)),
                    scale_shift=self.scale_shifts[index - 1] if index else None,
                    residual=skip if layer.adds_skip else None,
                    y=tensors.get(("y", index)),
                    input=kept,
                    next_scale_shift=self.scale_shifts[index] if norm else None,
                    workspace=workspace,
                )
            )
            skip = kept if layer.keeps_skip else skip
        self.steps: tuple[Step, ...] = tuple(steps)
        self._between = [step.arguments(step.x, step.y) for step in self.steps[1:-1]]
        reference = use_reference("norm_conv2d", layers[0].weight)
        self._run = norm_conv2d_out_formula if reference else ops.norm_conv2d_out.default

    def __call__(self, frames: Tensor, y: Tensor) -> None:
        """Run all layers.

        Args:
            frames: (N, 3, H, W) bytes, channels_last; in the dtype of the arithmetic if ``layers``
                begin further down.
            y: receives the last layer's output, channels_last: bytes (rounded and clamped) or the
                dtype of the arithmetic, of ``output_shape`` or with fewer rows and columns.
        """
        run, first, last = self._run, self.steps[0], self.steps[-1]
        if first is last:
            run(*first.arguments(frames, y))
            return
        run(*first.arguments(frames, first.y))
        for arguments in self._between:
            run(*arguments)
        run(*last.arguments(last.x, y))


class _Places:
    """Shares out one piece of memory among tensors that live at different times."""

    def __init__(self) -> None:
        self._needs = []

    def need(self, name, shape: tuple[int, int, int, int], first: int, last: int) -> None:
        """A tensor written in step ``first`` and last read in step ``last``."""
        self._needs.append((name, shape, first, last))

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[object, Tensor]:
        """Return all tensors by name, channels_last. The largest are placed first, each as low as
        it fits."""
        unit = _ALIGNMENT // dtype.itemsize
        placed, end = [], 0
        for name, shape, first, last in sorted(
            self._needs, key=lambda need: -torch.Size(need[1]).numel()
        ):
            size = -(-torch.Size(shape).numel() // unit) * unit
            begin = 0
            for other_begin, other_end in sorted(
                (b, e) for _, _, b, e, f, l in placed if f <= last and first <= l
            ):
                if begin + size <= other_begin:
                    break
                begin = max(begin, other_end)
            placed.append((name, shape, begin, begin + size, first, last))
            end = max(end, begin + size)
        memory = torch.empty(end, dtype=dtype, device=device)
        return {
            name: memory[begin : begin + torch.Size((n, c, h, w)).numel()]
            .view(n, h, w, c)
            .permute(0, 3, 1, 2)
            for name, (n, c, h, w), begin, *_ in placed
        }
