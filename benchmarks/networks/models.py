"""Published style networks in plain torch.nn, as their authors' code builds them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]


def _cyclegan_block(width: int) -> nn.Module:
    return Residual(
        nn.ReflectionPad2d(1),
        nn.Conv2d(width, width, 3),
        nn.InstanceNorm2d(width),
        nn.ReLU(True),
        nn.ReflectionPad2d(1),
        nn.Conv2d(width, width, 3),
        nn.InstanceNorm2d(width),
    )


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def cyclegan_resnet(width: int = 64, blocks: int = 9) -> nn.Module:
    """CycleGAN's generator of residual blocks (Zhu et al., 2017)."""
    layers = [
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, width, 7),
        nn.InstanceNorm2d(width),
        nn.ReLU(True),
    ]
    for channels in (width, 2 * width):
        layers += [
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * channels),
            nn.ReLU(True),
        ]
    layers += [_cyclegan_block(4 * width) for _ in range(blocks)]
    for channels in (4 * width, 2 * width):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(channels // 2),
            nn.ReLU(True),
        ]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
    return nn.Sequential(*layers)


def _has_biases(norm: Norm) -> bool:
    """Return whether pix2pix' convolutions before a norm have biases: only if it is an instance
    norm, which has none of its own there."""
    return norm is nn.InstanceNorm2d


class _Level(nn.Module):
    """One level of pix2pix' U-Net: down, all below, up, and the input beside the output."""

    def __init__(
        self, outer: int, inner: int, norm: Norm, below: nn.Module | None, top: bool
    ) -> None:
        super().__init__()
        self.top = top
        biased = _has_biases(norm)
        down = [nn.Conv2d(3 if top else outer, inner, 4, 2, 1, bias=biased)]
        up = nn.ConvTranspose2d(inner * (2 if below else 1), outer, 4, 2, 1, bias=top or biased)
        if not top:
            down.insert(0, nn.LeakyReLU(0.2, True))
        if below and not top:
            down.append(norm(inner))
        after = [nn.Tanh()] if top else [norm(outer)]
        self.model = nn.Sequential(*down, *([below] if below else []), nn.ReLU(True), up, *after)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.top else torch.cat([x, self.model(x)], 1)


def pix2pix_unet(width: int = 64, levels: int = 8, norm: Norm = nn.InstanceNorm2d) -> nn.Module:
    """pix2pix' generator (Isola et al., 2017), for images of 2^levels pixels a side."""
    level = None
    for index in range(levels - 1, 0, -1):
        outer, inner = (width * min(8, 2**step) for step in (index - 1, index))
        level = _Level(outer, inner, norm, level, top=False)
    return _Level(3, width, norm, level, top=True)


def patchgan(width: int = 64, norm: Norm = nn.InstanceNorm2d) -> nn.Module:
    """pix2pix' discriminator of patches of 70 x 70 pixels."""
    layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for step, stride in enumerate((2, 2, 1)):
        channels = width * 2**step
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, stride, 1, bias=_has_biases(norm)),
            norm(2 * channels),
            nn.LeakyReLU(0.2, True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


class _ReflectedConv(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, upsample: int = 0):
        super().__init__()
        self.upsample = upsample
        self.reflection_pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(cin, cout, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, mode="nearest", scale_factor=self.upsample)
        return self.conv2d(self.reflection_pad(x))


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_ReflectedConv(channels, channels, 3) for _ in range(2))
        self.in1, self.in2 = (nn.InstanceNorm2d(channels, affine=True) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.in2(self.conv2(self.relu(self.in1(self.conv1(x))))) + x


class Transformer(nn.Module):
    """The network of fast neural style (Johnson et al., 2016) in PyTorch's examples."""

    def __init__(self, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.convs = nn.ModuleList(
            [_ReflectedConv(3, a, 9), _ReflectedConv(a, b, 3, 2), _ReflectedConv(b, c, 3, 2)]
        )
        self.norms = nn.ModuleList(nn.InstanceNorm2d(n, affine=True) for n in (a, b, c))
        self.blocks = nn.Sequential(*(_TransformerBlock(c) for _ in range(blocks)))
        self.deconvs = nn.ModuleList(
            [_ReflectedConv(c, b, 3, upsample=2), _ReflectedConv(b, a, 3, upsample=2)]
        )
        self.denorms = nn.ModuleList(nn.InstanceNorm2d(n, affine=True) for n in (b, a))
        self.last = _ReflectedConv(a, 3, 9)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x)))
        x = self.blocks(x)
        for conv, norm in zip(self.deconvs, self.denorms, strict=True):
            x = self.relu(norm(conv(x)))
        return self.last(x)


def adain_decoder(width: int = 64) -> nn.Module:
    """The decoder of AdaIN (Huang and Belongie, 2017), from relu4_1 to a picture."""
    c = 8 * width
    layers = []
    for cin, cout, upsample in (
        (c, c // 2, True),
        (c // 2, c // 2, False),
        (c // 2, c // 2, False),
        (c // 2, c // 2, False),
        (c // 2, c // 4, True),
        (c // 4, c // 4, False),
        (c // 4, c // 8, True),
        (c // 8, c // 8, False),
    ):
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(cin, cout, 3), nn.ReLU()]
        if upsample:
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(c // 8, 3, 3))


class _AnimeConv(nn.Sequential):
    """Padding, convolution, norm over all channels and pixels, leaky ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2
        super().__init__(
            nn.ReflectionPad2d((padding, padding, padding, padding)),
            nn.Conv2d(cin, cout, kernel, stride, groups=groups, bias=False),
            nn.GroupNorm(1, cout),
            nn.LeakyReLU(0.2, inplace=True),
        )


class _InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, expansion: int = 2) -> None:
        super().__init__()
        wide = cin * expansion
        self.use_res_connect = cin == cout
        self.layers = nn.Sequential(
            *([_AnimeConv(cin, wide, 1)] if expansion != 1 else []),
            _AnimeConv(wide, wide, groups=wide),
            nn.Conv2d(wide, cout, 1, bias=False),
            nn.GroupNorm(1, cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.use_res_connect else y


class AnimeGan(nn.Module):
    """AnimeGANv2's generator (Chen, Liu and Chen, 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        a, b, c, d = width, 2 * width, 4 * width, 8 * width
        self.block_a = nn.Sequential(
            _AnimeConv(3, a, 7), _AnimeConv(a, b, stride=2), _AnimeConv(b, b)
        )
        self.block_b = nn.Sequential(_AnimeConv(b, c, stride=2), _AnimeConv(c, c))
        self.block_c = nn.Sequential(
            _AnimeConv(c, c),
            _InvertedResidual(c, d),
            *(_InvertedResidual(d, d) for _ in range(3)),
            _AnimeConv(d, c),
        )
        self.block_d = nn.Sequential(_AnimeConv(c, c), _AnimeConv(c, c))
        self.block_e = nn.Sequential(_AnimeConv(c, b), _AnimeConv(b, b), _AnimeConv(b, a, 7))
        self.out_layer = nn.Sequential(nn.Conv2d(a, 3, 1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_c(self.block_b(self.block_a(x)))
        x = self.block_d(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
        x = self.block_e(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
        return self.out_layer(x)
