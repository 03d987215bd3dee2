"""The ops in programs where PyTorch sees only ``torch.ops.stylekernels``: transforms of torch.func
in torch.compile, exported programs, and direct calls. Gradients must equal those of plain formulas.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stylekernels import (
    convert,
    gram_loss,
    gram_losses,
    gram_matrix,
    instance_norm,
    instance_norm_stats,
    native,
    upsample_block,
    use_impl,
)
from tests.conftest import random
from tests.test_dispatch import (
    CALLS,
    SCALE,
    TARGET,
    WEIGHT,
    assert_all_close,
    every_op_with_a_gradient,
    value_and_gradient,
)

pytestmark = pytest.mark.usefixtures("implementation")

Function = Callable[[Tensor], Tensor]


def scalar(function: Function) -> Function:
    return lambda x: function(x).square().sum()


TRANSFORMS: dict[str, Callable[[Function], Callable]] = {
    "grad": lambda f: torch.func.grad(scalar(f)),
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x.sin(),)),
    "jacrev": lambda f: torch.func.jacrev(f),
    "jacfwd": lambda f: torch.func.jacfwd(f),
    "hessian": lambda f: torch.func.hessian(scalar(f)),
    "grad of grad": lambda f: torch.func.grad(lambda x: torch.func.grad(scalar(f))(x).sin().sum()),
    "vmap": lambda f: lambda x: torch.func.vmap(f)(torch.stack((x, x.cos()))),
    "vmap of grad": lambda f: (
        lambda x: torch.func.vmap(torch.func.grad(scalar(f)))(torch.stack((x, x.cos())))
    ),
}


# The Hessian is the jacfwd of a jacrev, and vjp takes the gradient that grad does.
@pytest.mark.parametrize(
    "transform", ["vjp", "jvp", "hessian", "grad of grad", "vmap", "vmap of grad"]
)
@every_op_with_a_gradient
def test_transform_in_compile(op, transform, device) -> None:
    torch._dynamo.reset()
    x = random(1, 6, 2, 3, device=device).clone()  # a view would fail in torch.compile's jvp
    function = TRANSFORMS[transform](CALLS[op])
    actual = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    with use_impl("reference"):
        expected = function(x)
    assert_all_close(*([t] if isinstance(t, Tensor) else t for t in (actual, expected)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@every_op_with_a_gradient
def test_transform_of_the_op_itself(op, transform, device) -> None:
    """Eagerly, without the choice of a public function: every level calls the op."""
    x = random(1, 6, 2, 3, device=device)
    actual = TRANSFORMS[transform](DIRECT[op])(x)
    with use_impl("reference"):
        expected = TRANSFORMS[transform](CALLS[op])(x)
    assert_all_close(*([t] if isinstance(t, Tensor) else t for t in (actual, expected)))


def _direct_upsample_block(x: Tensor) -> Tensor:
    weight, scale = WEIGHT.to(x.device, x.dtype), SCALE[:4].to(x.device)
    y, mean, var = OPS.upsample_conv2d(x, weight, None, "transpose", "replicate", True)
    options = ("tanh", 0.01, False, 1e-5, True, 1)
    return OPS.instance_norm(y, scale, None, None, mean, var, *options)[0]


OPS = torch.ops.stylekernels
#: `CALLS` by the ops, as an exported program calls them.
DIRECT: dict[str, Function] = {
    "gram_matrix": lambda x: OPS.gram_matrix(x, None, True)[0],
    "gram_loss": lambda x: OPS.gram_loss(x, TARGET.to(x.device), None, False)[0],
    "gram_losses": lambda x: OPS.gram_losses(
        [x, x[:, :4, ::2]], [target := TARGET.to(x.device), target[:4, :4]], [0.01, 0.02], True
    )[0],
    "group_norm": lambda x: OPS.instance_norm(
        x, SCALE.to(x.device), None, x.flip(2), None, None, "silu", 0.01, False, 1e-5, False, 2
    )[0],
    "instance_norm": lambda x: OPS.instance_norm(
        x, SCALE.to(x.device), None, x.flip(2), None, None, "tanh", 0.01, True, 1e-5, False, 1
    )[0],
    "instance_norm_stats": lambda x: torch.stack(OPS.instance_norm_stats(x)),
    "upsample_block": _direct_upsample_block,
}


@every_op_with_a_gradient
def test_direct_calls_are_differentiable(op, device) -> None:
    """First and second derivatives."""
    x = random(2, 6, 5, 4, device=device)
    gradients = [torch.func.grad(scalar(call))(x) for call in (CALLS[op], DIRECT[op])]
    assert_all_close(*([gradient] for gradient in gradients))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    seconds = []
    for leaf, call in zip(leaves, (CALLS[op], DIRECT[op]), strict=True):
        (first,) = torch.autograd.grad(scalar(call)(leaf), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(first.sin().sum(), leaf)[0])
    assert seconds[0].abs().max() > 0
    assert_all_close(seconds[:1], seconds[1:])


def test_direct_call_with_given_statistics(device) -> None:
    """Gradients go to given statistics, and through statistics of x to x."""
    x, shifts = random(2, 6, 5, 4, device=device), random(6, device=device, seed=2)

    def of_given(shifts: Tensor, own: bool) -> Tensor:
        mean, var = instance_norm_stats(x)
        mean, var = mean + shifts, var + shifts.square()
        arguments = (x, None, None, None, mean, var, "tanh", 0.01, False, 1e-5, own, 1)
        return OPS.instance_norm(*arguments)[0].square().sum()

    def plain(shifts: Tensor) -> Tensor:
        mean, var = instance_norm_stats(x)
        stats = mean + shifts, var + shifts.square()
        with use_impl("reference"):
            return instance_norm(x, stats=stats, activation="tanh").square().sum()

    expected = torch.autograd.functional.jacobian(plain, shifts)
    actual = torch.autograd.functional.jacobian(lambda s: of_given(s, False), shifts)
    assert_all_close([actual], [expected])
    own = torch.autograd.functional.jacobian(lambda s: of_given(s, True), shifts)
    assert own.abs().max() == 0  # they are no inputs then


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.InstanceNorm2d(6, affine=True),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.InstanceNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 2, 1),
    )


def test_exported_network(network, device) -> None:
    """Its parameters and its input get the gradients of the network that was not exported."""
    network = network.to(device)
    x = random(2, 3, 9, 8, device=device)
    expected = [
        torch.autograd.grad(scalar(network)(y := x.clone().requires_grad_()), y)[0],
        *torch.autograd.grad(scalar(network)(x), list(network.parameters())),
    ]
    converted, report = convert(network)
    assert len(report.fused) == 2
    exported = torch.export.export(converted, (x,)).module()
    y = x.clone().requires_grad_()
    parameters = list(exported.parameters())
    actual = torch.autograd.grad(scalar(exported)(y), [y, *parameters])
    assert_all_close(actual, expected)


@every_op_with_a_gradient
def test_exported_op(op, device) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return CALLS[op](x)

    x = random(2, 6, 5, 4, device=device)
    exported = torch.export.export(Module(), (x,)).module()
    assert_all_close(value_and_gradient(exported, x), value_and_gradient(CALLS[op], x))


@pytest.mark.parametrize("compiled", [False, True])
def test_functional_call_of_a_converted_network(network, compiled, device) -> None:
    """Gradients of parameters, as for meta-learning and per-sample gradients."""
    torch._dynamo.reset()
    network, x = network.to(device), random(2, 3, 9, 8, device=device)
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def gradients(network: nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(network, parameters, (x,)).square().sum()

        function = torch.func.grad(loss)
        if compiled:
            function = torch.compile(function, fullgraph=True, backend="aot_eager")
        return function(parameters, x)

    expected = gradients(network)
    actual = gradients(convert(network)[0])
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-4)
        if not name.endswith("bias"):  # a norm cancels the bias of the convolution before it
            assert gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_op_with_a_gradient
def test_backward_inside_autocast(op, dtype, device) -> None:
    """The result of a backward pass does not depend on where it is called."""
    x = random(2, 6, 5, 4, device=device).requires_grad_()
    gradients = []
    for inside in (False, True):
        for again in (False, True):
            with torch.autocast(device, dtype):
                y = CALLS[op](x).float().square().sum()
            with torch.autocast(device, dtype, enabled=inside):
                gradients += torch.autograd.grad(y, x, create_graph=again)
    outside, outside_again, inside, inside_again = gradients
    assert torch.equal(inside, outside)
    torch.testing.assert_close(inside_again, outside_again)
    torch.testing.assert_close(outside_again, outside, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("upsample", ["nearest", "transpose"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upsampling_backward_inside_autocast(dtype, upsample, device) -> None:
    """Autocast would make the enlarged image float32, with a weight in half precision."""
    x = random(2, 6, 5, 4, device=device).requires_grad_()
    weight = WEIGHT if upsample == "transpose" else WEIGHT[..., :3, :3].transpose(0, 1)
    weight = weight.to(device).clone().requires_grad_()
    gradients = []
    for inside in (False, True):
        with torch.autocast(device, dtype):
            y = upsample_block(x, weight, upsample=upsample).float().square().sum()
        with torch.autocast(device, dtype, enabled=inside):
            gradients.append(torch.autograd.grad(y, (x, weight)))
    for outside, inside in zip(*gradients, strict=True):
        assert torch.equal(outside, inside)


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_no_op_returns_a_view(norm, device) -> None:
    """An activation in place may follow, with gradients for all parameters."""
    x, weight = random(2, 6, 5, 4, device=device), WEIGHT.to(device).clone().requires_grad_()
    bias = random(4, device=device, seed=5).requires_grad_()
    y = upsample_block(x, weight, bias=bias, norm=norm, activation="none")
    expected = torch.autograd.grad(y.clone().relu().square().sum(), (weight, bias))
    y = upsample_block(x, weight, bias=bias, norm=norm, activation="none")
    assert y._base is None
    actual = torch.autograd.grad(torch.relu_(y).square().sum(), (weight, bias))
    assert_all_close(actual, expected)
    if norm == "instance":
        assert actual[1].abs().max() == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: gram_matrix(x),
        lambda x: gram_losses([x], [TARGET.to(x.device)]),
        lambda x: instance_norm(x, activation="relu"),
    ],
)
def test_results_may_be_changed_in_place(call, device) -> None:
    x = random(2, 6, 5, 4, device=device).requires_grad_()
    expected = torch.autograd.grad(call(x).mul(2).square().sum(), x)
    actual = torch.autograd.grad(call(x).mul_(2).square().sum(), x)
    assert_all_close(actual, expected)


@every_op_with_a_gradient
def test_batched_gradients_of_autograd(op, device) -> None:
    """The vmap inside autograd is not that of torch.func."""
    x = random(1, 6, 2, 3, device=device)
    actual = torch.autograd.functional.jacobian(CALLS[op], x, vectorize=True)
    with use_impl("reference"):
        expected = torch.autograd.functional.jacobian(CALLS[op], x)
    assert_all_close([actual], [expected])


@pytest.mark.parametrize("loss", [gram_loss, lambda x, target: gram_losses([x], [target])[0]])
def test_hessian_vector_product_at_a_target(loss, device) -> None:
    x, target = random(1, 6, 2, 3, device=device), TARGET.to(device)
    gradient = torch.func.grad(lambda target: loss(x, target))
    _, product = torch.func.jvp(gradient, (target,), (target.cos(),))
    torch.testing.assert_close(product, target.cos() * (2 / target.numel()))


def test_compiled_inference_runs_our_convolution(device) -> None:
    """For weights that are parameters and others."""
    if native.cpu_capability in (None, "baseline") or device != "cpu":
        pytest.skip("PyTorch's convolution runs here")
    torch._dynamo.reset()
    seen = []

    def backend(graph, _inputs):
        seen.append(graph.print_readable(print_output=False))
        return graph

    weight = WEIGHT.clone().requires_grad_()
    compiled = torch.compile(lambda x: upsample_block(x, weight), fullgraph=True, backend=backend)
    x = random(1, 6, 5, 4)
    with torch.no_grad():
        y = compiled(x)
        assert_all_close([y], [upsample_block(x, weight)])
    assert "upsample_conv2d" in seen[0]
