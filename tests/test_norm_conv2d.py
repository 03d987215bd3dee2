"""norm_conv2d against PyTorch's own convolutions in float64.

The grid: all pairs of options, at small odd sizes. Sizes, sums and rounding have their own tests.
"""

import pytest
import torch

from stylekernels import norm_conv2d
from tests.conftest import DTYPES, LAYOUTS, random
from tests.convolutions import (
    MODES,
    PADDING_MODES,
    assert_stats_of,
    check,
    half_padded,
    inputs,
    is_possible,
    padding_of,
)
from tests.convolve_into import convolve_into
from tests.pairwise import missing_pairs, pairwise

pytestmark = pytest.mark.usefixtures("implementation")

CHANNELS = (1, 3, 5, 16, 32, 33, 64)
OPTIONS = {
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "mode": MODES,
    "border": ("none", "half", "most"),
    "padding_mode": PADDING_MODES,
    # test_norm_conv2d_contract.py has them all.
    "activation": ("none", "relu", "leaky_relu", "tanh", "sigmoid"),
    "scale_shift": (False, True),
    "residual": (None, *LAYOUTS),
    "bias": (None, "float32", "x's"),
    "return_input": (False, True),
    "return_stats": (False, True),
    "channels": CHANNELS,
    "out_channels": CHANNELS,
    "batch": (1, 2, 3),
    "size": ((1, 11), (9, 1), (5, 7), (8, 8), (17, 33)),
}


CASES = tuple(pairwise(OPTIONS, is_possible))


def name_of(case: dict) -> str:
    upsample, kernel, stride = case["mode"]
    size = "x".join(map(str, (case["batch"], case["channels"], *case["size"])))
    dtype = str(case["dtype"]).removeprefix("torch.")
    return f"{upsample}-k{kernel}s{stride}-{dtype}-{case['layout']}-{size}-{case['out_channels']}"


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS, is_possible)


def check_case(case: dict, device: str, winograd: bool = True) -> None:
    """A case of the grid."""
    upsample, _kernel, stride = case["mode"]
    tensors = inputs(
        case["mode"],
        (case["batch"], case["channels"], *case["size"]),
        case["out_channels"],
        case["dtype"],
        case["layout"],
        device,
        shift=3.0,
        scale_shift=case["scale_shift"],
        bias=case["bias"],
        residual=case["residual"],
    )
    names = ("activation", "padding_mode", "return_input", "return_stats")
    check(
        tensors,
        stride=stride,
        padding=padding_of(case["mode"], case["border"]),
        upsample=upsample,
        winograd=winograd,
        **{name: case[name] for name in names},
    )


@pytest.mark.every_capability
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    check_case(case, device)


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_large_images(mode, dtype, layout, device) -> None:
    """Larger than any block of a loop in both directions, and not a multiple of it."""
    tensors = inputs(
        mode, (1, 19, 37, 71), 35, dtype, layout, device, scale_shift=True, residual=layout
    )
    check(tensors, activation="relu", padding_mode="reflect", **half_padded(mode))


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mode", "channels", "out_channels"),
    [
        (("none", 3, 1), 128, 128),
        (("none", 9, 1), 3, 32),
        (("none", 9, 1), 32, 3),
        (("none", 3, 2), 32, 64),
        (("none", 3, 2), 40, 16),
        (("none", 4, 2), 40, 48),
        (("none", 4, 2), 16, 8),
        (("none", 3, 1), 32, 16),
        (("none", 3, 1), 16, 8),
        (("transpose", 4, 1), 64, 32),
        (("nearest", 3, 1), 64, 32),
    ],
)
def test_layers_of_networks(mode, channels, out_channels, dtype, layout, device) -> None:
    upsample, _, _ = mode
    tensors = inputs(
        mode, (1, channels, 24, 31), out_channels, dtype, layout, device, scale_shift=True
    )
    padding_mode = "replicate" if upsample == "transpose" else "reflect"
    check(
        tensors,
        activation="relu",
        padding_mode=padding_mode,
        **half_padded(mode),
        return_input=False,
    )


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "mode", [("none", 3, 1), ("none", 7, 2), ("nearest", 3, 1), ("transpose", 3, 1)], ids=str
)
def test_inputs_with_large_means(mode, dtype, layout, device) -> None:
    """Means of 1000 deviations, which the shift removes."""
    tensors = inputs(mode, (2, 6, 13, 19), 7, dtype, layout, device, shift=1000.0, scale_shift=True)
    check(tensors, activation="relu", padding_mode="replicate", **half_padded(mode))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 1), (1, 3), (2, 2), (3, 4), (4, 6)])
def test_padding_wider_than_the_kernel(kernel, padding, dtype, padding_mode, device) -> None:
    tensors = inputs(("none", kernel, 1), (2, 5, 7, 8), 6, dtype, device=device, scale_shift=True)
    for stride in (1, 2):
        check(tensors, stride=stride, padding=padding, padding_mode=padding_mode)


