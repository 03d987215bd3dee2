"""norm_conv2d_out in Triton's kernels: frames in preallocated memory.

The grid: a few draws of the op's own options for each mode, so that all pairs occur in some mode,
at sizes for the interpreter. Bytes, crops and norms have their own cases.
"""

import pytest
import torch

from tests.conftest import DTYPES, TRITON
from tests.convolutions import half_padded, inputs, padding_of
from tests.norm_conv2d_out import Norm, assert_same, check, check_draws, frames, norm_of, out
from tests.test_triton_norm_conv2d import MODES

pytestmark = TRITON

FRAMES_MODES = (("none", 3, 1), ("none", 5, 2), ("nearest", 3, 1), ("transpose", 4, 1))


def with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with NaN between them."""
    return torch.stack((tensor, torch.full_like(tensor, torch.nan)), -1)[..., 0]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_options(mode, device) -> None:
    check_draws(mode, 3, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", FRAMES_MODES, ids=str)
def test_bytes_in_and_out(mode, dtype, device) -> None:
    tensors = inputs(mode, (2, 3, 9, 8), 4, dtype, device=device, bias="float32")
    tensors["x"] = frames(2, 3, 9, 8, device=device)
    tensors["bias"] = tensors["bias"] * 100 + 60  # reaches both ends of the range
    for y_dtype in (dtype, torch.uint8):
        check(tensors, padding_mode="reflect", y_dtype=y_dtype, keep=True, **half_padded(mode))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", [("none", 1, 1), *FRAMES_MODES], ids=str)
def test_bytes_are_rounded_to_nearest_even_and_clamped(mode, dtype, device) -> None:
    """Kernels of a single 1 do not change the image, and the bias adds the part to round."""
    upsample, kernel, stride = mode
    channels = [0, 1, 2, 0, 1, 2, 0]
    x = frames(1, 3, 5, 8, device=device)
    added = torch.tensor([0.5, -0.5, 60.5, -60.5, 0.25, 1000.0, -1000.0], device=device)
    weight = torch.zeros(7, 3, kernel, kernel, dtype=dtype, device=device)
    weight[range(7), channels, kernel // 2, kernel // 2] = 1
    exact = x.double()[:, channels]
    if upsample != "none":
        exact = exact.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if upsample == "transpose":
        # Output o is the sum of input i times element o + 1 - 2 i: this element is used by odd o
        # only.
        weight = weight.transpose(0, 1).contiguous()
        exact[..., ::2, :] = exact[..., ::2] = 0
    exact = exact[..., ::stride, ::stride] + added.double()[:, None, None]
    options = {"stride": stride, "padding": padding_of(mode, "half"), "upsample": upsample}
    y = out(x, weight, added, y_dtype=torch.uint8, **options).y
    assert torch.equal(y.double(), exact.round().clamp(0, 255))
    assert (y == 0).any()
    assert (y == 255).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [("none", 3, 1), ("none", 3, 2), ("none", 9, 1)], ids=str)
def test_any_crop_is_the_first_rows_and_columns(mode, dtype, device) -> None:
    _, kernel, _ = mode
    tensors = inputs(
        mode,
        (2, 9 if kernel == 3 else 3, 11, 13),
        5,
        dtype,
        "channels_last",
        device,
        scale_shift=True,
    )
    options = {**half_padded(mode), "padding_mode": "reflect"}
    whole = out(**tensors, **options).y
    height, width = whole.shape[2:]
    for rows, columns in ((1, 1), (height - 1, width), (height, width - 3), (3, 2)):
        part = out(**tensors, **options, crop=(height - rows, width - columns)).y
        assert torch.equal(part, whole[..., :rows, :columns]), (rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_any_dtype(dtype, device) -> None:
    """All that norm_scale_shift takes for all images, whatever they are."""
    tensors = inputs(("none", 3, 1), (2, 5, 9, 8), 4, torch.float32, "channels_last", device)
    for kind in ({"weight": None}, {"bias": None}, {}):
        check(tensors, norm_of("(C,)", 4, dtype, device)._replace(**kind), padding=1)


@pytest.mark.parametrize("mode", FRAMES_MODES, ids=str)
def test_parameters_with_gaps_in_memory(mode, device) -> None:
    tensors = inputs(
        mode,
        (2, 5, 9, 8),
        4,
        torch.float32,
        "channels_last",
        device,
        scale_shift=True,
        bias="float32",
    )
    norm = norm_of("(C,)", 4, torch.float32, device)
    for name in ("bias", "scale_shift"):
        tensors[name] = with_gaps(tensors[name])
    norm = norm._replace(weight=with_gaps(norm.weight), bias=with_gaps(norm.bias))
    check(tensors, norm, padding_mode="replicate", **half_padded(mode))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", FRAMES_MODES, ids=str)
def test_statistics_of_large_means(mode, dtype, device) -> None:
    """The mean of the output is a thousand deviations from zero, in several tiles."""
    tensors = inputs(mode, (1, 5, 13, 11), 5, dtype, "channels_last", device, bias="float32")
    tensors["bias"] = tensors["bias"] * 1000
    check(tensors, Norm(eps=1e-3), padding_mode="replicate", **half_padded(mode))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", FRAMES_MODES, ids=str)
def test_the_same_bits_again_and_with_more_workspace(mode, dtype, device) -> None:
    """The workspace of a network is that of its largest layer."""
    tensors = inputs(
        mode,
        (2, 5, 9, 11),
        17,
        dtype,
        "channels_last",
        device,
        scale_shift=True,
        residual="channels_last",
    )
    options = {**half_padded(mode), "activation": "relu", "keep": True, "norm": Norm()}
    first, again = (out(**tensors, **options, more_workspace=more) for more in (0, 1000))
    assert_same(first, again)
