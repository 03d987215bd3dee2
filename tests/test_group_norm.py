"""group_norm against formulas written here in float64.

Its kernels are those of instance norm, whose tests cover vector tails, alignment and options. The
grid here is of what groups add: their number, how a kernel divides them among tasks (groups of
whole planes, planes, chunks of planes, images), and ranks.
"""

import pytest
import torch
from torch.nn import functional as F

from stylekernels import group_norm, instance_norm
from tests.conftest import (
    DTYPES,
    LAYOUTS,
    Recorder,
    assert_layout_of,
    assert_op_accurate,
    assert_same_strides,
    poisoned_memory,
    random,
    relative_errors,
    saved_image_bytes,
)
from tests.group_norms import before_activation, exact, in_torch, ours
from tests.instance_norms import ACTIVATIONS, per_channel
from tests.pairwise import missing_pairs, name_of, pairwise

pytestmark = pytest.mark.usefixtures("implementation")

# Shape and number of groups. The last ones are planes in chunks, contiguous and not.
SHAPES = (
    ((0, 8, 4, 4), 2),
    ((3, 6), 3),
    ((2, 6, 37), 1),
    ((2, 32, 9, 7), 32),
    ((3, 32, 5, 3), 8),
    ((1, 18, 17, 31), 3),
    ((2, 12, 3, 5, 7), 4),
    ((1, 6, 1, 2, 3, 4), 2),
    ((1, 4, 130, 267), 2),
    ((1, 6, 9, 70, 67), 1),
)
OPTIONS = {
    "of_shape": SHAPES,
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "activation": tuple(ACTIVATIONS),
    "weight": ("none", "(C,)", "(N, C)"),
    "bias": ("none", "(C,)", "(N, C)"),
    "parameters": ("float32", "x's"),
    "residual": (None, *LAYOUTS),
    "residual_first": (False, True),
}
CASES = tuple(pairwise(OPTIONS))


def check(tensors, grad_layout="contiguous", **options) -> None:
    def away_from_kinks(**wide):
        first = options.get("residual_first", False) and wide.get("residual") is not None
        z = before_activation(**wide, groups=options["groups"], residual_first=first)
        return z.abs() > 1e-2

    assert_op_accurate(
        lambda **t: ours(**t, **options),
        lambda **t: in_torch(**t, **options),
        lambda **t: exact(**t, **options),
        tensors,
        away_from_kinks=away_from_kinks if "relu" in options.get("activation", "none") else None,
        grad_layout=grad_layout,
    )


def check_case(case, device) -> None:
    (shape, groups), dtype = case["of_shape"], case["dtype"]
    x = random(*shape, dtype=dtype, layout=case["layout"], device=device, scale=2.0, shift=0.3)
    parameter_dtype = dtype if case["parameters"] == "x's" else torch.float32
    parameter_dtype = torch.float64 if dtype == torch.float64 else parameter_dtype
    tensors = {"x": x}
    for seed, name in enumerate(("weight", "bias"), 1):
        tensors[name] = per_channel(case[name], x, parameter_dtype, seed)
    if case["residual"] is not None:
        tensors["residual"] = random(
            *shape, dtype=dtype, layout=case["residual"], device=device, seed=5
        )
    options = {name: case[name] for name in ("activation", "residual_first")}
    check(tensors, case["grad_layout"], groups=groups, **options)


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    check_case(case, device)


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "shift"), [(1, 1000), (1e-3, 0), (1e4, 0), (30, -1000)])
def test_magnitudes(scale, shift, dtype, layout, device) -> None:
    shape = (2, 6, 61, 67)
    x = random(*shape, dtype=dtype, layout=layout, device=device, scale=scale, shift=shift)
    check({"x": x}, groups=2)


