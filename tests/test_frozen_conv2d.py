"""Convolutions with frozen weights, and the gradient of their input."""

import copy
import io

import pytest
import torch
from torch import nn

from stylekernels import native, use_impl
from stylekernels.nn import frozen_conv2d
from stylekernels.nn.frozen_conv2d import FrozenConv2d
from tests.conftest import assert_accurate

compiled = pytest.mark.skipif(native.cpu_missing is not None, reason="the library is not built")
SIZES = [(2, 2), (2, 9), (17, 31), (40, 3)]


def frozen(channels=(32, 48), dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1} | options
    return FrozenConv2d(*channels, **options).to(dtype)


def as_torch(module, dtype):
    """PyTorch's module with the same weights, in another dtype."""
    plain = nn.Conv2d(
        module.in_channels, module.out_channels, module.kernel_size, module.stride,
        module.padding, module.dilation, module.groups, padding_mode=module.padding_mode,
    )  # fmt: skip
    plain.load_state_dict(module.state_dict())
    return plain.to(dtype)


def ran_ours(y):
    return type(y.grad_fn).__name__ == "_ConvolveBackward"


def image(shape, dtype, channels_last=True):
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@compiled
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_results_and_gradients(mode, dtype, channels_last):
    module = frozen(dtype=dtype, padding_mode=mode)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for size in SIZES:
        x = image((2, 32, *size), dtype, channels_last)
        leaves = [x.clone(), x.clone(), x.double()]
        modules = [module, as_torch(module, dtype), as_torch(module, torch.float64)]
        grad = torch.randn(2, 48, *size).to(dtype)
        results, gradients = [], []
        for leaf, each in zip(leaves, modules, strict=True):
            y = each(leaf.requires_grad_())
            results.append(y.detach())
            gradients += torch.autograd.grad(y, leaf, grad.to(y.dtype))
        # As in tests/convolutions.py: Winograd's method in float32.
        at_least = 5e-6 if dtype == torch.float32 else 0.0
        assert_accurate(*results, at_least=at_least)
        assert_accurate(*gradients, at_least=at_least)
        if dtype == torch.float32 or native.cpu_capability == "amx":
            assert ran_ours(module(leaves[0]))


@compiled
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_gradients_of_gradients(mode):
    module = frozen(padding_mode=mode)
    exact = as_torch(module, torch.float64)

    def penalty(each, x):
        """Squared gradient of a loss that is not linear, and its own gradient."""
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(each(x).pow(3).mean(), x, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), x)[0]

    x = image((1, 32, 9, 12), torch.float32)
    assert_accurate(
        penalty(module, x),
        penalty(as_torch(module, torch.float32), x),
        penalty(exact, x.double()),
        at_least=1e-5,  # two convolutions after one another
    )


@compiled
@pytest.mark.parametrize(
    ("options", "dtype", "shape"),
    [
        ({"stride": 2}, torch.float32, (1, 32, 8, 8)),
        ({"dilation": 2, "padding": 2}, torch.float32, (1, 32, 8, 8)),
        ({"groups": 2}, torch.float32, (1, 32, 8, 8)),
        ({"kernel_size": 1, "padding": 0}, torch.float32, (1, 32, 8, 8)),
        ({"padding_mode": "circular"}, torch.float32, (1, 32, 8, 8)),
        ({"channels": (16, 32)}, torch.float32, (1, 16, 8, 8)),
        ({}, torch.float64, (1, 32, 8, 8)),
        ({}, torch.float32, (32, 8, 8)),
        ({}, torch.float32, (1, 32, 1, 8)),
    ],
)
def test_others_run_as_pytorch(options, dtype, shape):
    module = frozen(dtype=dtype, **options)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = module(x)
    assert not ran_ours(y)
    assert torch.equal(y, as_torch(module, dtype)(x))


@compiled
def test_transforms_compilers_autocast_and_the_reference_use_pytorchs(monkeypatch):
    module = frozen()
    x = image((1, 32, 8, 8), torch.float32).requires_grad_()
    expected = as_torch(module, torch.float32)(x)
    assert ran_ours(module(x))
    with use_impl("reference"):
        assert not ran_ours(module(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16

    def run(*arguments):
        raise AssertionError("our kernels were called")

    monkeypatch.setattr(frozen_conv2d, "_run", run)
    for call in (
        torch.func.vmap(module),
        torch.compile(module, backend="eager", fullgraph=True),
        torch.jit.trace(module, x, check_trace=False),
    ):
        batch = x[None] if call.__class__.__name__ == "function" and call is not module else x
        y = call(batch)
        torch.testing.assert_close(y.reshape(expected.shape), expected)
    _, tangent = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    plain = as_torch(module, torch.float32)
    torch.testing.assert_close(tangent, torch.func.jvp(plain, (x,), (torch.ones_like(x),))[1])


@compiled
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_inference_mode(mode):
    with torch.inference_mode():
        made_inside = frozen(padding_mode=mode)
    module, x = frozen(padding_mode=mode), image((1, 32, 8, 8), torch.float32)
    expected = as_torch(module, torch.float32)(x)
    torch.testing.assert_close(made_inside(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(made_inside(x), expected)
        torch.testing.assert_close(module(x), expected)  # packs the weights
    gradients = []
    for each in (module, as_torch(module, torch.float32)):
        y = each(x.requires_grad_())
        gradients += torch.autograd.grad(y.pow(2).sum(), x)
    torch.testing.assert_close(*gradients)


@compiled
def test_files_and_copies_have_no_packed_weights():
    module, x = frozen(), image((1, 32, 8, 8), torch.float32)
    expected, sizes = module(x), []
    for each in (module, as_torch(module, torch.float32)):
        file = io.BytesIO()
        torch.save(each, file)
        sizes.append(file.tell())
    assert sizes[0] < 1.1 * sizes[1]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), expected)
    assert ran_ours(loaded(x.requires_grad_()))


@compiled
def test_the_output_is_channels_last():
    y = frozen()(torch.randn(1, 32, 8, 8))
    assert y.is_contiguous(memory_format=torch.channels_last)


@compiled
def test_a_changed_weight_is_noticed():
    module, x = frozen(), image((1, 32, 8, 8), torch.float32)
    before = module(x)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.weight.mul_(2)
        module.bias.mul_(2)
    torch.testing.assert_close(module(x), 2 * before)
    module.load_state_dict(copied.state_dict())
    torch.testing.assert_close(module(x), before)
    torch.testing.assert_close(copied(x), before)
    module.weight.data = 2 * copied.weight
    module.bias.data = 2 * copied.bias
    torch.testing.assert_close(module(x), 2 * before)
    torch.testing.assert_close(
        module.bfloat16()(x.bfloat16()).float(), 2 * before, rtol=0.05, atol=0.05
    )
