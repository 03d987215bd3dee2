"""instance_norm and instance_norm_stats against formulas written here in float64.

The grid: every shape with every dtype and layout for the plain op, because vector tails, alignment
and strides depend only on these. All pairs of options at one odd shape, because options are
branches of one loop body. Magnitudes are separate, because they concern the sums.
"""

import itertools

import pytest
import torch
from torch import Tensor

from stylekernels import instance_norm, instance_norm_stats
from tests.conftest import (
    DTYPES,
    KERNEL_LAYOUTS,
    LAYOUTS,
    assert_accurate,
    assert_op_accurate,
    laid_out,
    poisoned_memory,
    random,
    relative_errors,
)
from tests.instance_norms import (
    ACTIVATIONS,
    SLOPES,
    before_activation,
    exact,
    in_torch,
    ours,
    per_channel,
)
from tests.pairwise import missing_pairs, name_of, pairwise

pytestmark = pytest.mark.usefixtures("implementation")

SHAPES = (
    (0, 8, 4, 4),
    (1, 1, 2, 2),
    (3, 3, 3, 5),
    (2, 5, 1, 37),
    (2, 5, 37, 1),
    (1, 16, 7, 9),
    (3, 17, 17, 31),
    (1, 32, 64, 64),
    (2, 33, 9, 7),
    (1, 64, 16, 16),
    (1, 100, 5, 3),
    (1, 128, 8, 8),
    (1, 3, 130, 67),
)


def check(tensors: dict[str, Tensor | None], grad_layout="contiguous", **options) -> None:
    def away_from_kinks(**wide):
        first = options.get("residual_first", False) and wide.get("residual") is not None
        return before_activation(**wide, residual_first=first).abs() > 1e-2

    assert_op_accurate(
        lambda **t: ours(**t, **options),
        lambda **t: in_torch(**t, **options),
        lambda **t: exact(**t, **options),
        tensors,
        away_from_kinks=away_from_kinks if "relu" in options.get("activation", "none") else None,
        grad_layout=grad_layout,
    )


@pytest.mark.parametrize("layout", KERNEL_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_dtypes_layouts(shape, dtype, layout, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device)
    parameters = {
        name: random(shape[1], dtype=dtype, device=device, seed=i, shift=1.0)
        for i, name in enumerate(("weight", "bias"), 1)
    }
    check({"x": x, **parameters}, activation="relu")


OPTIONS = {
    "of_output": tuple(itertools.product(ACTIVATIONS, ("none", "after", "first"))),
    "stats": ("none", "(C,)", "(N, C)"),
    "parameters": ("none", "(C,)", "(N, C)"),
    "dtypes": (
        (torch.float32,) * 2,
        (torch.bfloat16, torch.float32),
        (torch.float16,) * 2,
        (torch.float64,) * 2,
    ),
    "layout": ("contiguous", "channels_last"),
}
CASES = tuple(pairwise(OPTIONS))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)


@pytest.mark.every_capability
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    """Activation and residual are one option: a loop has a branch for each pair of them."""
    (activation, residual), (dtype, parameter_dtype) = case["of_output"], case["dtypes"]
    layout = case["layout"]
    x = random(3, 17, 5, 7, dtype=dtype, layout=layout, device=device, scale=2.0, shift=0.3)
    tensors = {"x": x}
    for seed, name in enumerate(("weight", "bias"), 1):
        tensors[name] = per_channel(case["parameters"], x, parameter_dtype, seed)
    if residual != "none":
        tensors["residual"] = random(*x.shape, dtype=dtype, layout=layout, device=device, seed=5)
    tensors["mean"] = per_channel(case["stats"], x, parameter_dtype, 6)
    tensors["var"] = per_channel(case["stats"], x, parameter_dtype, 7, positive=True)
    check(tensors, activation=activation, residual_first=residual == "first")


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "shift"), [(1, 1000), (1e-3, 0), (1e4, 0), (30, -1000)])
def test_magnitudes(scale, shift, dtype, layout, device) -> None:
    shape = (2, 6, 61, 67)
    x = random(*shape, dtype=dtype, layout=layout, device=device, scale=scale, shift=shift)
    check({"x": x}, activation="none")


