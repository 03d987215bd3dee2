"""The number of operations that a generator needs, counted from its config."""

from dataclasses import dataclass

from stylekernels import native
from stylekernels.models import GeneratorConfig

#: Winograd's multiplications for 4 x 4 output pixels: 6 x 6 instead of 16 times 9 taps, and 5 x 5
#: instead of 16 times 4. The second is for upsampling, where each output pixel has 2 x 2 taps, and
#: for stride 2, where the even and odd rows have two taps and one, with 5 and 4 points.
_F4X4_3X3 = 36 / (16 * 9)
_F4X4_2X2 = 25 / (16 * 4)
_F4X4_STRIDED = (5 + 4) ** 2 / (16 * 9)


def winograd_dtype(dtype: str) -> str | None:
    """The dtype that Winograd's method is computed in for a case's dtype; None if it is not used.

    On AMX our kernels multiply bfloat16 directly, in tiles. Other capabilities use the method in
    float32. Without our kernels plain PyTorch runs.
    """
    others = (None, "amx", "amx_emulated", "amx_emulated_avx512")
    if dtype == "float32" or native.cpu_capability not in others:
        return "float32"
    return None


@dataclass(frozen=True)
class Layer:
    """A convolution of the generator on a picture of some size.

    Attributes:
        name: name of the layer.
        in_channels, out_channels: Cin and Cout.
        height, width: size of its output.
        taps: multiplications per output pixel and pair of channels.
        winograd: the share of them that Winograd's method needs in float32; 1 if it is not used.
    """

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    taps: float
    winograd: float = 1.0

    @property
    def values(self) -> int:
        """The number of values in its output."""
        return self.out_channels * self.height * self.width

    @property
    def flops(self) -> float:
        """Floating-point operations of a direct convolution, two per multiply-add."""
        return 2 * self.in_channels * self.values * self.taps

    @property
    def winograd_flops(self) -> float:
        """Floating-point operations with Winograd's method if it is used, without its
        transforms."""
        return self.flops * self.winograd


def layers(config: GeneratorConfig, height: int, width: int) -> list[Layer]:
    """Return the convolutions of a generator in order, for a picture of this size.

    Upsampling counts the taps of an output pixel: a quarter of a transposed kernel, or 2 x 2 sums
    of taps for a 3 x 3 kernel over repeated pixels.
    """
    full, half, quarter = config.channels
    kernel = config.kernel_size**2
    upsample = {"transpose": 16 / 4, "transpose3": 9 / 4, "nearest": 4}[config.upsample]
    winograd = 1.0 if config.upsample == "transpose3" else _F4X4_2X2
    sizes = [(height, width)]
    for _ in range(2):  # strided layers round odd sizes up
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    at_half = tuple(2 * side for side in sizes[2])
    at_full = tuple(4 * side for side in sizes[2])  # up to three pixels more than the picture
    return [
        Layer("first", 3, full, *sizes[0], kernel),
        Layer("down 1", full, half, *sizes[1], 9, _F4X4_STRIDED),
        Layer("down 2", half, quarter, *sizes[2], 9, _F4X4_STRIDED),
        *(
            Layer(f"residual {block}.{part}", quarter, quarter, *sizes[2], 9, _F4X4_3X3)
            for block in range(1, config.residual_blocks + 1)
            for part in (1, 2)
        ),
        Layer("up 1", quarter, half, *at_half, upsample, winograd),
        Layer("up 2", half, full, *at_full, upsample, winograd),
        # The extra pixels of an odd size are in the statistics of this layer, but not in the
        # picture.
        Layer("last", full, 3, *sizes[0], kernel),
    ]


def image_bytes(config: GeneratorConfig, height: int, width: int, itemsize: int) -> int:
    """Return the bytes that a generator moves for a frame if every layer is one kernel.

    An instance norm needs all of its input before its first output. So every layer writes its
    output, and the next one reads it, with ``itemsize`` bytes a value. The input of each residual
    block is read once more. The frame and the picture are bytes.
    """
    *inner, last = layers(config, height, width)
    residuals = config.residual_blocks * inner[2].values  # of the size of `down 2`'s output
    values = 2 * sum(layer.values for layer in inner) + residuals
    return values * itemsize + 2 * last.values
