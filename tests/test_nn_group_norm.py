"""GroupNorm against torch.nn's own."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels.nn import GroupNorm
from tests.conftest import assert_accurate, assert_layout_of, random
from tests.instance_norms import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("implementation")


def twins(*args, **kwargs) -> tuple[GroupNorm, nn.GroupNorm]:
    ours, theirs = GroupNorm(*args, **kwargs), nn.GroupNorm(*args, **kwargs)
    with torch.no_grad():
        for seed, parameter in enumerate(theirs.parameters()):
            parameter.copy_(random(*parameter.shape, shift=0.7, seed=seed))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.parametrize("shape", [(3, 6), (2, 6, 9), (2, 6, 5, 7), (2, 6, 4, 3, 5)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_outputs_and_gradients(groups, shape, layout) -> None:
    ours, theirs = twins(groups, 6)
    exact = copy.deepcopy(theirs).double()
    x = random(*shape, layout=layout, shift=3.0)
    cotangent = random(*shape, seed=1)
    results = []
    for module in (ours, theirs, exact):
        dtype = next(module.parameters()).dtype
        leaf = x.to(dtype).requires_grad_() if dtype != x.dtype else x.detach().requires_grad_()
        y = module(leaf)
        inputs = (leaf, *module.parameters())
        results.append((y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(dtype))))
    for actual, in_torch, wanted in zip(*results, strict=True):
        if shape == (3, 6) and groups == 6:  # a value for each group: PyTorch returns 0
            torch.testing.assert_close(actual, wanted.to(actual.dtype), atol=1e-4, rtol=1e-5)
        else:
            assert_accurate(actual, in_torch, wanted)
    assert_layout_of(ours(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_of_a_float32_module(dtype) -> None:
    ours, theirs = twins(2, 6)
    x = random(2, 6, 8, 6, dtype=dtype)
    y = ours(x)
    assert y.dtype == dtype
    expected = theirs(x.float())
    assert_accurate(y, expected.to(dtype), copy.deepcopy(theirs).double()(x.double()))


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_residual(activation, residual_first) -> None:
    ours, theirs = twins(3, 6)
    options = {"activation": activation, "negative_slope": 0.2, "residual_first": residual_first}
    module = GroupNorm(3, 6, **options)
    module.load_state_dict(theirs.state_dict())
    x, residual = (random(2, 6, 6, 5, seed=seed) for seed in range(2))
    act = ACTIVATIONS[activation]
    first, last = act(theirs(x) + residual), act(theirs(x)) + residual
    expected = first if residual_first else last
    torch.testing.assert_close(module(x, residual), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours(x, then=("silu", 0.01)), F.silu(theirs(x)), rtol=1e-4, atol=1e-5
    )


def test_signature_repr_state_and_copies() -> None:
    ours, theirs = twins(2, 6, eps=1e-3)
    positional = list(inspect.signature(nn.GroupNorm).parameters.values())[:6]
    for our, their in zip(
        inspect.signature(GroupNorm).parameters.values(), positional, strict=False
    ):
        assert (our.name, our.default) == (their.name, their.default)
    assert repr(ours) == repr(theirs)
    assert repr(GroupNorm(2, 6, activation="silu")).endswith(", activation=silu)")
    assert isinstance(ours, nn.GroupNorm)
    theirs.load_state_dict(ours.state_dict())
    x = random(2, 6, 4, 5)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x), ours(x))


def test_without_parameters() -> None:
    x = random(2, 6, 4, 5)
    ours, theirs = twins(2, 6, affine=False)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not ours.state_dict()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"num_channels \(6\) must be divisible by num_groups"):
        GroupNorm(4, 6)
    with pytest.raises(ValueError, match="activation: expected one of none, relu"):
        GroupNorm(2, 6, activation="softmax")
    with pytest.raises(ValueError, match=r"weight: expected shape \(C,\) = \(4,\)"):
        GroupNorm(2, 6)(random(2, 4, 3, 3))


def test_compiles() -> None:
    torch._dynamo.reset()
    module, _ = twins(2, 6)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 8):
        x = random(2, 6, size, 7)
        torch.testing.assert_close(compiled(x), module(x))