@pytest.mark.filterwarnings("ignore:var_mean")  # of no image, or of one pixel
@pytest.mark.parametrize(
    "mode", [("none", 3, 1), ("none", 2, 2), ("nearest", 3, 1), ("transpose", 4, 1)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch(layout, mode, device) -> None:
    tensors = inputs(mode, (0, 3, 6, 5), 4, torch.float32, layout, device, scale_shift=True)
    check(tensors, **half_padded(mode))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_output_channels(dtype, device) -> None:
    """Nothing is convolved, but the input that is returned is complete."""
    x = torch.randn(2, 32, 6, 5, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.empty(0, 32, 3, 3, dtype=dtype, device=device)
    y, mean, _, kept = norm_conv2d(
        x, weight, activation="relu", padding=1, return_input=True, return_stats=True
    )
    assert (y.shape, mean.shape) == ((2, 0, 6, 5), (2, 0))
    assert torch.equal(kept, x.relu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_output_columns(dtype) -> None:
    """A part of a frame may be empty: every method of convolving must leave it alone."""
    ops, mode = torch.ops.stylekernels, (1, 1, "zeros", "none")
    x, weight = torch.randn(1, 32, 6, 5).to(dtype), torch.randn(32, 32, 3, 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    packed = ops.norm_conv2d_pack(weight, *mode)
    workspace = torch.empty(ops.norm_conv2d_workspace(weight, 1, 6, 5, *mode), dtype=torch.float64)
    y = torch.empty(1, 32, 4, 0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    convolve_into(y, workspace, x, weight, packed, mode)


def check_statistics_of_large_means(mode, dtype, shape, layout, device) -> None:
    """Means of 1000 deviations, by the bias: E[x^2] - E[x]^2 in float32 is wrong here, and in half
    precision the stored output has only a few values."""
    tensors = inputs(mode, shape, 9, dtype, layout, device, bias="float32")
    tensors["bias"] = tensors["bias"] * 1000
    y, mean, var, _ = norm_conv2d(**tensors, padding_mode="replicate", **half_padded(mode))
    assert (mean.abs() / var.sqrt()).median() > 100
    assert_stats_of(y, mean, var)


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "mode",
    [
        ("none", 1, 1),
        ("none", 3, 1),
        ("none", 3, 2),
        ("none", 9, 1),
        ("nearest", 3, 1),
        ("transpose", 4, 1),
    ],
    ids=str,
)
def test_statistics_of_planes_with_large_means(mode, dtype, layout, device) -> None:
    check_statistics_of_large_means(mode, dtype, (2, 5, 45, 67), layout, device)


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_twice_and_nowhere_else(dtype, device) -> None:
    """The input after the residual, the output after the bias. Half a step above 1 rounds down to
    1, and a quarter more rounds up: only if nothing was rounded before the quarter was added."""
    eps = torch.finfo(dtype).eps
    one = torch.ones(1, 1, 4, 4, dtype=dtype, device=device)
    weight = torch.ones(1, 1, 1, 1, dtype=dtype, device=device)
    up = 1 + eps

    x = torch.cat((one, one * (eps / 2)), 1)
    bias = torch.tensor([eps / 4], device=device)
    for same in (bias, bias.to(dtype)):
        y, mean, var, _ = norm_conv2d(x, weight.expand(1, 2, 1, 1), bias=same)
        assert torch.equal(y, one * up)
        assert (mean.item(), var.item()) == (up, 0.0)

    scale_shift = torch.tensor([[[1.0, eps / 2]]], device=device)
    residual = torch.full_like(one, eps / 4)
    y, _, _, given = norm_conv2d(
        one, weight, scale_shift=scale_shift, residual=residual, return_input=True
    )
    assert torch.equal(given, one * up)
    assert torch.equal(y, one * up), "the output is not that of the rounded input"

    quarter = torch.tensor([[[1.0, eps / 4]]], device=device)
    y = norm_conv2d(one, weight * 2, scale_shift=quarter, bias=bias.new_tensor([eps])).y
    assert torch.equal(y, one * 2), "the convolution saw the input before it was rounded"


def check_padded_zeros(mode: tuple[str, int, int], layout: str, device: str) -> None:
    """A shift of 100 in the padding would be the largest value in the output."""
    upsample, _, stride = mode
    tensors = inputs(mode, (1, 3, 9, 9), 4, torch.float32, layout, device)
    tensors["scale_shift"] = torch.tensor([1.0, 100.0], device=device).expand(1, 3, 2)
    check(tensors, stride=stride, padding=padding_of(mode, "most"), upsample=upsample)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_zeros_are_padded_after_normalising(mode, layout, device) -> None:
    check_padded_zeros(mode, layout, device)


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [1, 3, 16, 40])
def test_the_variance_of_equal_outputs_is_zero(outputs, dtype, device) -> None:
    for padding in range(1, 8):
        x = random(1, 1, 1, 1, dtype=dtype, device=device, seed=padding)
        weight = random(outputs, 1, 1, 1, dtype=dtype, device=device)
        result = norm_conv2d(x, weight, padding=padding, padding_mode="replicate")
        assert torch.equal(result.var, torch.zeros_like(result.var)), padding