@pytest.mark.every_capability
@pytest.mark.parametrize("groups", [4, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_of_a_part_of_a_vector(dtype, groups, device) -> None:
    """Planes shorter than a vector, and planes that end within one."""
    for pixels in (3, 9, 10, 11, 15, 16, 17, 31, 33, 49, 63, 65, 127, 511, 517):
        x, residual = (random(4, 12, 1, pixels, dtype=dtype, device=device, seed=s) for s in (3, 4))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weight, bias = (per_channel("(C,)", x, wide, seed) for seed in (1, 2))
        tensors = {"x": x + 0.5, "weight": weight, "bias": bias, "residual": residual}
        check(tensors, groups=groups, activation="silu", residual_first=True)


@pytest.mark.parametrize("implementation", ["kernels", "triton"], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("channels", "groups"), [(4, 2), (64, 16)])
def test_a_large_mean_takes_no_digits(channels, groups, layout, implementation, device) -> None:
    """Channels have different means near 1000. Their moments are merged exactly, and the mean is
    stored in two numbers."""
    means = random(1, channels, 1, 1, device=device, scale=3.0, shift=1000.0, seed=7)
    x = random(1, channels, 21, 23, layout=layout, device=device) + means
    x = x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    cotangent = random(*x.shape, device=device, seed=1, shift=0.5)
    y, expected = (f(t, groups=groups, activation="tanh") for f, t in ((ours, x), (exact, wide)))
    (grad,) = torch.autograd.grad(y, x, cotangent)
    (grad_expected,) = torch.autograd.grad(expected, wide, cotangent.double())
    for actual, wanted in ((y, expected), (grad, grad_expected)):
        assert max(relative_errors(actual.detach(), wanted.detach())) < 1e-6


@pytest.mark.parametrize("implementation", ["kernels", "triton"], indirect=True)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_as_many_groups_as_channels_are_instance_norm(layout, implementation, device) -> None:
    x = random(2, 17, 9, 7, layout=layout, device=device)
    assert torch.equal(group_norm(x, 17, activation="silu"), instance_norm(x, activation="silu"))


def test_one_group_is_layer_norm(device) -> None:
    x = random(3, 5, 6, 7, device=device)
    torch.testing.assert_close(group_norm(x, 1), F.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "groups"), [((2, 4, 3, 2), 2), ((1, 3, 4), 1)])
def test_derivatives(shape, groups, activation, device) -> None:
    x = random(*shape, dtype=torch.float64, device=device, seed=4)
    tensors = {
        "x": x,
        "weight": per_channel("(C,)", x, torch.float64, 1),
        "bias": per_channel("(N, C)", x, torch.float64, 2),
        "residual": random(*shape, dtype=torch.float64, device=device, seed=3),
    }
    assert before_activation(**tensors, groups=groups, residual_first=True).abs().min() > 1e-3

    def function(*values):
        return ours(*values, groups=groups, activation=activation, residual_first=True)

    inputs = [tensor.requires_grad_() for tensor in tensors.values()]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 6, 4, 5), (2, 6, 4, 5, 6)])
def test_nothing_is_copied_or_kept(shape, layout, device) -> None:
    x = random(*shape, layout=layout, device=device).requires_grad_()
    grad = random(*shape, layout=layout, device=device, seed=2)
    with Recorder() as recorder:
        y = group_norm(x, 3, activation="silu")
        y.backward(grad)
    assert set(recorder.ops) == {"instance_norm", "instance_norm_backward"}
    assert_layout_of(y, x)
    assert_layout_of(x.grad, x)
    kept = saved_image_bytes(lambda: group_norm(x, 3, activation="gelu"), x.numel())
    assert kept == [x.numel() * x.element_size()]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled(layout, dynamic) -> None:
    def function(x, residual):
        return group_norm(x, 2, residual=residual, activation="silu")

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 4, 9), (3, 4, 5, 8), (1, 4, 5, 3, 8)):
        x = random(*shape, layout=layout).requires_grad_()
        residual = random(*shape, layout=layout, seed=1)
        y, expected = compiled(x, residual), function(x, residual)
        torch.testing.assert_close(y, expected)
        assert compiled(x.detach(), residual).stride() == expected.stride()
        assert_same_strides(y, expected)
        grads = [torch.autograd.grad(result.square().sum(), x)[0] for result in (y, expected)]
        torch.testing.assert_close(*grads)


