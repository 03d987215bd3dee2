"""norm_conv2d at the two ends of a generator: large kernels with few channels in or out."""

import pytest
import torch

from tests.conftest import LAYOUTS, assert_accurate
from tests.convolutions import PADDING_MODES, check, in_torch, inputs
from tests.convolve_into import convolve_into

pytestmark = pytest.mark.usefixtures("implementation")

# Tiles of 3x3 outputs, two dozen at a time or 64. A width of 93 is 31 tiles: with the two tiles to
# their right that a kernel of 9 reads, one more than whole vectors of 16, 8 or 4 tiles.
ENDS = [
    *((3, out_channels, 9) for out_channels in (4, 16, 33)),
    *((channels, 17, 9) for channels in (1, 5, 8)),
    *((1, 1, 9), (8, 2, 9), (19, 3, 9), (32, 3, 9)),
    *((3, 9, kernel) for kernel in (5, 7, 8)),
    *((9, 3, kernel) for kernel in (5, 6, 7)),
]
END_SIZES = [
    *((1, 1), (3, 2), (4, 7), (12, 72), (13, 73), (2, 74), (50, 9), (7, 192), (5, 199)),
    (3, 93),
]


@pytest.mark.every_capability
@pytest.mark.parametrize(
    ("end", "dtype"),
    [*((end, torch.float32) for end in ENDS), *((end, torch.bfloat16) for end in ENDS[1:9:7])],
    ids=str,
)
def test_ends_of_a_generator(end, dtype, device) -> None:
    """Output sizes around multiples of a tile, of a block of tiles and of a task's rows."""
    channels, out_channels, kernel = end
    for index, (height, width) in enumerate(END_SIZES):
        padding_mode, layout = PADDING_MODES[index % 3], LAYOUTS[index % 2]
        padding = min(kernel // 2, min(height, width) - 1) if padding_mode == "reflect" else 4
        if min(height, width) + 2 * padding < kernel:
            height, width = height + kernel, width + kernel
        tensors = inputs(
            ("none", kernel, 1),
            (1 + index % 2, channels, height, width),
            out_channels,
            dtype,
            layout,
            device,
            scale_shift=True,
            bias="float32",
            residual=layout,
        )
        check(tensors, activation="relu", padding=padding, padding_mode=padding_mode)


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "width"), [(64, 14), (32, 6), (32, 18)])
def test_planes_in_scratch_as_far_apart_as_pixels(channels, width, dtype, device) -> None:
    """With vectors of 16, 8 and 4 values. Few outputs are computed from planes."""
    tensors = inputs(("none", 3, 1), (1, channels, 3, width), 3, dtype, "channels_last", device)
    check(tensors, padding=1, padding_mode="zeros")


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "out_channels"), [(3, 32), (4, 3), (32, 3), (32, 2), (9, 1)])
def test_bytes_and_cropped_outputs_at_the_ends(channels, out_channels, dtype, layout) -> None:
    """`norm_conv2d_out`: bytes in and out, statistics for the next layer, and an output with only
    the first rows and columns."""
    ops, mode = torch.ops.stylekernels, (1, 4, "reflect", "none")
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (2, channels, 23, 76), dtype=torch.uint8, generator=generator)
    x = x.to(memory_format=memory_format)
    tensors = inputs(("none", 9, 1), (2, channels, 23, 76), out_channels, dtype, bias="float32")
    weight, bias = tensors["weight"] * 0.3, tensors["bias"] + 100
    exact, _ = in_torch(
        x.double(), weight.double(), bias.double(), padding=4, padding_mode="reflect"
    )
    torchs, _ = in_torch(x.to(dtype), weight, bias, padding=4, padding_mode="reflect")
    packed = ops.norm_conv2d_pack(weight, *mode)
    size = ops.norm_conv2d_workspace(weight, 2, 23, 76, *mode)
    memory = torch.full((size,), torch.nan, dtype=torch.float64)
    for rows, columns in ((23, 76), (22, 74), (1, 1), (19, 73)):
        for y_dtype in (dtype, torch.uint8):
            y = torch.empty(
                2, out_channels, rows, columns, dtype=y_dtype, memory_format=memory_format
            )
            whole = (rows, columns) == (23, 76)
            pairs = torch.empty(2, out_channels, 2) if whole else None
            convolve_into(y, memory, x, weight, packed, mode, bias=bias, next_scale_shift=pairs)
            part = exact[..., :rows, :columns]
            if y_dtype == torch.uint8:
                step = torch.finfo(dtype).eps * 256 + 0.5 if dtype != torch.float32 else 0.501
                assert ((y.double() - part.clamp(0, 255)).abs() <= step).all()
                continue
            assert_accurate(y, torchs[..., :rows, :columns], part)
            if not whole:
                continue
            var, mean = torch.var_mean(y.double(), (2, 3), correction=0)
            scale = (var + 1e-5).rsqrt()
            expected = torch.stack((scale, -mean * scale), 2)
            assert_accurate(pairs, expected.float(), expected)
