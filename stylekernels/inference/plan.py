"""A style generator as a list of convolutions, and what they need for one size of frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stylekernels.dispatch import use_reference
from stylekernels.models.files import StyleGenerator
from stylekernels.models.generator import GeneratorConfig
from stylekernels.ops.norm_conv2d import norm_conv2d_out_formula

_ALIGNMENT = 64  # bytes: a cache line
_LARGEST_KERNEL = 9
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Layer:
    """One `norm_conv2d` of a network.

    Attributes:
        weight: in the dtype of the arithmetic, in torch's layout for the mode.
        bias: (Cout,) or None, in float32 (float64 for float64).
        stride, padding, padding_mode, upsample: as `norm_conv2d` takes them.
        activation: of the input, once the instance norm of the layer before has been applied.
        negative_slope: of ``leaky_relu``.
        adds_skip: the input then gets the last kept one added.
        keeps_skip: this sum is kept.
        norm: scale, shift (in float32, or float64) and eps of the instance norm that the output
            goes through next; None where the output is the network's.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    padding_mode: str
    upsample: str
    activation: str = "none"
    negative_slope: float = 0.01
    adds_skip: bool = False
    keeps_skip: bool = False
    norm: tuple[Tensor, Tensor, float] | None = None

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0 if self.upsample == "transpose" else 1]

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1 if self.upsample == "transpose" else 0]

    @property
    def mode(self) -> tuple[int, int, str, str]:
        """What the packed weights depend on."""
        return (self.stride, self.padding, self.padding_mode, self.upsample)

    def size_after(self, size: int) -> int:
        """Height or width of the output for that of the input."""
        if self.upsample != "none":
            return 2 * size
        return (size + 2 * self.padding - self.weight.shape[2]) // self.stride + 1

    def margin_before(self, margin: int) -> int:
        """How far the input must be right around a region for ``margin`` of output around it."""
        reach = self.weight.shape[2] // 2
        if self.upsample != "none":
            return (margin + reach + 1) // 2
        return self.stride * margin + reach


def can_plan(generator: nn.Module) -> bool:
    """Whether :func:`layers_of` knows all that this network does: a StyleGenerator as it comes.

    It is compared with a new one of its config, module by module: what a user may have put into it,
    a dilated convolution, running statistics, a forward of its own, a hook, shows as a difference.
    """
    if type(generator) is not StyleGenerator or type(generator.config) is not GeneratorConfig:
        return False
    if generator.config.kernel_size > _LARGEST_KERNEL:
        return False
    with torch.device("meta"):
        new = StyleGenerator(generator.config)
    modules, as_new = dict(generator.named_modules()), dict(new.named_modules())
    return modules.keys() == as_new.keys() and all(
        _runs_alike(module, as_new[name]) for name, module in modules.items()
    )


def _runs_alike(module: nn.Module, new: nn.Module) -> bool:
    """Whether a module's forward does what a new module's does, but for the weights' values."""
    if type(module) is not type(new) or module._forward_hooks or module._forward_pre_hooks:
        return False
    attributes = vars(module)
    for name, value in vars(new).items():
        if name not in _OF_EVERY_MODULE:
            found = attributes.get(name)
            if type(found) is not type(value) or found != value:
                return False
    # A method replaced on the instance. What Module.compile leaves there computes the same.
    added = attributes.keys() - vars(new).keys() - {"_compiled_call_impl"}
    if any(hasattr(type(module), name) for name in added):
        return False
    return all(
        _kinds(found) == _kinds(expected)
        for found, expected in (
            (module._parameters, new._parameters),
            (module._buffers, new._buffers),
        )
    )


def _kinds(tensors: Mapping[str, Tensor | None]) -> dict[str, tuple]:
    return {
        name: (type(tensor), None if tensor is None else tensor.shape)
        for name, tensor in tensors.items()
    }


