"""instance_norm, instance_norm_stats and their gradients in Triton's kernels.

The grid: pairs of all options, since each case takes Triton's interpreter a tenth of a second. A
program takes several planes of some shapes, one of others, and a chunk of the largest (61x67 pixels
contiguous, 31x33 channels_last). Chunks of several tiles have their own test, since sums are
carried from tile to tile. Tests of the op that hold for every implementation are imported.
"""

import pytest
import torch

from stylekernels import instance_norm, instance_norm_stats
from tests.conftest import (
    DTYPES,
    LAYOUTS,
    TRITON,
    poisoned_memory,
    random,
    relative_errors,
)
from tests.instance_norms import ACTIVATIONS, exact, in_torch, ours, per_channel
from tests.pairwise import missing_pairs, name_of, pairwise
from tests.test_instance_norm import (
    check,
    check_stats,
    test_eps,  # noqa: F401
    test_expanded_input_and_gradient,  # noqa: F401
    test_nan_and_inf_go_where_torch_sends_them,  # noqa: F401
    test_nan_with_all_bits_set_stays_nan,  # noqa: F401
    test_planes_of_one_and_two_pixels,  # noqa: F401
    test_planes_without_pixels,  # noqa: F401
    test_saturated_activations_stay_finite,  # noqa: F401
    test_sigmoid_far_below_zero_is_zero,  # noqa: F401
    test_stats_of_another_call_give_the_same_output_and_gradient,  # noqa: F401
)
from tests.test_instance_norm_gradients import (
    check_derivatives,
    test_a_gradient_alone_is_the_one_among_all,  # noqa: F401
    test_backward_keeps_only_the_input,  # noqa: F401
    test_gradient_penalty,  # noqa: F401
)

pytestmark = TRITON

SHAPES = (
    (0, 8, 4, 4),
    (1, 1, 2, 2),
    (3, 3, 3, 5),
    (2, 5, 1, 37),
    (2, 5, 37, 1),
    (2, 33, 5, 3),
    (1, 3, 61, 67),
    (1, 17, 31, 33),
)
OPTIONS = {
    "shape": SHAPES,
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "activation": tuple(ACTIVATIONS),
    "weight": ("none", "(C,)", "(N, C)"),
    "bias": ("none", "(C,)", "(N, C)"),
    "stats": ("none", "(C,)", "(N, C)"),
    "parameters": ("float32", "x's"),
    "residual": (None, *LAYOUTS),
    "residual_first": (False, True),
}
STATS_OPTIONS = {
    "shape": (*SHAPES, (1, 1, 1, 1)),
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "which": (0, 1),
    "shift": (0, 1000),
}
CASES = tuple(pairwise(OPTIONS))
STATS_CASES = tuple(pairwise(STATS_OPTIONS))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)
    assert not missing_pairs(STATS_CASES, STATS_OPTIONS)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    shape, dtype = case["shape"], case["dtype"]
    x = random(
        *shape, dtype=dtype, layout=case["layout"], device=device, scale=2.0, shift=0.3, seed=1
    )
    parameter_dtype = dtype if case["parameters"] == "x's" else torch.float32
    tensors = {"x": x}
    for seed, name in enumerate(("weight", "bias"), 1):
        tensors[name] = per_channel(case[name], x, parameter_dtype, seed)
    if case["residual"] is not None:
        tensors["residual"] = random(
            *shape, dtype=dtype, layout=case["residual"], device=device, seed=5
        )
    tensors["mean"] = per_channel(case["stats"], x, parameter_dtype, 6)
    tensors["var"] = per_channel(case["stats"], x, parameter_dtype, 7, positive=True)
    options = {name: case[name] for name in ("activation", "residual_first")}
    check(tensors, case["grad_layout"], **options)


def test_sums_of_chunks_that_cancel(device) -> None:
    """Chunks are merged in float64: what is left of large sums of opposite sign is exact."""
    x = random(1, 1, 96, 85, device=device)
    bias = torch.zeros(1, device=device, requires_grad=True)
    grad = torch.zeros_like(x)
    grad[..., 0, 0], grad[..., 40, :], grad[..., -1, -1] = 2.0**30, 1.0, -(2.0**30)
    instance_norm(x, bias=bias).backward(grad)
    assert bias.grad.item() == 85


@pytest.mark.parametrize("case", STATS_CASES, ids=name_of)
def test_stats(case, device) -> None:
    names = ("dtype", "layout", "shift")
    x = random(*case["shape"], device=device, **{name: case[name] for name in names})
    check_stats(x, case["which"])


