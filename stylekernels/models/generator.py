"""The reference generator: an image transformation network with instance norm."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from stylekernels.models.network_config import NetworkConfig
from stylekernels.nn import InstanceNorm2d, UpsampleBlock

UPSAMPLINGS = ("transpose", "transpose3", "nearest")
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class GeneratorConfig(NetworkConfig):
    """The architecture of a :class:`Generator`.

    Attributes:
        channels: width at full, half and quarter size.
        residual_blocks: number of residual blocks at quarter size.
        kernel_size: side of the first and last kernel, odd, at most 31.
        upsample: ``transpose`` (4x4 kernel, stride 2), ``transpose3`` (3x3, stride 2), both with
            replicated borders, or ``nearest`` (pixels repeated, then a 3x3 convolution with
            reflected borders).
        value_range: the network inside works on images in 0..value_range (255 for
            fast-neural-style checkpoints); outside it is always [0, 1]. The larger it is, the
            less one step of Adam changes a picture: at 1 the last layer's 9x9 kernels can turn
            white to black in a single step, and training starts with chaos.
        eps: added to the variance by instance norm.

    Raises:
        ValueError: for a value that is not allowed.
    """

    channels: tuple[int, int, int] = (32, 64, 128)
    residual_blocks: int = 5
    kernel_size: int = 9
    upsample: Literal["transpose", "transpose3", "nearest"] = "transpose"
    value_range: float = 8.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        # JSON has lists only; equality and hashing want a tuple.
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.channels) != 3 or not all(_positive_int(c) for c in self.channels):
            raise ValueError(f"channels: expected three positive widths, got {self.channels}")
        if not _positive_int(self.residual_blocks):
            raise ValueError(
                f"residual_blocks: expected a positive number, got {self.residual_blocks!r}"
            )
        if not _positive_int(self.kernel_size) or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {self.kernel_size!r}")
        if self.kernel_size // 2 >= SMALLEST_SIDE:
            raise ValueError(f"kernel_size: expected at most 31, got {self.kernel_size}")
        if self.upsample not in UPSAMPLINGS:
            raise ValueError(
                f"upsample: expected one of {', '.join(UPSAMPLINGS)}, got {self.upsample!r}"
            )
        for name in ("value_range", "eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    @classmethod
    def lite(cls, **changes: Any) -> "GeneratorConfig":
        """The half-width preset: 16, 32 and 64 channels, a quarter of the arithmetic."""
        return cls(**{"channels": (16, 32, 64), **changes})


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_size(name: str, height: int, width: int) -> None:
    """Raise ValueError for images that are too small to be reflected at their borders."""
    if height < SMALLEST_SIDE or width < SMALLEST_SIDE:
        raise ValueError(
            f"{name}: expected at least {SMALLEST_SIDE} pixels a side, got {width}x{height}; "
            "enlarge the image first"
        )


class ConvBlock(nn.Module):
    """Reflection padding, convolution, instance norm and activation.

    The convolution has no bias: instance norm would cancel it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        eps: float,
        stride: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.conv = _reflect_conv2d(in_channels, out_channels, kernel_size, stride, bias=False)
        self.norm = InstanceNorm2d(out_channels, eps, affine=True, activation=activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x), residual)


class ResidualBlock(nn.Module):
    """Two convolutions whose normalised result is added to the input, without a last ReLU."""

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels, 3, eps=eps)
        self.second = ConvBlock(channels, channels, 3, eps=eps, activation="none")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), residual=x)


class Generator(nn.Module):
    """The network of a style generator; `stylekernels.models.StyleGenerator` adds its files.

    Args:
        config: widths, depth, upsampling; the default is the 32-64-128 network with five
            residual blocks.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", 2016, with instance norm (Ulyanov et al., "Improved texture networks",
    2017) and reflection padding.
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        full, half, quarter = config.channels
        self.down = nn.Sequential(
            ConvBlock(3, full, config.kernel_size, eps=config.eps),
            ConvBlock(full, half, 3, stride=2, eps=config.eps),
            ConvBlock(half, quarter, 3, stride=2, eps=config.eps),
        )
        self.residual = nn.Sequential(
            *(ResidualBlock(quarter, eps=config.eps) for _ in range(config.residual_blocks))
        )
        self.up = nn.Sequential(
            _upsample_block(quarter, half, config), _upsample_block(half, full, config)
        )
        self.to_rgb = _reflect_conv2d(full, 3, config.kernel_size, 1, bias=True)
        nn.init.constant_(self.to_rgb.bias, 0.5 * config.value_range)

    def forward(self, x: Tensor) -> Tensor:
        """Stylise images.

        Args:
            x: (N, 3, H, W), RGB in [0, 1], both sides at least 16; any floating dtype the
                weights have.

        Returns:
            Images of the same shape, dtype and layout, in [0, 1]. In training mode they are not
            clamped: a pixel that is too bright or too dark must feel its gradient, else it stays
            a white or black blob for good.

        Raises:
            ValueError: if x has another shape or is smaller.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected RGB images (N, 3, H, W), got {tuple(x.shape)}")
        height, width = x.shape[2], x.shape[3]
        check_size("x", height, width)
        scale = self.config.value_range
        y = self.down(x * scale)
        # Strided layers round an odd size up; the surplus rows and columns are cut off again.
        y = self.to_rgb(self.up(self.residual(y)))[..., :height, :width]
        y = y / scale
        return y if self.training else y.clamp(0, 1)


def _reflect_conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool
) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride,
        padding=kernel_size // 2, padding_mode="reflect", bias=bias,
    )  # fmt: skip


def _upsample_block(in_channels: int, out_channels: int, config: GeneratorConfig) -> UpsampleBlock:
    """Zero borders would draw a frame around every picture; bilinear taps draw no checkerboard."""
    nearest = config.upsample == "nearest"
    return UpsampleBlock(
        in_channels,
        out_channels,
        kernel_size=4 if config.upsample == "transpose" else 3,
        upsample="nearest" if nearest else "transpose",
        padding_mode="reflect" if nearest else "replicate",
        eps=config.eps,
    ).init_bilinear_()
