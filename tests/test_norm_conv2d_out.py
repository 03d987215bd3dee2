"""norm_conv2d_out, the op for frames: packed weights, bytes in and out, no allocation.

Results are checked by the same rule and the same formula in float64 (`in_torch`) as norm_conv2d's.
"""

import pytest
import torch

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels
from stylekernels import native
from tests.conftest import DTYPES
from tests.convolutions import FEW_MODES, MODES, half_padded, inputs, padding_of
from tests.norm_conv2d_out import (
    Norm,
    assert_same,
    check,
    check_draws,
    frames,
    norm_of,
    out,
    threads,
)

COMPILED = native.cpu_missing is None
OPS = torch.ops.stylekernels


@pytest.mark.every_capability
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_options(mode) -> None:
    """A dozen draws for each mode: enough for all pairs of values of other options to occur in some
    mode."""
    check_draws(mode, 12)


# Tiles of 4x4, and vectors of 8 and 16 channels with a remainder; Winograd needs a panel of them.
@pytest.mark.every_capability
@pytest.mark.parametrize(
    ("channels", "out_channels", "padding_mode"),
    [
        (17, 33, "zeros"),
        (17, 33, "reflect"),
        (17, 33, "replicate"),
        (48, 16, "reflect"),
        (15, 16, "zeros"),
        (16, 15, "replicate"),
    ],
)
def test_every_size_about_a_tile(channels, out_channels, padding_mode) -> None:
    for height in range(1, 10):
        for width in range(1, 10):
            padding = 1 + (height + width) % 2 if padding_mode != "reflect" else 1
            if padding_mode == "reflect" and min(height, width) == 1:
                padding = 0
            if min(height, width) + 2 * padding < 3:
                continue
            tensors = inputs(
                ("none", 3, 1),
                (1, channels, height, width),
                out_channels,
                torch.float32,
                "channels_last",
                scale_shift=True,
            )
            check(tensors, Norm(), activation="relu", padding=padding, padding_mode=padding_mode)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "out_channels", "size"),
    [(128, 128, (14, 18 * 4 + 1)), (48, 128, (3, 129)), (128, 48, (37, 5)), (16, 33, (70, 19))],
)
def test_rows_of_many_tiles(channels, out_channels, size, layout) -> None:
    """With residuals, kept inputs and statistics, as in a residual block."""
    tensors = inputs(
        ("none", 3, 1),
        (2, channels, *size),
        out_channels,
        torch.float32,
        layout,
        scale_shift=True,
        residual=layout,
    )
    norm = norm_of("(C,)", out_channels, torch.float32)
    check(
        tensors,
        norm,
        activation="none",
        padding=1,
        padding_mode="reflect",
        layout=layout,
        keep=True,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_any_dtype(dtype) -> None:
    """Parameters that norm_scale_shift takes for all images, in any dtype."""
    tensors = inputs(("none", 3, 1), (2, 5, 9, 8), 4, torch.float32, "channels_last")
    for kind in ({"weight": None}, {"bias": None}, {}):
        check(tensors, norm_of("(C,)", 4, dtype)._replace(**kind), padding=1)


CROPPED = tuple(mode for mode in MODES if mode[0] == "none" and mode[1] % 2 == 1)


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("border", ["half", "most"])
@pytest.mark.parametrize("mode", CROPPED, ids=str)
def test_any_crop_is_the_first_rows_and_columns(mode, border, dtype) -> None:
    """Any crop down to a single pixel, odd and even. With a wide border few columns reflect pixels
    that they do not read themselves."""
    tensors = inputs(mode, (2, 16, 19, 11), 17, dtype, "channels_last", scale_shift=True)
    padding = padding_of(mode, border)
    options = {"stride": mode[2], "padding": padding, "padding_mode": "reflect"}
    whole = out(**tensors, **options).y
    height, width = whole.shape[2:]
    wrong = []
    for rows in (1, 2, 3, height // 2, height - 3, height - 1, height):
        for columns in (1, 2, 3, width // 2, width - 1, width):
            part = out(**tensors, **options, crop=(height - rows, width - columns)).y
            if not torch.equal(part, whole[..., :rows, :columns]):
                wrong.append((rows, columns))
    assert not wrong, f"of {height} rows and {width} columns"


@pytest.mark.every_capability
@pytest.mark.skipif(not COMPILED, reason="PyTorch's bits depend on the number of threads")
@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("mode", [("none", 5, 1), ("none", 9, 1), ("none", 3, 2)], ids=str)
def test_threads_do_not_meet_in_a_narrow_crop(mode, columns) -> None:
    """Rows that are computed at once. If threads shared memory, one run in twenty or more would
    fail."""
    tensors = inputs(mode, (2, 16, 19, 11), 17, torch.float32, "channels_last", scale_shift=True)
    options = {**half_padded(mode), "padding_mode": "reflect"}
    with threads(1):
        whole = out(**tensors, **options).y
    expected = whole[..., :columns]
    with threads(2):
        crop = (0, whole.shape[3] - columns)
        runs = [out(**tensors, **options, crop=crop).y for _ in range(20)]
    different = sum(not torch.equal(y, expected) for y in runs)
    assert different == 0, f"{different} of {len(runs)} runs"


@pytest.mark.skipif(not COMPILED, reason="PyTorch's bits depend on the number of threads")
@pytest.mark.parametrize("x", ["bytes", "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", FEW_MODES, ids=str)
def test_the_same_bits_run_after_run_and_for_any_number_of_threads(mode, dtype, x) -> None:
    """The statistics too: there are enough rows for several tasks, and a last short one. Also with
    a larger workspace than needed, as in a network."""
    layout = "contiguous" if x == "contiguous" else "channels_last"
    tensors = inputs(mode, (2, 16, 45, 67), 33, dtype, layout, scale_shift=True, residual=layout)
    if x == "bytes":
        tensors["x"] = frames(2, 16, 45, 67)
    options = {
        **half_padded(mode),
        "activation": "relu",
        "layout": layout,
        "keep": True,
        "norm": Norm(),
    }
    results = []
    for number in (1, 2, 3, 2):
        with threads(number):
            results.append(out(**tensors, **options, more_workspace=1000 * (number == 3)))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [*FEW_MODES, ("none", 1, 2)], ids=str)
def test_packed_weights_serve_any_size(mode, dtype) -> None:
    """Packed weights depend only on weights and mode."""
    upsample, _, stride = mode
    options = {"stride": stride, "padding": padding_of(mode, "half"), "upsample": upsample}
    packed = None
    for n, height, width in ((1, 12, 9), (3, 9, 40), (1, 12, 9)):
        tensors = inputs(mode, (n, 16, height, width), 17, dtype, "channels_last")
        if packed is None:
            packed = OPS.norm_conv2d_pack(
                tensors["weight"], stride, options["padding"], "zeros", upsample
            )
        assert_same(out(**tensors, **options, packed=packed), out(**tensors, **options))
