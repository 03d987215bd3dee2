"""norm_conv2d_out for difficult values: halves of bytes, large means, NaN and infinity."""

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import DTYPES, laid_out
from tests.convolutions import (
    FEW_MODES,
    PADDING_MODES,
    STRIDED_MODES,
    half_padded,
    inputs,
    padding_of,
)
from tests.norm_conv2d_out import Norm, assert_scale_shift_of, check, formula, frames, out


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "mode",
    [
        ("none", 1, 1),
        ("none", 3, 1),
        ("none", 9, 2),
        ("none", 5, 2),
        ("nearest", 3, 1),
        ("transpose", 3, 1),
    ],
    ids=str,
)
def test_bytes_are_rounded_to_nearest_even_and_clamped(mode, y_layout, dtype) -> None:
    """Kernels of a single 1 do not change the image, and the bias adds the part to round. Only for
    plain sums: Winograd's method does not compute exact halves."""
    upsample, kernel, stride = mode
    if y_layout == "channels_last":
        x = frames(1, 3, 16, 21)
    else:
        x = frames(1, 3, 16, 21).to(dtype).contiguous()
    added = torch.tensor([0.5, -0.5, 60.5, -60.5, 0.25, 1000.0, -1000.0])
    weight = torch.zeros(7, 3, kernel, kernel, dtype=dtype)
    weight[range(7), [0, 1, 2, 0, 1, 2, 0], kernel // 2, kernel // 2] = 1
    exact = x.double()[:, [0, 1, 2, 0, 1, 2, 0]]
    if upsample != "none":
        exact = exact.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if upsample == "transpose":  # the middle of the kernel sees every other row and column
        weight = weight.transpose(0, 1).contiguous()
        exact[..., 1::2, :] = exact[..., 1::2] = 0
    exact = exact[..., ::stride, ::stride] + added.double()[:, None, None]
    options = {"stride": stride, "padding": padding_of(mode, "half"), "upsample": upsample}
    y = out(x, weight, added, layout=y_layout, y_dtype=torch.uint8, **options).y
    assert torch.equal(y.double(), exact.round().clamp(0, 255))
    assert (y == 0).any()
    assert (y == 255).any()


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [*FEW_MODES, *STRIDED_MODES], ids=str)
def test_means_that_the_shift_takes_away(mode, dtype) -> None:
    """1000 deviations, with 16 channels: subtracted before Winograd's method could lose
    precision."""
    tensors = inputs(
        mode, (1, 16, 13, 19), 17, dtype, "channels_last", shift=1000.0, scale_shift=True
    )
    check(tensors, Norm(), activation="relu", padding_mode="replicate", **half_padded(mode))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", [*FEW_MODES, *STRIDED_MODES], ids=str)
def test_statistics_of_large_means(mode, dtype) -> None:
    """The mean of the output is a thousand deviations from zero."""
    tensors = inputs(mode, (2, 16, 45, 67), 17, dtype, "channels_last", bias="float32")
    tensors["bias"] = tensors["bias"] * 1000
    result = out(**tensors, norm=Norm(eps=1e-3), padding_mode="replicate", **half_padded(mode))
    assert_scale_shift_of(result.y, Norm(eps=1e-3), result.next)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [*FEW_MODES, *STRIDED_MODES, ("transpose", 3, 1)], ids=str)
def test_a_bad_pixel_reaches_what_sees_it(mode, dtype, padding_mode) -> None:
    """With 32 channels, where Winograd's method spoils tiles around the pixel and nothing else. NaN
    must not remain in the workspace either: a healthy image follows."""
    # The reach of a tile: 4 pixels, or 8 if each of its pixels belongs to a phase.
    reach = {
        ("none", 3, 1): 3,
        ("none", 3, 2): 3,
        ("none", 4, 2): 3,
        ("nearest", 3, 1): 7,
        ("transpose", 4, 1): 7,
    }.get(mode, 0)
    healthy = inputs(mode, (2, 32, 19, 23), 17, dtype, "channels_last", scale_shift=True)
    options = {"padding_mode": padding_mode, **half_padded(mode)}
    for value, (row, column) in ((torch.inf, (9, 11)), (torch.nan, (0, 22)), (-torch.inf, (18, 1))):
        x = healthy["x"].clone()
        x[0, 2, row, column] = value
        tensors = healthy | {"x": laid_out(x, "channels_last")}
        result = out(**tensors, **options, norm=Norm(), keep=True)
        exact, given = formula({k: t.double() for k, t in tensors.items()}, **options)
        bad, expected = ~result.y.isfinite(), ~exact.isfinite()
        assert bad[expected].all(), "a value that is no number was lost"
        near = F.max_pool2d(expected.double(), 2 * reach + 1, 1, reach).bool()
        assert not (bad & ~near).any(), "one bad pixel reached outputs that do not see it"
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(result.input), test(given)), test.__name__
        assert torch.equal(result.next.isfinite().all(2), exact.isfinite().all((2, 3)))
        clean = out(**healthy, **options, norm=Norm())
        assert torch.equal(result.y[1], clean.y[1])
        assert torch.equal(result.next[1], clean.next[1])