def layers_of(generator: StyleGenerator, dtype: torch.dtype) -> list[Layer]:
    """The convolutions of a generator, in order.

    The first takes bytes and the last gives values of 0..255: what the generator multiplies and
    divides by lies in their weights. Biases that an instance norm cancels are left out.
    """
    config = generator.config
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layers: list[Layer] = []
    pending = {}  # what the output of the layer before still needs

    def add(conv_weight: Tensor, norm, *, scale: float = 1.0, bias=None, **mode) -> None:
        weight = (conv_weight.double() * scale).to(dtype).contiguous()
        bias = None if bias is None else (bias.double() * scale).to(wide)
        if norm is not None:  # copies: the generator may be converted afterwards
            norm = (*(tensor.detach().to(wide, copy=True) for tensor in norm[:2]), norm[2])
        layers.append(Layer(weight, bias, norm=norm, **mode, **pending))

    def add_block(block, **options) -> None:
        norm = (block.norm.weight, block.norm.bias, block.norm.eps)
        add(block.conv.weight, norm, stride=block.conv.stride[0], padding=block.conv.padding[0],
            padding_mode=block.conv.padding_mode, upsample="none", **options)  # fmt: skip
        pending.clear()
        pending.update(activation=block.norm.activation, negative_slope=block.norm.negative_slope)

    for index, block in enumerate(generator.down):
        add_block(block, scale=config.value_range / 255 if index == 0 else 1.0)
    for block in generator.residual:
        add_block(block.first, keeps_skip=True)
        add_block(block.second)
        pending["adds_skip"] = True
    for block in generator.up:
        transposed = block.upsample == "transpose"
        add(block.weight, (block.norm_weight, block.norm_bias, block.eps), stride=1,
            padding=0 if transposed else block.kernel_size // 2,
            padding_mode=block.padding_mode, upsample=block.upsample)  # fmt: skip
        pending.clear()
        pending.update(activation=block.activation, negative_slope=block.negative_slope)
    last = generator.to_rgb
    add(last.weight, None, scale=255 / config.value_range, bias=last.bias, stride=1,
        padding=last.padding[0], padding_mode=last.padding_mode, upsample="none")  # fmt: skip
    return layers


def pack(layers: Sequence[Layer]) -> list[Tensor]:
    """The weights of every layer as its kernel reads them."""
    ops = torch.ops.stylekernels
    return [ops.norm_conv2d_pack(layer.weight, *layer.mode) for layer in layers]


class Plan:
    """A list of layers for frames of one size: every intermediate tensor has its place already.

    Args:
        layers: all layers of a network, or some that follow each other.
        packed: their weights, by :func:`pack`.
        n, height, width: of the frames, or of what the first layer convolves.
        scale_shifts: for every layer but the last what the instance norm of its output comes to,
            (N, Cout, 2). None: each image's own statistics.

    Attributes:
        scale_shifts: those given, or room for those of the frames last seen.
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
        self._steps, skip = [], None
        for index, layer in enumerate(layers):
            kept = tensors.get(("input", index))
            norm = layer.norm if index < last and not given else None
            self._steps.append([
                tensors.get(("y", index - 1)), layer.weight, packed[index], layer.bias,
                self.scale_shifts[index - 1] if index else None, layer.activation,
                layer.negative_slope, skip if layer.adds_skip else None, *layer.mode,
                *(norm or (None, None, 0.0)), tensors.get(("y", index)), kept,
                self.scale_shifts[index] if norm else None, workspace,
            ])  # fmt: skip
            skip = kept if layer.keeps_skip else skip

    def __call__(self, frames: Tensor, y: Tensor) -> None:
        """Run all layers.

        Args:
            frames: (N, 3, H, W) bytes, channels_last; of the arithmetic's dtype where ``layers``
                begin further down.
            y: what the last layer's output goes to, channels_last: bytes (rounded and clamped) or
                of the arithmetic's dtype, of ``output_shape`` or with fewer rows and columns.
        """
        run = torch.ops.stylekernels.norm_conv2d_out.default
        if use_reference(frames):
            run = norm_conv2d_out_formula
        self._steps[0][0] = frames
        self._steps[-1][-4] = y
        try:
            for step in self._steps:
                run(*step)
        finally:  # the caller's, not ours to keep
            self._steps[0][0] = self._steps[-1][-4] = None


class _Places:
    """Shares out one piece of memory among tensors that live at different times."""

    def __init__(self) -> None:
        self._needs = []

    def need(self, name, shape: tuple[int, int, int, int], first: int, last: int) -> None:
        """A tensor written in step ``first`` and last read in step ``last``."""
        self._needs.append((name, shape, first, last))

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[object, Tensor]:
        """All of them, channels_last. The largest are placed first, each as low as it fits."""
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
