"""Numbers that users choose freely are arguments of the Triton kernels: other values do not compile
them again."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels
from stylekernels import gram_loss, gram_matrix, instance_norm, norm_conv2d, upsample_block
from stylekernels.triton import launch
from tests.conftest import TRITON, random
from tests.convolve_into import convolve_into

pytestmark = [
    *TRITON,
    pytest.mark.skipif(not launch.INTERPRETED.value, reason="counts launches of the interpreter"),
]


def compiled_for(argument) -> object:
    """Return the specialisation of a kernel for an argument that is no constant."""
    if isinstance(argument, tuple):
        return tuple(map(compiled_for, argument))
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument == 1, argument % 16 == 0
    return argument.dtype if isinstance(argument, Tensor) else type(argument)


@pytest.fixture
def variants(monkeypatch) -> list[tuple]:
    """Return the specialisation of each launch."""
    from triton.runtime import interpreter

    found, call = [], interpreter.GridExecutor.__call__

    def record(self, *args, **kwargs):
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        key = {
            name: value if name in self.constexprs else compiled_for(value)
            for name, value in given.items()
        }
        found.append((self.fn.__name__, tuple(sorted(key.items(), key=str))))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    return found


#: Small, large, exact in float32 and not, the integers that Triton knows among them.
NUMBERS = (1e-5, 1e-3, 0.1, 1.0, 16.0, 0.0)
X = random(2, 5, 6, 7)
LARGE = random(1, 3, 70, 80)  # its planes are split into chunks
WEIGHT = random(4, 5, 3, 3, seed=1)
SCALE_SHIFT = random(2, 5, 2, seed=2)


def norm_conv2d_out(eps: float, slope: float) -> Tensor:
    ops, mode = torch.ops.stylekernels, (1, 1, "zeros", "none")
    y = torch.empty(2, 4, 6, 7).contiguous(memory_format=torch.channels_last)
    x = X.contiguous(memory_format=torch.channels_last)
    pairs = torch.empty(2, 4, 2)
    workspace = torch.empty(ops.norm_conv2d_workspace(WEIGHT, 2, 6, 7, *mode), dtype=torch.float64)
    packed = ops.norm_conv2d_pack(WEIGHT, *mode)
    convolve_into(
        y,
        workspace,
        x,
        WEIGHT,
        packed,
        mode,
        scale_shift=SCALE_SHIFT,
        activation="leaky_relu",
        negative_slope=slope,
        norm=(None, None, eps),
        next_scale_shift=pairs,
    )
    return pairs


def with_gradient(function, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


CALLS = {
    "instance_norm": lambda a, b: with_gradient(
        lambda x: instance_norm(x, activation="leaky_relu", negative_slope=b, eps=a), X
    ),
    "instance_norm in chunks": lambda a, b: with_gradient(
        lambda x: instance_norm(x, activation="leaky_relu", negative_slope=b, eps=a), LARGE
    ),
    "norm_conv2d": lambda a, b: (
        norm_conv2d(X, WEIGHT, scale_shift=SCALE_SHIFT, activation="leaky_relu", negative_slope=b).y
    ),
    "norm_conv2d_out": norm_conv2d_out,
    "upsample_block": lambda a, b: upsample_block(
        X, random(5, 4, 4, 4, seed=3), activation="leaky_relu", negative_slope=b, eps=a
    ),
    "gram_matrix": lambda a, b: gram_matrix(X, scale=a + 0.1),
    "gram_loss": lambda a, b: with_gradient(
        lambda x: gram_loss(x, random(2, 5, 5, seed=4), scale=b + 0.1), X
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_numbers_compile_nothing(name, variants) -> None:
    results, first = [], None
    for number in NUMBERS:
        variants.clear()
        results.append(CALLS[name](number or 1e-7, number))
        first = first or list(variants)
        assert variants == first
    assert first, "kernels ran"
    assert not torch.equal(results[0], results[2]), "the number counts"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_keep_their_digits(dtype) -> None:
    """One third is not exact in binary: in float32 its error would be 3e-8."""
    x = random(2, 3, 5, 6, dtype=dtype, scale=0.1)
    options = {"activation": "leaky_relu", "negative_slope": 1 / 3}
    y = instance_norm(x, eps=1 / 3, **options).double()
    mean, var = x.double().mean((2, 3), True), x.double().var((2, 3), correction=0, keepdim=True)
    expected = torch.nn.functional.leaky_relu((x.double() - mean) / (var + 1 / 3).sqrt(), 1 / 3)
    tolerance = 1e-14 if dtype == torch.float64 else 3e-7
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance / 10)
