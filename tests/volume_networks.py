"""Small networks for volumes, built as nnU-Net and MONAI build theirs, in plain torch.nn."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def affine_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True)


class ConvNormReLU(nn.Module):
    """nnU-Net's block: each layer has a name of its own, and one in a Sequential."""

    def __init__(self, cin: int, cout: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv3d(cin, cout, 3, stride, padding=1)
        self.norm = norm(cout)
        self.nonlin = nn.LeakyReLU(inplace=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, self.nonlin)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class NnUNet(nn.Module):
    """Two levels; the decoder holds the encoder once more, so that a norm has four names."""

    def __init__(self, norm: Norm = affine_norm) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([ConvNormReLU(1, 4, 1, norm), ConvNormReLU(4, 8, 2, norm)])
        self.decoder = nn.Module()
        self.decoder.encoder = self.encoder
        self.decoder.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.decoder.block = ConvNormReLU(8, 4, 1, norm)
        self.decoder.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encoder[0](x)
        up = self.decoder.up(self.encoder[1](skip))
        return self.decoder.head(self.decoder.block(torch.cat((up, skip), 1)))


class ADN(nn.Sequential):
    """MONAI's norm, dropout and activation, in this order."""

    def __init__(self, channels: int, dropout: float, activation: nn.Module) -> None:
        super().__init__()
        self.add_module("N", nn.InstanceNorm3d(channels))
        self.add_module("D", nn.Dropout(dropout))
        self.add_module("A", activation)


class ResidualUnit(nn.Module):
    def __init__(self, cin: int, cout: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for index, channels in enumerate((cin, cout)):
            unit = nn.Sequential()
            unit.add_module("conv", nn.Conv3d(channels, cout, 3, padding=1))
            activation = nn.ReLU() if index else nn.LeakyReLU(0.2, inplace=True)
            unit.add_module("adn", ADN(cout, dropout, activation))
            self.conv.add_module(f"unit{index}", unit)
        self.residual = nn.Conv3d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.residual(x)


class MonaiUNet(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        units = [ResidualUnit(1, 4, dropout), ResidualUnit(4, 4, dropout)]
        self.model = nn.Sequential(*units, nn.Conv3d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
