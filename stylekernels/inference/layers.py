"""A style generator as a list of convolutions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stylekernels.models.files import StyleGenerator
from stylekernels.models.generator import GeneratorConfig
from stylekernels.ops.norm_conv2d import takes_kernel
from stylekernels.tensors import conv_channels, conv_size

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Layer:
    """One `norm_conv2d` of a network.

    Attributes:
        weight: weights in the dtype of the arithmetic, in torch's layout for the mode.
        bias: (Cout,) or None, in float32 (float64 for float64).
        stride, padding, padding_mode, upsample: as `norm_conv2d` takes them.
        activation: applied to the input after the instance norm of the previous layer.
        negative_slope: slope of ``leaky_relu`` below zero.
        adds_skip: whether the last kept input is added after the activation.
        keeps_skip: whether the input, with any skip connection added, is kept for a later layer.
        norm: scale, shift (float32, or float64 for float64) and eps of the instance norm of the
            output; None for the last layer.
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
        return conv_channels(self.weight, self.upsample)[0]

    @property
    def out_channels(self) -> int:
        return conv_channels(self.weight, self.upsample)[1]

    @property
    def mode(self) -> tuple[int, int, str, str]:
        """The options that the packed weights depend on."""
        return (self.stride, self.padding, self.padding_mode, self.upsample)

    def size_after(self, size: Sequence[int]) -> tuple[int, int]:
        """The height and width of the output for those of the input."""
        return conv_size(size, self.weight.shape[2], self.stride, self.padding, self.upsample)

    def margin_before(self, margin: int) -> int:
        """The margin of input around a region on which a margin of output around it depends."""
        reach = self.weight.shape[2] // 2
        if self.upsample != "none":
            return (margin + reach + 1) // 2
        return self.stride * margin + reach


def can_plan(generator: nn.Module) -> bool:
    """Return whether :func:`layers_of` knows this network: an unmodified StyleGenerator.

    The network is compared, module by module, with a new one of the same config. Changes such as a
    dilated convolution, running statistics, another forward or a hook show as differences.
    """
    if type(generator) is not StyleGenerator or type(generator.config) is not GeneratorConfig:
        return False
    if not takes_kernel(generator.config.kernel_size, "none"):
        return False
    with torch.device("meta"):
        new = StyleGenerator(generator.config)
    modules, as_new = dict(generator.named_modules()), dict(new.named_modules())
    return modules.keys() == as_new.keys() and all(
        _runs_alike(module, as_new[name]) for name, module in modules.items()
    )


def _runs_alike(module: nn.Module, new: nn.Module) -> bool:
    """Return whether a module computes the same as a new module, given the same weights."""
    if type(module) is not type(new) or module._forward_hooks or module._forward_pre_hooks:
        return False
    attributes = vars(module)
    for name, value in vars(new).items():
        if name not in _OF_EVERY_MODULE:
            found = attributes.get(name)
            if type(found) is not type(value) or found != value:
                return False
    # A method that was replaced on the instance. The attribute of Module.compile changes nothing.
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
    """Return the convolutions of a generator, in order.

    The first layer reads bytes and the last one writes values of 0..255: the factors of the
    generator's value range are multiplied into their weights. Biases that an instance norm cancels
    are left out.
    """
    config = generator.config
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layers: list[Layer] = []
    pending = {}  # options of the next layer that the previous one determines

    def add(conv_weight: Tensor, norm, *, scale: float = 1.0, bias=None, **mode) -> None:
        weight = (conv_weight.double() * scale).to(dtype).contiguous()
        bias = None if bias is None else (bias.double() * scale).to(wide)
        if norm is not None:  # copied, since the generator may change its dtype afterwards
            norm = (*(tensor.detach().to(wide, copy=True) for tensor in norm[:2]), norm[2])
        layers.append(Layer(weight, bias, norm=norm, **mode, **pending))

    def add_block(block, **options) -> None:
        norm = (block.norm.weight, block.norm.bias, block.norm.eps)
        add(
            block.conv.weight,
            norm,
            stride=block.conv.stride[0],
            padding=block.conv.padding[0],
            padding_mode=block.conv.padding_mode,
            upsample="none",
            **options,
        )
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
        add(
            block.weight,
            (block.norm_weight, block.norm_bias, block.eps),
            stride=1,
            padding=0 if transposed else block.kernel_size // 2,
            padding_mode=block.padding_mode,
            upsample=block.upsample,
        )
        pending.clear()
        pending.update(activation=block.activation, negative_slope=block.negative_slope)
    last = generator.to_rgb
    add(
        last.weight,
        None,
        scale=255 / config.value_range,
        bias=last.bias,
        stride=1,
        padding=last.padding[0],
        padding_mode=last.padding_mode,
        upsample="none",
    )
    return layers