@pytest.mark.parametrize("weight", ["none", "(C,)"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 2, 2, 1), (1, 4, 1, 1)])
def test_planes_of_one_and_two_pixels(shape, weight, device) -> None:
    x = random(*shape, device=device, scale=3.0)
    tensors = {"x": x, "weight": per_channel(weight, x, torch.float32, 1)}
    if shape[2] * shape[3] == 1:
        tensors |= {"mean": per_channel("(C,)", x, torch.float32, 2)}
        tensors |= {"var": per_channel("(C,)", x, torch.float32, 3, positive=True)}
        return check(tensors)
    # Two normalised pixels are always +-1, and their gradient cancels: only the output is compared.
    wide = {k: None if t is None else t.double() for k, t in tensors.items()}
    return assert_accurate(ours(**tensors), in_torch(**tensors), exact(**wide))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_image(dtype, layout, device) -> None:
    x = random(1, 32, 256, 256, dtype=dtype, layout=layout, device=device, shift=10.0)
    residual = random(*x.shape, dtype=dtype, layout=layout, device=device, seed=1)
    check({"x": x, "residual": residual}, activation="relu")


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_of_gradient_and_residual(dtype, layout, grad_layout, device) -> None:
    x = random(2, 17, 9, 11, dtype=dtype, layout=layout, device=device)
    residual = random(*x.shape, dtype=dtype, layout=grad_layout, device=device, seed=1)
    for residual_first in (False, True):
        tensors = {"x": x, "residual": residual}
        check(tensors, grad_layout, activation="relu", residual_first=residual_first)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_input_and_gradient(layout, device) -> None:
    image = random(1, 16, 6, 7, layout=layout, device=device, seed=3)
    x = image.expand(3, -1, -1, -1).detach().requires_grad_()
    weight = random(3, 16, device=device)
    (grad,) = torch.autograd.grad(instance_norm(x, weight, activation="tanh").sum(), x)
    wide = image.double().repeat(3, 1, 1, 1).requires_grad_()
    (grad_exact,) = torch.autograd.grad(exact(wide, weight.double(), activation="tanh").sum(), wide)
    narrow = image.repeat(3, 1, 1, 1).requires_grad_()
    (grad_torch,) = torch.autograd.grad(in_torch(narrow, weight, activation="tanh").sum(), narrow)
    assert_accurate(grad, grad_torch, grad_exact)


