"""norm_conv2d in Triton's kernels.

The grid: pairs of all options of the op's own test, at sizes that take Triton's interpreter a
fraction of a second. 143 pixels are two tiles of output pixels, 9 input channels the fewest that
are filled up to a multiple of 8, 40 more than one step takes. Winograd's method is not used. Tests
of the op that hold for every implementation are imported.
"""

import pytest
import torch

from stylekernels import norm_conv2d
from stylekernels.triton import moments
from stylekernels.triton.conv_geometry import Geometry
from tests.conftest import DTYPES, LAYOUTS, TRITON
from tests.convolutions import FEW_MODES, PADDING_MODES, check, half_padded, inputs, is_possible
from tests.pairwise import missing_pairs, pairwise
from tests.test_norm_conv2d import (
    OPTIONS,
    check_case,
    check_padded_zeros,
    check_statistics_of_large_means,
    name_of,
    test_empty_batch,  # noqa: F401
    test_half_precision_is_rounded_twice_and_nowhere_else,  # noqa: F401
    test_padding_wider_than_the_kernel,  # noqa: F401
)
from tests.test_norm_conv2d_contract import (
    check_bad_pixels,
    test_a_bias_of_nan_with_all_bits_set_stays_nan,  # noqa: F401
    test_activations_of_bad_values,  # noqa: F401
    test_the_result_is_always_the_same_four,  # noqa: F401
)

pytestmark = TRITON

MODES = (
    ("none", 1, 1),
    ("none", 1, 2),
    ("none", 2, 1),
    ("none", 3, 1),
    ("none", 3, 2),
    ("none", 4, 2),
    ("none", 5, 1),
    ("none", 9, 1),
    ("nearest", 3, 1),
    ("nearest", 5, 1),
    ("transpose", 3, 1),
    ("transpose", 4, 1),
)
SMALL_OPTIONS = OPTIONS | {
    "mode": MODES,
    "channels": (1, 3, 8, 9, 17, 40),
    "out_channels": (1, 3, 17, 33),
    "batch": (1, 2),
    "size": ((1, 11), (9, 1), (5, 7), (8, 8), (13, 11)),
}
CASES = tuple(pairwise(SMALL_OPTIONS, is_possible))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, SMALL_OPTIONS, is_possible)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    check_case(case, device, winograd=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [("none", 3, 1), ("nearest", 3, 1)], ids=str)
def test_several_blocks_of_channels_and_of_pixels(mode, dtype, device) -> None:
    """A tile has 128 output channels, or 16 for float64, which has several tiles here."""
    tensors = inputs(
        mode,
        (1, 70, 9, 15),
        130,
        dtype,
        "channels_last",
        device,
        scale_shift=True,
        residual="channels_last",
    )
    check(tensors, activation="relu", padding_mode="replicate", winograd=False, **half_padded(mode))


@pytest.mark.parametrize(("dtype", "out_channels"), [(torch.float32, 8), (torch.bfloat16, 64)])
@pytest.mark.parametrize(
    "mode", [("nearest", 3, 1), ("transpose", 4, 1), ("transpose", 3, 1)], ids=str
)
def test_blocks_that_are_a_row_of_their_groups(mode, dtype, out_channels, device) -> None:
    """Such a tile reads only the window rows that its pixels depend on."""
    upsample, kernel, _ = mode
    padding = kernel // 2 if upsample == "nearest" else 0
    geometry = Geometry.of(kernel, 9, out_channels, 1, padding, "replicate", upsample)
    further, rows = geometry.rows_of_group_row
    assert (further, rows) == ((0, 2) if mode == ("transpose", 3, 1) else (1, 2))
    assert further == 0 or rows < geometry.window[0]
    tensors = inputs(
        mode, (1, 9, 5, 7), out_channels, dtype, "channels_last", device, scale_shift=True
    )
    check(tensors, activation="relu", padding_mode="replicate", winograd=False, **half_padded(mode))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", [("none", 1, 1), ("none", 3, 2)], ids=str)
def test_a_border_around_small_kernels(mode, padding_mode, dtype, device) -> None:
    """sigmoid does not map the zeros around an image to zero. The image itself is not returned."""
    _, _, stride = mode
    tensors = inputs(
        mode, (2, 17, 7, 9), 5, dtype, "channels_last", device, scale_shift=True, bias="x's"
    )
    check(
        tensors,
        activation="sigmoid",
        stride=stride,
        padding=1,
        padding_mode=padding_mode,
        return_input=False,
        winograd=False,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [*FEW_MODES, ("none", 3, 2)], ids=str)
def test_inputs_with_large_means(mode, dtype, device) -> None:
    """Means of 1000 deviations, which the shift removes, with few channels and with more."""
    _, kernel, _ = mode
    for channels in (6, 9) if kernel < 9 else (6,):
        tensors = inputs(
            mode, (1, channels, 7, 9), 7, dtype, device=device, shift=1000.0, scale_shift=True
        )
        check(
            tensors,
            activation="relu",
            padding_mode="replicate",
            **half_padded(mode),
            winograd=False,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [("none", 1, 1), *FEW_MODES], ids=str)
def test_statistics_of_planes_with_large_means(mode, dtype, device) -> None:
    layout = LAYOUTS[DTYPES.index(dtype) % 2]
    check_statistics_of_large_means(mode, dtype, (1, 5, 17, 16), layout, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_tiles_than_are_merged_at_once(dtype, device, monkeypatch) -> None:
    monkeypatch.setattr(moments, "MERGED", 2)
    monkeypatch.setattr(moments, "_MERGED_FIRST", 2)
    tensors = inputs(("none", 3, 1), (2, 9, 19, 17), 7, dtype, device=device, shift=100.0)
    check(tensors, padding=1, padding_mode="zeros", winograd=False)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_zeros_are_padded_after_normalising(mode, device) -> None:
    check_padded_zeros(mode, LAYOUTS[MODES.index(mode) % 2], device)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(
    ("mode", "channels", "dtype"),
    [
        (("none", 3, 1), 5, torch.float32),
        (("none", 9, 2), 5, torch.bfloat16),
        (("none", 3, 1), 9, torch.bfloat16),
        (("none", 3, 2), 9, torch.float32),
        (("nearest", 3, 1), 5, torch.float32),
        (("transpose", 4, 1), 5, torch.bfloat16),
        (("none", 9, 1), 3, torch.float32),
        (("none", 5, 1), 12, torch.bfloat16),
    ],
    ids=str,
)
def test_a_bad_pixel_reaches_what_sees_it(mode, channels, dtype, padding_mode, device) -> None:
    spoilt = 3 if mode[1] >= 5 else 1 if mode[0] != "none" else 0
    check_bad_pixels(
        mode,
        3,
        dtype,
        shape=(2, channels, 11, 12),
        spoilt=spoilt,
        layout="channels_last",
        padding_mode=padding_mode,
        device=device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", FEW_MODES, ids=str)
def test_deterministic(mode, dtype, device) -> None:
    tensors = inputs(
        mode, (1, 5, 13, 11), 17, dtype, device=device, scale_shift=True, residual="contiguous"
    )
    first, again = (
        norm_conv2d(**tensors, activation="relu", return_input=True, **half_padded(mode))
        for _ in range(2)
    )
    assert all(map(torch.equal, first, again))
