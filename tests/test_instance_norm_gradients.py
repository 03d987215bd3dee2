"""Derivatives of instance norm: finite differences, second order, and memory."""

import pytest
import torch
from torch import Tensor

from stylekernels import instance_norm, instance_norm_stats, native
from tests.conftest import Recorder, random, relative_errors, saved_image_bytes
from tests.instance_norms import ACTIVATIONS, before_activation, exact, ours, per_channel

pytestmark = pytest.mark.usefixtures("implementation")


def check_derivatives(activation, stats, residual_first, device, fast_mode=False) -> None:
    """Compare with finite differences, in one direction only with ``fast_mode``."""
    x = random(2, 2, 3, 2, dtype=torch.float64, device=device, seed=4)
    tensors = {
        "x": x,
        "weight": per_channel("(N, C)" if residual_first else "(C,)", x, torch.float64, 1),
        "bias": per_channel("(C,)", x, torch.float64, 2),
        "residual": random(*x.shape, dtype=torch.float64, device=device, seed=3),
        "mean": per_channel(stats, x, torch.float64, 5),
        "var": per_channel(stats, x, torch.float64, 6, positive=True),
    }
    names = [name for name, tensor in tensors.items() if tensor is not None]
    z = before_activation(**tensors, residual_first=residual_first)
    assert z.abs().min() > 1e-3, "choose a seed that stays away from the kinks"

    def function(*values: Tensor) -> Tensor:
        options = {"activation": activation, "residual_first": residual_first}
        return ours(**dict(zip(names, values, strict=True)), **options)

    inputs = [tensors[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast_mode)


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("stats", ["none", "(C,)", "(N, C)"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, stats, residual_first, device) -> None:
    check_derivatives(activation, stats, residual_first, device)


def test_gradcheck_of_stats(device) -> None:
    x = random(2, 3, 3, 2, dtype=torch.float64, device=device).requires_grad_()
    assert torch.autograd.gradcheck(instance_norm_stats, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(instance_norm_stats, (x,))


@pytest.mark.parametrize("implementation", ["kernels", "reference", "triton"], indirect=True)
@pytest.mark.parametrize("n", [1, 2])
def test_gradients_in_channels_last(n, implementation, device) -> None:
    """PyTorch's is wrong for one image (docs/pytorch-faults.md)."""
    x, cotangent = (random(n, 2, 3, 2, dtype=torch.float64, device=device, seed=s) for s in (4, 5))
    steps = torch.eye(x.numel(), dtype=torch.float64, device=device).view(-1, *x.shape) * 1e-4
    differences = [
        ((instance_norm(x + step) - instance_norm(x - step)) * cotangent).sum() / 2e-4
        for step in steps
    ]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = x.to(memory_format=memory_format).requires_grad_()
        given = cotangent.to(memory_format=torch.channels_last)
        (grad,) = torch.autograd.grad(instance_norm(leaf), leaf, given)
        torch.testing.assert_close(grad.flatten(), torch.stack(differences), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_penalty(dtype, layout, device) -> None:
    """The second derivative in the dtypes that are trained in."""
    x = random(2, 5, 6, 7, dtype=dtype, layout=layout, device=device).requires_grad_()
    weight = random(5, dtype=torch.float32, device=device, seed=1).requires_grad_()

    def penalty(function, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        y = function(x, weight, activation="tanh")
        (grad,) = torch.autograd.grad(y.to(weight.dtype).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.to(weight.dtype).square().sum(), (x, weight))

    wide = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    for actual, expected in zip(
        penalty(instance_norm, x, weight), penalty(exact, *wide), strict=True
    ):
        tolerance = 16 * torch.finfo(dtype).eps
        assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.skipif(native.cpu_missing is not None, reason="PyTorch rounds the mean")
@pytest.mark.every_capability
@pytest.mark.parametrize("activation", ["none", "tanh"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_rounding_the_mean_leaves_no_error(layout, activation) -> None:
    """A mean near 1000 is rounded by up to 3e-5, and PyTorch's gradients have errors of that size.
    The cotangent is correlated with x and its mean is not zero, so that both sums are large."""
    x = random(2, 6, 61, 67, layout=layout, shift=1000.0)
    cotangent = x - 1000 + random(*x.shape, seed=1, shift=0.5)
    leaf, wide = x.requires_grad_(), x.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(instance_norm(leaf, activation=activation), leaf, cotangent)
    (expected,) = torch.autograd.grad(exact(wide, activation=activation), wide, cotangent.double())
    assert max(relative_errors(grad, expected)) <= 1e-6


@pytest.mark.parametrize("residual_first", [False, True])
def test_backward_keeps_only_the_input(residual_first, device) -> None:
    x = random(2, 8, 16, 16, dtype=torch.bfloat16, device=device).requires_grad_()
    image = x.numel() * x.element_size()
    for activation in ACTIVATIONS:
        kept = saved_image_bytes(lambda a=activation: instance_norm(x, activation=a), 256)
        assert kept == [image], activation
    residual = random(*x.shape, dtype=torch.bfloat16, device=device).requires_grad_()
    kept = saved_image_bytes(
        lambda: instance_norm(
            x, residual=residual, residual_first=residual_first, activation="relu"
        ),
        256,
    )
    # A residual added after the activation does not influence derivatives; the same as without one.
    assert kept == ([image, image] if residual_first else [image])
    kept = saved_image_bytes(
        lambda: instance_norm(x, residual=residual, residual_first=residual_first), 256
    )
    assert kept == [image]


NAMES = ("x", "weight", "bias", "residual", "mean", "var")


def every_argument(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    x = random(2, 3, 4, 5, dtype=dtype, device=device)
    return {
        "x": x,
        "weight": per_channel("(N, C)", x, dtype, 1),
        "bias": per_channel("(C,)", x, dtype, 2),
        "residual": random(*x.shape, dtype=dtype, device=device, seed=3),
        "mean": per_channel("(C,)", x, dtype, 4),
        "var": per_channel("(C,)", x, dtype, 5, positive=True),
    }


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_alone_is_the_one_among_all(wanted, residual_first, device) -> None:
    def first_and_second(names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        tensors = every_argument(device, torch.float64)
        for name in names:
            tensors[name].requires_grad_()
        y = ours(**tensors, activation="tanh", residual_first=residual_first)
        (grad,) = torch.autograd.grad(y.pow(3).sum(), tensors[wanted], create_graph=True)
        return grad, torch.autograd.grad(grad.square().sum(), tensors[wanted])[0]

    for alone, among in zip(first_and_second((wanted,)), first_and_second(NAMES), strict=True):
        torch.testing.assert_close(alone, among)


@pytest.mark.parametrize(
    ("wanted", "residual_first", "ops", "images"),
    [
        ("x", False, ["instance_norm_backward"], 1),
        ("x", True, ["instance_norm_backward"], 1),
        ("residual", False, [], 0),
        ("residual", True, ["instance_norm_backward"], 2),
        ("weight", True, ["instance_norm_backward"], 1),
        ("bias", True, ["instance_norm_backward"], 1),
    ],
)
def test_nothing_is_computed_that_nobody_wants(wanted, residual_first, ops, images) -> None:
    tensors = every_argument("cpu", torch.float32)
    tensors[wanted].requires_grad_()
    y = ours(**tensors, activation="tanh", residual_first=residual_first)
    cotangent = random(*y.shape, seed=9)
    with Recorder() as recorded:
        torch.autograd.grad(y, tensors[wanted], cotangent)
    assert (recorded.ops, len(recorded.images)) == (ops, images)


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_is_rounded_once(implementation, dtype, device) -> None:
    """Rounding the terms that go through the statistics by themselves would add to the error."""
    x = random(2, 5, 6, 7, dtype=dtype, device=device).requires_grad_()
    wide = x.detach().double().requires_grad_()
    cotangent = random(*x.shape, dtype=dtype, device=device, seed=1, shift=3.0)
    (grad,) = torch.autograd.grad(ours(x), x, cotangent)
    (grad_exact,) = torch.autograd.grad(exact(wide), wide, cotangent.double())
    assert max(relative_errors(grad, grad_exact)) <= 0.51 * torch.finfo(dtype).eps