def check_stats(x: Tensor, which: int) -> None:
    """The mean (0) or the variance (1), and its gradient."""
    spatial = tuple(range(2, x.dim()))

    def in_torch(x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return wide.mean(spatial) if which == 0 else wide.var(spatial, correction=0)

    assert_op_accurate(
        lambda x: instance_norm_stats(x)[which], in_torch, in_torch, {"x": x}, image_result=False
    )


@pytest.mark.parametrize("layout", KERNEL_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("shape", "shift"),
    [((0, 3, 4, 4), 0), ((3, 5, 1, 37), 1), ((1, 33, 9, 7), 3), ((2, 16, 61, 67), 1000)],
)
def test_stats(shape, shift, which, dtype, layout, device) -> None:
    check_stats(random(*shape, dtype=dtype, layout=layout, device=device, shift=shift), which)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_a_variance_about_a_large_mean(layout, device) -> None:
    """The mean is a float32 number, which is off by a share of the deviation."""
    x = random(2, 5, 9, 8, layout=layout, device=device, shift=1e6).requires_grad_()
    wide = x.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(instance_norm_stats(x)[1].sum(), x)
    (expected,) = torch.autograd.grad(wide.var((2, 3), correction=0).sum(), wide)
    assert max(relative_errors(grad, expected)) < 1e-6


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (0, 3, 4, 4)])
def test_gradient_of_the_stats_of_nothing(shape, device) -> None:
    x = torch.zeros(shape, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(sum(t.sum() for t in instance_norm_stats(x)), x)
    assert grad.shape == x.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_stats_of_another_call_give_the_same_output_and_gradient(layout, device) -> None:
    x = random(2, 5, 9, 8, layout=layout, device=device, shift=2.0).requires_grad_()
    cotangent = random(*x.shape, device=device, seed=1)
    fused = instance_norm(x, activation="tanh")
    split = instance_norm(x, activation="tanh", stats=instance_norm_stats(x))
    torch.testing.assert_close(split, fused)
    grads = [torch.autograd.grad(y, x, cotangent)[0] for y in (split, fused)]
    torch.testing.assert_close(*grads)


def test_eps(device) -> None:
    x = random(1, 3, 5, 6, device=device)
    expected = x.double() - x.double().mean((2, 3), keepdim=True)
    expected /= (x.double().var((2, 3), correction=0, keepdim=True) + 0.7).sqrt()
    torch.testing.assert_close(instance_norm(x, eps=0.7).double(), expected, rtol=1e-5, atol=1e-6)


BAD_PIXELS = {
    "dtype": (torch.float32, torch.bfloat16),
    "activation": tuple(ACTIVATIONS),
    "layout": ("contiguous", "channels_last"),
    "value": (torch.nan, torch.inf, -torch.inf),
}


@pytest.mark.every_capability
@pytest.mark.parametrize("case", tuple(pairwise(BAD_PIXELS)), ids=name_of)
def test_nan_and_inf_go_where_torch_sends_them(case, device) -> None:
    """One pixel is NaN or infinite: the result is so where PyTorch's is."""
    dtype, activation, layout, value = case.values()
    x = random(2, 17, 5, 9, dtype=dtype, layout=layout, device=device).float()
    x[1, 3, 2, 4] = value
    x = laid_out(x.to(dtype), layout).requires_grad_()
    stats = {"mean": random(17, device=device), "var": random(17, device=device).abs() + 0.5}
    cotangent = random(*x.shape, dtype=dtype, device=device, seed=1)
    for given in ({}, stats):
        y, expected = (f(x, activation=activation, **given) for f in (ours, in_torch))
        if activation == "gelu" and value == torch.inf and given:
            assert y[1, 3, 2, 4] == torch.inf  # PyTorch's vectors give NaN, its scalars infinity
            y, expected = (torch.where(x == value, 0, result) for result in (y, expected))
        tolerance = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(y, expected, equal_nan=True, **tolerance)
        grads = [torch.autograd.grad(output, x, cotangent)[0] for output in (y, expected)]
        healthy = torch.ones_like(x, dtype=torch.bool)
        if not given:
            assert not y[1, 3].isfinite().any() or activation not in ("none", "leaky_relu")
            healthy[1, 3] = False
        else:
            healthy[1, 3, 2, 4] = False
        assert y[healthy].isfinite().all(), "one bad pixel poisoned other planes"
        torch.testing.assert_close(*[g[healthy] for g in grads], **tolerance)
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(grads[0]), test(grads[1])), test.__name__


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["weight", "bias", "mean", "var"])
def test_nan_with_all_bits_set_stays_nan(name, layout, device) -> None:
    """Rounding such a NaN to bfloat16 as a number would give zero."""
    parameters = {"mean": random(5, device=device), "var": random(5, device=device).abs() + 0.5}
    parameters |= {key: random(5, device=device) for key in ("weight", "bias")}
    parameters[name].view(torch.int32)[2] = -1
    x = random(2, 5, 6, 7, dtype=torch.bfloat16, layout=layout, device=device)
    y = ours(x, activation="none", **parameters)
    assert y[:, 2].isnan().all()
    assert y[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (2, 40, 4, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_planes_without_pixels(layout, shape, device) -> None:
    x = random(*shape, device=device, layout=layout)
    for statistic in instance_norm_stats(x):
        assert statistic.shape == shape[:2]
        assert statistic.isnan().all()
    x.requires_grad_()
    weight = torch.ones(shape[1], device=device, requires_grad=True)
    zeros = torch.zeros(shape[1], device=device)
    y = ours(x, weight, mean=zeros, var=zeros)
    assert y.shape == shape
    grad_x, grad_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert grad_x.shape == shape
    assert torch.equal(grad_weight, zeros)


@pytest.mark.every_capability
@pytest.mark.parametrize("value", [-1e30, -torch.inf])
def test_sigmoid_far_below_zero_is_zero(value, device) -> None:
    x = torch.full((1, 3, 7, 9), value, device=device)
    zeros, ones = torch.zeros(3, device=device), torch.ones(3, device=device)
    y = instance_norm(x, activation="sigmoid", stats=(zeros, ones))
    assert torch.equal(y, torch.zeros_like(x))


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "gelu", "gelu_tanh"])
def test_activations_over_their_range(activation, dtype, device) -> None:
    """Values and slopes are right to a few digits of the dtype, also in the tails. PyTorch's own
    slopes of SiLU and of GELU's approximation are not: ``1 - sigmoid(z)`` cancels in them."""
    z = torch.linspace(-30, 30, 6007, dtype=dtype, device=device).requires_grad_()
    zero, one = (
        torch.zeros(1, dtype=dtype, device=device),
        torch.ones(1, dtype=dtype, device=device),
    )
    stats = {"stats": (zero, one), "eps": 0.0}
    y = instance_norm(z[None, None], activation=activation, **stats)[0, 0]
    (slope,) = torch.autograd.grad(y.sum(), z)
    wide = z.detach().double()
    eps = torch.finfo(dtype).eps
    for actual, formula in ((y, ACTIVATIONS[activation]), (slope, SLOPES[activation])):
        torch.testing.assert_close(actual.double(), formula(wide), rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_activations_stay_finite(dtype, activation, device) -> None:
    x = random(1, 3, 8, 9, dtype=dtype, device=device).requires_grad_()
    weight = torch.tensor([1e2, 1e4, 1e30], device=device)
    y = instance_norm(x, weight, activation=activation)
    (grad,) = torch.autograd.grad(y.sum(), x)
    expected = in_torch(x, weight, activation=activation)
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-3)
    assert grad[:, :2].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_deterministic_and_equal_without_grad(layout, threads, device) -> None:
    x = random(2, 33, 63, 65, layout=layout, device=device).requires_grad_()
    weight = random(33, device=device).requires_grad_()
    cotangent = random(*x.shape, device=device, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(4):
            y = instance_norm(x, weight, activation="relu")
            runs.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
        with torch.no_grad(), poisoned_memory():
            assert torch.equal(instance_norm(x, weight, activation="relu"), runs[0][0])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


X = random(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 3}, TypeError, "x: expected a torch.Tensor, got int"),
        ({"x": X.long()}, TypeError, "x: expected dtype float32, bfloat16, .*got torch.int64"),
        (
            {"x": X[0, 0]},
            ValueError,
            r"x: expected .*N, C, L\) or .* or \(N, C, D, H, W\), got \(4, 5\); .*x\[None\]",
        ),
        ({"x": X[..., :1, :1]}, ValueError, r"x: expected more than one pixel .*\(2, 3, 1, 1\)"),
        ({"weight": X[0, 0, 0]}, ValueError, r"weight: .* = \(3,\) or \(N, C\) .*got \(5,\)"),
        ({"bias": X[0, :, 0, 0].double()}, TypeError, "bias: .*float32, got torch.float64; conv"),
        ({"bias": torch.empty(3, device="meta")}, ValueError, "bias: .*device cpu, got meta"),
        ({"weight": 1.0}, TypeError, "weight: expected a torch.Tensor or None, got float"),
        ({"residual": X[:1]}, ValueError, r"residual: .*\(2, 3, 4, 5\), got \(1, 3, 4, 5\)"),
        ({"residual": X.half()}, TypeError, "residual: .*torch.float32, got torch.float16"),
        ({"activation": "elu"}, ValueError, "activation: .*none, relu, .*gelu_tanh, got 'elu'"),
        ({"stats": X[0, :, 0, 0]}, TypeError, "stats: expected a pair .* or None, got Tensor"),
        ({"stats": [X] * 3}, TypeError, "stats: expected a pair .* or None, got list of 3"),
        ({"stats": (X[0, 0, 0], X[0, 0, 0])}, ValueError, r"stats\[0\]: .*got \(5,\)"),
        ({"stats": (X[0, :, 0, 0], X[0, 0, 0])}, ValueError, r"stats\[1\]: .*got \(5,\)"),
        ({"stats": (X[0, :, 0, 0], X[:, :, 0, 0])}, ValueError, "stats: .*mean and var.*shape"),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        instance_norm(**{"x": X, **arguments})


