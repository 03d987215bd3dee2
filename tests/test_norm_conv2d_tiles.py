"""norm_conv2d in bfloat16 at the edges of AMX tiles, and the op for frames: bytes in and out, part
of the output, scratch memory that holds NaN.
"""

import pytest
import torch
from torch import Tensor

from stylekernels import norm_scale_shift
from tests.conftest import assert_accurate
from tests.convolutions import check, in_torch, inputs, padding_of
from tests.convolve_into import convolve_into

pytestmark = [pytest.mark.every_capability, pytest.mark.usefixtures("implementation")]

# 16 pixels, 32 channels and 32 outputs are multiplied at a time, of two rows; the columns of a
# kernel may stand beside few channels, or beside few outputs.
CHANNELS = (
    (1, 1),
    (3, 32),
    (3, 3),
    (5, 40),
    (10, 33),
    (31, 3),
    (32, 10),
    (33, 31),
    (64, 16),
    (40, 65),
)
MODES = (
    ("none", 1, 1),
    ("none", 3, 1),
    ("none", 9, 1),
    ("none", 3, 2),
    ("none", 4, 2),
    ("none", 9, 2),
    ("nearest", 3, 1),
    ("nearest", 5, 1),
    ("transpose", 3, 1),
    ("transpose", 4, 1),
)
SIZES = ((1, 1), (1, 16), (69, 2), (2, 15), (3, 17), (7, 31), (6, 33))  # 69 rows: 8 in a task
PADDING_MODES = ("zeros", "reflect", "replicate")


def padding_mode_for(index: int, size: tuple[int, int], mode: tuple[str, int, int]) -> str:
    wanted = PADDING_MODES[index % 3]
    upsample, kernel, _ = mode
    border = 1 if upsample == "transpose" else kernel // 2
    enough = min(size) * (2 if upsample == "nearest" else 1) > border
    return wanted if enough or wanted != "reflect" else "replicate"


@pytest.mark.bfloat16
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_edges_of_blocks(mode, channels, device) -> None:
    upsample, _, stride = mode
    for index, size in enumerate(SIZES):
        layout = ("contiguous", "channels_last")[index % 2]
        tensors = inputs(
            mode,
            (1 + index % 2, channels[0], *size),
            channels[1],
            torch.bfloat16,
            layout,
            device,
            scale_shift=index % 3 != 0,
            bias="float32" if index % 2 else None,
            residual=layout if index > 2 else None,
        )
        check(
            tensors,
            activation="relu",
            stride=stride,
            padding=padding_of(mode, "half"),
            padding_mode=padding_mode_for(index, size, mode),
            upsample=upsample,
            return_input=index % 2 == 0,
        )


@pytest.mark.bfloat16
def test_statistics_of_many_pixels(device) -> None:
    """Several times as many pixels per task as are summed in float32, with different row means."""
    tensors = inputs(
        ("none", 1, 1),
        (1, 32, 250, 170),
        40,
        torch.bfloat16,
        "channels_last",
        device,
        bias="float32",
    )
    tensors["x"] += torch.arange(250, device=device)[:, None] % 11 * 4
    check(tensors)


def frame_maker(x: Tensor, weight: Tensor, mode: tuple, layout: str):
    """Return a function that runs norm_conv2d_out in memory that holds NaN, for a size and dtype of
    the output. It returns the output, the input and, with ``statistics``, the next scale and
    shift."""
    ops = torch.ops.stylekernels
    packed = ops.norm_conv2d_pack(weight, *mode)
    cout = weight.shape[1 if mode[-1] == "transpose" else 0]
    strides = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def make(
        shape: tuple[int, int], dtype: torch.dtype, *, statistics: bool = False, **options
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        size = ops.norm_conv2d_workspace(weight, x.shape[0], *x.shape[2:], *mode)
        workspace = torch.full((size + 512,), torch.nan, dtype=torch.float64)
        y = torch.empty(x.shape[0], cout, *shape, dtype=dtype, memory_format=strides)
        y.fill_(77 if dtype == torch.uint8 else torch.nan)
        given = torch.empty_like(x, dtype=weight.dtype)
        pairs = torch.full((x.shape[0], cout, 2), torch.nan) if statistics else None
        convolve_into(
            y,
            workspace,
            x,
            weight,
            packed,
            mode,
            activation="relu",
            input=given,
            next_scale_shift=pairs,
            **options,
        )
        assert workspace[size:].isnan().all(), "more memory was written than was asked for"
        return y, given, pairs

    return make


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [(3, 32), (32, 3), (33, 40)], ids=str)
@pytest.mark.parametrize(
    "mode",
    [("none", 3, 1), ("none", 9, 1), ("none", 3, 2), ("nearest", 3, 1), ("transpose", 4, 1)],
    ids=str,
)
def test_bytes_and_parts_of_frames(mode, channels, dtype, layout, device) -> None:
    upsample, kernel, stride = mode
    options = (stride, padding_of(mode, "half"), "replicate", upsample)
    names = dict(zip(("stride", "padding", "padding_mode", "upsample"), options, strict=True))
    tensors = inputs(
        mode,
        (2, channels[0], 9, 35),
        channels[1],
        dtype,
        layout,
        device,
        scale_shift=True,
        bias="float32",
    )
    x, weight = (tensors.pop(name) for name in ("x", "weight"))
    x = (x * 50 + 100).clamp(0, 255).byte()
    tensors["scale_shift"] = tensors["scale_shift"] * torch.tensor([0.5, 10.0])
    make = frame_maker(x, weight, options, layout)

    def in_dtype(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        parameters = {"bias": tensors["bias"], "scale_shift": tensors["scale_shift"].to(dtype)}
        if dtype == torch.float64:
            parameters["bias"] = parameters["bias"].double()
        return in_torch(x.to(dtype), weight.to(dtype), activation="relu", **parameters, **names)

    (exact, exact_given), (torchs, torchs_given) = in_dtype(torch.float64), in_dtype(dtype)
    whole = exact.shape[2:]
    y, given, pairs = make(whole, dtype, statistics=True, **tensors)
    is_direct = dtype != torch.float32 or (kernel, stride) != (3, 1)
    assert_accurate(y, torchs, exact, "output", at_least=0.0 if is_direct else 5e-6)
    assert_accurate(given, torchs_given, exact_given, "input")
    var, mean = torch.var_mean(y.double(), (2, 3), correction=0)
    assert_accurate(pairs, norm_scale_shift(mean.float(), var.float()), norm_scale_shift(mean, var))

    parts = ((whole[0] - 1, whole[1] - 1), (1, 1), (1, whole[1]))
    for rows, columns in parts if upsample == "none" else ():
        part, _, _ = make((rows, columns), dtype, **tensors)
        assert_accurate(part, y[..., :rows, :columns].contiguous(), exact[..., :rows, :columns])
    frame, _, _ = make(whole, torch.uint8, **tensors)
    assert torch.equal(frame, y.float().round().clamp(0, 255).byte())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_needs_no_more_memory_than_the_whole(dtype) -> None:
    """64 rows could be divided into 16 tasks, 65 rows into 9."""
    tensors = inputs(("none", 3, 1), (1, 3, 65, 20), 4, dtype)
    make = frame_maker(tensors["x"], tensors["weight"], (1, 1, "reflect", "none"), "contiguous")
    whole, part = make((65, 20), dtype)[0], make((64, 20), dtype)[0]
    assert torch.equal(part, whole[:, :, :64])
