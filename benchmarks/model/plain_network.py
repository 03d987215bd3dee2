"""The style generator as users write it in torch.nn, for the rivals.

It contains no code of ours: reflected borders are those of ``nn.Conv2d``, norms are
``nn.InstanceNorm2d``, activations and additions are in place. Convolutions before a norm have no
bias, for the norm cancels it: the rivals save a pass too.
"""

from torch import Tensor, nn

from stylekernels.models import GeneratorConfig, StyleGenerator


class PlainResidual(nn.Module):
    """Two convolutions whose normalised result is added to the input."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm_relu(channels, channels, 3, 1, eps),
            *_conv_norm(channels, channels, 3, 1, eps),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).add_(x)


class PlainNetwork(nn.Module):
    """A :class:`~stylekernels.models.StyleGenerator` in torch.nn, untrained.

    Args:
        config: config of the generator.

    Shape:
        (N, 3, H, W) in [0, 1] to the same; in training mode not clamped, like the generator's.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        full, half, quarter = config.channels
        kernel, eps = config.kernel_size, config.eps
        self.value_range = config.value_range
        self.body = nn.Sequential(
            *_conv_norm_relu(3, full, kernel, 1, eps),
            *_conv_norm_relu(full, half, 3, 2, eps),
            *_conv_norm_relu(half, quarter, 3, 2, eps),
            *(PlainResidual(quarter, eps) for _ in range(config.residual_blocks)),
            *_upsample_norm_relu(quarter, half, config),
            *_upsample_norm_relu(half, full, config),
            _conv(full, 3, kernel, 1, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        # The output of an odd size is one to three pixels larger.
        y = self.body(x * self.value_range)[..., : x.shape[2], : x.shape[3]]
        y = y / self.value_range
        return y if self.training else y.clamp(0, 1)


def plain_copy(generator: StyleGenerator) -> PlainNetwork:
    """Return the generator's network and weights in torch.nn: float32 on the CPU, in evaluation
    mode, without gradients."""
    network = PlainNetwork(generator.config)
    # Both list their parameters layer by layer, weight before bias.
    values = generator.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network.eval().requires_grad_(False)


def _conv(cin: int, cout: int, kernel: int, stride: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(
        cin, cout, kernel, stride, padding=kernel // 2, padding_mode="reflect", bias=bias
    )


def _norm(channels: int, eps: float) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, eps, affine=True)


def _conv_norm(cin: int, cout: int, kernel: int, stride: int, eps: float) -> list[nn.Module]:
    return [_conv(cin, cout, kernel, stride), _norm(cout, eps)]


def _conv_norm_relu(cin: int, cout: int, kernel: int, stride: int, eps: float) -> list[nn.Module]:
    return [*_conv_norm(cin, cout, kernel, stride, eps), nn.ReLU(inplace=True)]


def _upsample_norm_relu(cin: int, cout: int, config: GeneratorConfig) -> list[nn.Module]:
    if config.upsample == "nearest":
        layers = [nn.Upsample(scale_factor=2, mode="nearest"), _conv(cin, cout, 3, 1)]
    else:
        kernel = 4 if config.upsample == "transpose" else 3
        # Replicate the border instead of padding zeros: one pixel of it becomes two pixels on each
        # side of the output, which the padding of 1 + 2 crops.
        transposed = nn.ConvTranspose2d(
            cin, cout, kernel, stride=2, padding=3, output_padding=4 - kernel, bias=False
        )
        layers = [nn.ReplicationPad2d(1), transposed]
    return [*layers, _norm(cout, config.eps), nn.ReLU(inplace=True)]
