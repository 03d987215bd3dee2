"""Plans: a network's layers for one size of frame, with memory for all intermediate tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylekernels.inference.layers import Layer
from stylekernels.namespace import ops
from stylekernels.ops.dispatch import use_reference
from stylekernels.ops.norm_conv2d import norm_conv2d_out_formula

_ALIGNMENT = 64  # bytes: a cache line


def pack(layers: Sequence[Layer]) -> list[Tensor]:
    """Return the weights of every layer in the order in which its kernel reads them."""
    return [ops.norm_conv2d_pack(layer.weight, *layer.mode) for layer in layers]


@dataclass(frozen=True)
class Step:
    """One step of a plan: a layer with the tensors that it reads and writes.

    Attributes:
        layer: the convolution.
        packed: the layer's weights as the kernel reads them.
        norm: scale, shift and eps for ``next_scale_shift``; None if that is given or unused.
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
            x,
            layer.weight,
            self.packed,
            layer.bias,
            self.scale_shift,
            layer.activation,
            layer.negative_slope,
            self.residual,
            *layer.mode,
            *(self.norm or (None, None, 0.0)),
            y,
            self.input,
            self.next_scale_shift,
            self.workspace,
        )


class Plan:
    """A list of layers for frames of one size, with memory for every intermediate tensor.

    The implementation is chosen here, once for all frames.

    Args:
        layers: all layers of a network, or some consecutive ones.
        packed: their weights, by :func:`pack`.
        n, height, width: size of the frames, or of the first layer's input.
        scale_shifts: scale and shift of the instance norm after every layer but the last,
            (N, Cout, 2) each. None: they are computed from each image's own statistics.

    Attributes:
        steps: the layers with their tensors, in order.
        scale_shifts: the given ones, or those of the frames that were run last.
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
        device, dtype = layers[0].weight.device, layers[0].weight.dtype
        channels_in = [layers[0].in_channels, *(layer.out_channels for layer in layers)]
        sizes = [(height, width)]
        for layer in layers:
            sizes.append(layer.size_after(sizes[-1]))
        shapes = [(n, c, *size) for c, size in zip(channels_in, sizes, strict=True)]
        self.output_shape = shapes[-1]
        arena = _Arena()
        last = len(layers) - 1
        for index, layer in enumerate(layers):
            if index < last:
                arena.request(("y", index), shapes[index + 1], index, index + 1)
            if layer.keeps_skip:
                users = [i for i in range(index + 1, last + 1) if layers[i].adds_skip]
                arena.request(("input", index), shapes[index], index, min(users, default=index))
        tensors = arena.tensors(device, dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        given = scale_shifts is not None
        if not given:
            pairs = [(n, layer.out_channels, 2) for layer in layers[:last]]
            scale_shifts = [torch.empty(pair, dtype=wide, device=device) for pair in pairs]
        self.scale_shifts = list(scale_shifts)
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
            frames: (N, 3, H, W) bytes, channels_last; or, if ``layers`` do not begin with the
                network's first, their input in the dtype of the arithmetic.
            y: receives the last layer's output, channels_last, as bytes (rounded and clamped) or in
                the dtype of the arithmetic. It has ``output_shape``, or fewer rows and columns.
        """
        run, first, last = self._run, self.steps[0], self.steps[-1]
        if first is last:
            run(*first.arguments(frames, y))
            return
        run(*first.arguments(frames, first.y))
        for arguments in self._between:
            run(*arguments)
        run(*last.arguments(last.x, y))


class _Arena:
    """One allocation for all tensors; those that live at different times may share memory."""

    def __init__(self) -> None:
        self._requests = []

    def request(self, name, shape: tuple[int, int, int, int], first: int, last: int) -> None:
        """Request a tensor that step ``first`` writes and step ``last`` reads last."""
        self._requests.append((name, shape, first, last))

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[object, Tensor]:
        """Allocate, and return all tensors by name, channels_last. The largest tensor is placed
        first; each gets the lowest address at which it fits."""
        multiple = _ALIGNMENT // dtype.itemsize
        placed, end = [], 0
        for name, shape, first, last in sorted(
            self._requests, key=lambda request: -torch.Size(request[1]).numel()
        ):
            size = -(-torch.Size(shape).numel() // multiple) * multiple
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
