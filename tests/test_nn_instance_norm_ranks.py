"""InstanceNorm1d and InstanceNorm3d, and the lazy modules of every rank, against torch.nn's own."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import stylekernels
from tests.conftest import LAYOUTS, assert_layout_of, random

pytestmark = pytest.mark.usefixtures("implementation")

SIZES = {1: (9,), 2: (5, 7), 3: (4, 3, 5)}


def kinds(dims: int, lazy: str = "") -> tuple[type[nn.Module], type[nn.Module]]:
    name = f"{lazy}InstanceNorm{dims}d"
    return getattr(stylekernels.nn, name), getattr(nn, name)


def twins(dims: int, channels: int, **kwargs) -> tuple[nn.Module, nn.Module]:
    ours, theirs = (kind(channels, **kwargs) for kind in kinds(dims))
    with torch.no_grad():
        for seed, parameter in enumerate(theirs.parameters()):
            parameter.copy_(random(*parameter.shape, shift=0.7, seed=seed))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [1, 3])
class TestRanks:
    def test_running_statistics_over_several_steps(self, dims, layout):
        ours, theirs = twins(dims, 4, affine=True, track_running_stats=True)
        for step in range(3):
            x = random(3, 4, *SIZES[dims], layout=layout, shift=step, seed=step)
            y, expected = ours(x), theirs(x)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
            assert_layout_of(y, x)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)

    def test_unbatched_input(self, dims, layout):
        ours, theirs = twins(dims, 4, affine=True)
        x, residual = (random(4, *SIZES[dims], layout=layout, seed=seed) for seed in range(2))
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(x, residual), theirs(x) + residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
class TestTorchsContract:
    @pytest.mark.parametrize(
        "shape", [(4,), (2, 3, 4, 4), (2, 5, *"d"), (5, *"d"), (2, 3, *"1"), (3, *"1")]
    )
    def test_the_messages_are_torchs(self, dims, shape):
        spatial = {"d": SIZES[dims], "1": (1,) * dims}
        sizes = [spatial.get(size, (size,)) for size in shape]
        x = random(*(size for group in sizes for size in group))
        if x.dim() == 4 and dims == 3:
            x = x[..., None, None]
        messages = []
        for module in twins(dims, 3, affine=True, track_running_stats=True):
            with pytest.raises(ValueError) as error:  # noqa: PT011
                module(x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]

    @pytest.mark.parametrize("unbatched", [False, True])
    def test_another_number_of_channels_warns_without_parameters(self, dims, unbatched):
        x = random(*([] if unbatched else [2]), 5, *SIZES[dims])
        ours, theirs = twins(dims, 3)
        with pytest.warns(UserWarning, match="num_features") as their_warning:
            expected = theirs(x)
        with pytest.warns(UserWarning, match="num_features") as our_warning:
            torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)
        assert str(our_warning[0].message) == str(their_warning[0].message)

    def test_class_repr_and_copies(self, dims):
        ours, theirs = twins(dims, 3, eps=1e-3, affine=True)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        x = random(2, 3, *SIZES[dims])
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(copied(x), ours(x))

    def test_compiles_with_running_statistics(self, dims):
        torch._dynamo.reset()
        module, _ = twins(dims, 3, affine=True, track_running_stats=True)
        eager = copy.deepcopy(module)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        for more in (0, 2):
            x = random(2, 3, *(size + more for size in SIZES[dims]))
            torch.testing.assert_close(compiled(x), eager(x))
        torch.testing.assert_close(module.running_var, eager.running_var)


@pytest.mark.parametrize("dims", [1, 2, 3])
class TestLazy:
    def test_becomes_the_module(self, dims):
        ours, theirs = (kind() for kind in kinds(dims, "Lazy"))
        assert isinstance(ours, type(theirs))
        for seed in range(2):  # the first call makes parameters, and has a forward of its own
            x = random(2, 3, *SIZES[dims], seed=seed, shift=1)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
        assert type(ours) is kinds(dims)[0]
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())

    def test_the_first_call_has_the_activation(self, dims):
        ours, theirs = kinds(dims, "Lazy")
        module = ours(activation="leaky_relu", negative_slope=0.3, residual_first=True)
        x, residual = (random(2, 3, *SIZES[dims], seed=seed) for seed in range(2))
        expected = nn.functional.leaky_relu(theirs()(x) + residual, 0.3)
        for _ in range(2):
            torch.testing.assert_close(module(x, residual), expected, rtol=1e-4, atol=1e-5)
        assert "activation=leaky_relu" in repr(module)

    def test_signature(self, dims):
        ours, theirs = (list(inspect.signature(kind).parameters) for kind in kinds(dims, "Lazy"))
        assert ours[:6] == theirs[:6]
        ours, theirs = (list(inspect.signature(kind).parameters) for kind in kinds(dims))
        assert ours[:7] == theirs[:7]
        for lazy in ("", "Lazy"):
            with pytest.raises(ValueError, match="activation: expected one of none, relu"):
                kinds(dims, lazy)[0](*([] if lazy else [3]), activation="softmax")
