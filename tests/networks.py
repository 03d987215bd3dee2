"""Small style networks of the usual kinds, in plain torch.nn.

pytorch/examples' TransformerNet (ReLU as a function), CycleGAN's generator (everything in a
Sequential), pix2pixHD's (one ReLU object everywhere) and MONAI's residual unit (named children,
PReLU, residual before the activation).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvLayer(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.reflection_pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(cin, cout, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(self.reflection_pad(x))


class TransformerResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels, channels, 3, 1)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = ConvLayer(channels, channels, 3, 1)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.in1(self.conv1(x)))
        return self.in2(self.conv2(y)) + x


class TransformerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvLayer(3, 8, 9, 1)
        self.in1 = nn.InstanceNorm2d(8, affine=True)
        self.conv2 = ConvLayer(8, 16, 3, 2)
        self.in2 = nn.InstanceNorm2d(16, affine=True)
        self.res1 = TransformerResidual(16)
        self.deconv1 = ConvLayer(16, 8, 3, 1)
        self.in4 = nn.InstanceNorm2d(8, affine=True)
        self.deconv2 = ConvLayer(8, 3, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.in1(self.conv1(x)))
        y = self.res1(F.relu(self.in2(self.conv2(y))))
        y = F.relu(self.in4(self.deconv1(F.interpolate(y, scale_factor=2))))
        return self.deconv2(y)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            activation,
            nn.Dropout(0.0),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    """CycleGAN's generator; pix2pixHD's uses one activation module everywhere."""

    def __init__(self, shared_activation: bool = False) -> None:
        super().__init__()
        shared = nn.ReLU(True)

        def activation() -> nn.Module:
            return shared if shared_activation else nn.ReLU(True)

        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, 8, 7),
            nn.InstanceNorm2d(8),
            activation(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.InstanceNorm2d(16, track_running_stats=True),
            activation(),
            ResnetBlock(16, activation()),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(8),
            activation(),
            nn.ReflectionPad2d(3),
            nn.Conv2d(8, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ADN(nn.Sequential):
    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.add_module("N", nn.InstanceNorm2d(channels, affine=True))
        self.add_module("A", activation)


class ResidualUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for index, activation in enumerate((nn.PReLU(), nn.LeakyReLU(0.2), nn.Sigmoid())):
            unit = nn.Sequential()
            unit.add_module("conv", nn.Conv2d(3 if index == 0 else 8, 8, 3, padding=1))
            unit.add_module("adn", ADN(8, activation))
            self.conv.add_module(f"unit{index}", unit)
        self.residual = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + self.residual(x))