def test_transforms() -> None:
    x, tangent = (random(2, 4, 5, 6, dtype=torch.float64, seed=seed) for seed in range(2))

    def ours_of(x):
        return ours(x, groups=2, activation="gelu")

    def exact_of(x):
        return exact(x, groups=2, activation="gelu")

    expected = torch.func.jvp(exact_of, (x,), (tangent,))
    torch.testing.assert_close(torch.func.jvp(ours_of, (x,), (tangent,)), expected)
    mapped = torch.func.vmap(ours_of)(torch.stack((x, 2 * x + 1)))
    torch.testing.assert_close(mapped[0], expected[0])
    grads = [torch.func.grad(lambda x, f=f: f(x).pow(3).sum())(x) for f in (ours_of, exact_of)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_deterministic_and_equal_without_grad(layout, device) -> None:
    x = random(2, 12, 63, 65, layout=layout, device=device).requires_grad_()
    weight = random(12, device=device).requires_grad_()
    cotangent = random(*x.shape, device=device, seed=1)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            y = group_norm(x, 3, weight, activation="gelu_tanh")
            runs.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
        with torch.no_grad(), poisoned_memory():
            again = group_norm(x, 3, weight, activation="gelu_tanh")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(again, runs[0][0])
    for run in runs[1:]:
        for first, second in zip(runs[0], run, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bad_value_stays_in_its_group(value, layout, device) -> None:
    x = random(2, 32, 5, 9, layout=layout, device=device)
    x[1, 3, 2, 4] = value
    x.requires_grad_()
    y = group_norm(x, 8, activation="silu")
    (grad,) = torch.autograd.grad(y, x, random(*x.shape, device=device, seed=1))
    healthy = torch.ones(x.shape, dtype=torch.bool, device=device)
    healthy[1, :4] = False
    for result in (y, grad):
        assert result[healthy].isfinite().all()
        assert not result[1, :4].isfinite().any()


@pytest.mark.parametrize("size", [1e19, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_whose_squares_exceed_float32(dtype, size) -> None:
    x = torch.where(random(2, 4, 9, 17) < -0.3, -size, size).to(dtype)
    wide = x.double().requires_grad_()
    x.requires_grad_()
    y, expected = (group_norm(t, 2, activation="tanh") for t in (x, wide))
    grad = random(*x.shape, seed=1).to(dtype)
    (grad_x,) = torch.autograd.grad(y, x, grad)
    (grad_expected,) = torch.autograd.grad(expected, wide, grad.double())
    limit = 1e-5 if dtype == torch.float32 else 4e-2
    for actual, wanted in ((y, expected), (grad_x, grad_expected)):
        assert (actual.double() - wanted).norm() < limit * wanted.norm()


def test_groups_of_a_single_value_are_zero() -> None:
    x = random(3, 4).requires_grad_()
    y = group_norm(x, 4, bias=torch.ones(4))
    assert torch.equal(y, torch.ones_like(x))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


X = random(2, 6, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 3}, TypeError, "x: expected a torch.Tensor, got int"),
        ({"x": X.long()}, TypeError, "x: expected dtype float32, bfloat16, .*got torch.int64"),
        ({"x": X[0, 0, 0]}, ValueError, r"x: expected shape \(N, C, ...\) of 2 dim.*got \(5,\)"),
        ({"num_groups": 4}, ValueError, "num_groups: expected a divisor of x's 6 channels, got 4"),
        ({"num_groups": 0}, ValueError, "num_groups: expected a divisor .* got 0"),
        ({"num_groups": 2.0}, TypeError, "num_groups: expected an int, got float"),
        ({"weight": X[0, 0, 0]}, ValueError, r"weight: .* = \(6,\) or \(N, C\) .*got \(5,\)"),
        ({"bias": X[0, :, 0, 0].double()}, TypeError, "bias: .*float32, got torch.float64; conv"),
        ({"residual": X[:1]}, ValueError, r"residual: .*\(2, 6, 4, 5\), got \(1, 6, 4, 5\)"),
        ({"activation": "elu"}, ValueError, "activation: .*none, relu, .*gelu_tanh, got 'elu'"),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        group_norm(**{"x": X, "num_groups": 2, **arguments})