def test_errors_of_stats() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(N, C, L\) or .*, got \(4, 5\)"):
        instance_norm_stats(X[0, 0])
    with pytest.raises(TypeError, match=r"x: expected dtype float32, .*got torch.int32"):
        instance_norm_stats(X.int())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "plane"),
    [(size, (33, 17)) for size in (1e10, 1e17, 1e19, 1e25, 1e30, 3e38)]
    + [(3e38, plane) for plane in ((2, 3), (8, 8), (1, 127))],
)
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_values_whose_squares_exceed_float32(activation, size, plane, dtype, layout) -> None:
    """Two values with unequal counts. The difference of the largest exceeds float32."""
    x = torch.where(random(2, 3, *plane) < -0.3, -size, size).to(dtype)
    check_large_values(laid_out(x, layout), size, activation)


def check_large_values(x, size, activation) -> None:
    """Compare the norm of values up to ``size``, its gradient and the statistics with float64."""
    wide = x.double().requires_grad_()
    x.requires_grad_()
    grad = random(*x.shape, device=x.device.type, seed=1).to(x.dtype)
    y, exact = (instance_norm(t, activation=activation) for t in (x, wide))
    (grad_x,) = torch.autograd.grad(y, x, grad)
    (grad_exact,) = torch.autograd.grad(exact, wide, grad.double())
    limit = 1e-6 if x.dtype == torch.float32 else 4e-3
    for actual, expected in ((y, exact), (grad_x, grad_exact)):
        assert actual.dtype == x.dtype
        error = (actual.double() - expected).norm() / expected.norm()
        # Gradients below 1e-38 have fewer digits.
        assert error < (limit if size < 1e30 or actual is y else 10 * limit)
    mean, var = instance_norm_stats(x)
    expected_mean, expected_var = instance_norm_stats(wide)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var, expected_var.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("implementation", ["kernels", "reference", "triton"], indirect=True)
def test_constant_planes_without_eps(implementation, device) -> None:
    """The result is 0, as in PyTorch, with a gradient of 0."""
    x = torch.full((2, 3, 8, 8), 3.0, device=device)
    x[0, 0] = random(8, 8, device=device)
    x.requires_grad_()
    y = instance_norm(x, eps=0.0)
    (grad,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
    expected = torch.nn.functional.instance_norm(x.detach(), eps=0.0)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for result in (y, grad):
        constant = result.clone()
        constant[0, 0] = 0
        assert torch.equal(constant, torch.zeros_like(x))