@pytest.mark.parametrize(
    ("dtype", "shift"),
    [(torch.float32, 1000), (torch.bfloat16, 3), (torch.float16, 1000), (torch.float64, 1000)],
)
@pytest.mark.parametrize(
    ("shape", "layout"), [((1, 5, 130, 131), "contiguous"), ((1, 70, 31, 33), "channels_last")]
)
def test_chunks_of_several_tiles(shape, layout, dtype, shift, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=shift)
    residual = random(*shape, dtype=dtype, layout=layout, device=device, seed=1)
    check({"x": x, "residual": residual}, activation="relu")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 5, 37), (2, 17, 3, 5, 7), (1, 3, 4, 31, 33)])
def test_signals_and_volumes(shape, layout, device) -> None:
    x = random(*shape, layout=layout, device=device, shift=10.0)
    weight = random(shape[1], device=device, seed=1)
    residual = random(*shape, layout=layout, device=device, seed=2)
    tensors = {"x": x, "weight": weight, "residual": residual}
    check(tensors, activation="leaky_relu", residual_first=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "shift"), [(1, 1000), (1e-3, 0), (1e4, 0), (30, -1000)])
def test_magnitudes(scale, shift, dtype, layout, device) -> None:
    x = random(2, 3, 9, 11, dtype=dtype, layout=layout, device=device, scale=scale, shift=shift)
    check({"x": x}, activation="none")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 3, 61, 67), (1, 17, 31, 33)])
def test_a_large_mean_takes_no_digits(shape, layout, device) -> None:
    """The mean is stored in two numbers. In one number, as in PyTorch, its error would be 3e-5
    deviations, and so would that of the result."""
    x = random(*shape, layout=layout, device=device, shift=1000.0).requires_grad_()
    wide = x.detach().double().requires_grad_()
    cotangent = random(*shape, device=device, seed=1)
    y, expected = ours(x, activation="tanh"), exact(wide, activation="tanh")
    (grad,) = torch.autograd.grad(y, x, cotangent)
    (grad_expected,) = torch.autograd.grad(expected, wide, cotangent.double())
    for actual, wanted in ((y, expected), (grad, grad_expected)):
        assert max(relative_errors(actual.detach(), wanted.detach())) < 1e-6


@pytest.mark.parametrize("pixel", [(0, 0), (30, 7)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_pixel_of_a_plane_in_chunks(value, pixel, device) -> None:
    """Including the first pixel, the reference value of the sums."""
    x = random(1, 3, 61, 67, device=device)
    x[0, 1][pixel] = value
    x.requires_grad_()
    cotangent = random(*x.shape, device=device, seed=1)
    results = []
    for function in (ours, in_torch):
        y = function(x, activation="sigmoid")
        results.append((y, *torch.autograd.grad(y, x, cotangent)))
    for actual, expected in zip(*results, strict=True):
        assert actual[0, 1].isnan().all()
        torch.testing.assert_close(actual, expected, equal_nan=True)
    mean, var = instance_norm_stats(x.detach())
    torch.testing.assert_close(mean, x.detach().mean((2, 3)), equal_nan=True)
    assert torch.equal(var.isnan(), torch.tensor([[False, True, False]], device=device))


@pytest.mark.parametrize(
    ("activation", "stats", "residual_first"),
    [
        ("relu", "none", True),
        ("leaky_relu", "(N, C)", True),
        ("tanh", "(C,)", False),
        ("sigmoid", "none", False),
    ],
)
def test_gradcheck(activation, stats, residual_first, device) -> None:
    check_derivatives(activation, stats, residual_first, device, fast_mode=True)


def test_gradcheck_of_stats(device) -> None:
    x = random(2, 2, 3, 2, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(instance_norm_stats, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(instance_norm_stats, (x,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "layout"), [((1, 3, 61, 67), "contiguous"), ((2, 17, 13, 11), "channels_last")]
)
def test_deterministic_and_equal_without_grad(shape, layout, dtype, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device).requires_grad_()
    weight = random(shape[1], device=device).requires_grad_()
    cotangent = random(*x.shape, dtype=dtype, device=device, seed=1)
    runs = []
    for _ in range(2):
        y = instance_norm(x, weight, activation="relu")
        runs.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
    with torch.no_grad(), poisoned_memory():
        assert torch.equal(instance_norm(x, weight, activation="relu"), runs[0][0])
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)
