"""instance_norm of (N, C, L) and (N, C, D, H, W), against formulas written here in float64.

The kernels see the same planes as in rank 4, so what is tested here is that tensors of other ranks
reach them without a copy, and that results, gradients and transforms have the rank and the layout
of the input.
"""

import pytest
import torch

from stylekernels import explain, instance_norm, instance_norm_stats, use_impl
from tests.conftest import (
    DTYPES,
    LAYOUTS,
    Recorder,
    assert_accurate,
    assert_layout_of,
    assert_same_strides,
    random,
)
from tests.instance_norms import ACTIVATIONS, exact, in_torch, ours, per_channel
from tests.pairwise import missing_pairs, name_of, pairwise
from tests.test_instance_norm import check, check_stats

pytestmark = pytest.mark.usefixtures("implementation")

SHAPES = ((0, 8, 5), (3, 17, 37), (1, 64, 2), (0, 4, 2, 3, 2), (2, 17, 3, 5, 7), (1, 33, 1, 4, 1))
OPTIONS = {
    "shape": SHAPES,
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "activation": tuple(ACTIVATIONS),
    "parameters": ("none", "(C,)", "(N, C)"),
    "stats": ("none", "(C,)", "(N, C)"),
    "residual": (None, *LAYOUTS),
    "residual_first": (False, True),
}
CASES = tuple(pairwise(OPTIONS))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)


def check_case(case, device) -> None:
    shape, dtype = case["shape"], case["dtype"]
    x = random(*shape, dtype=dtype, layout=case["layout"], device=device, scale=2.0, shift=0.3)
    tensors = {"x": x}
    for seed, name in enumerate(("weight", "bias"), 1):
        tensors[name] = per_channel(case["parameters"], x, dtype, seed)
    if case["residual"] is not None:
        tensors["residual"] = random(
            *shape, dtype=dtype, layout=case["residual"], device=device, seed=5
        )
    tensors["mean"] = per_channel(case["stats"], x, dtype, 6)
    tensors["var"] = per_channel(case["stats"], x, dtype, 7, positive=True)
    options = {name: case[name] for name in ("activation", "residual_first")}
    check(tensors, case["grad_layout"], **options)


@pytest.mark.filterwarnings("ignore:var:UserWarning")  # of no values
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    check_case(case, device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 40000), (1, 32, 16, 40, 33), (2, 7, 9, 31, 130)])
def test_planes_of_several_chunks(shape, dtype, layout, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=10.0)
    residual = random(*shape, dtype=dtype, layout=layout, device=device, seed=1)
    check({"x": x, "residual": residual}, activation="leaky_relu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", [(3, 5, 37), (2, 9, 3, 7, 5)])
def test_stats(shape, which, layout, device) -> None:
    x = random(*shape, layout=layout, device=device, shift=1000)
    check_stats(x, which)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 4, 5, 6)])
def test_nothing_is_copied(shape, layout, device) -> None:
    x = random(*shape, layout=layout, device=device).requires_grad_()
    residual = random(*shape, layout=layout, device=device, seed=1)
    grad = random(*shape, layout=layout, device=device, seed=2)
    with Recorder() as recorder:
        y = instance_norm(x, residual=residual, activation="relu", residual_first=True)
        y.backward(grad)
    assert set(recorder.ops) == {"instance_norm", "instance_norm_backward"}
    assert_layout_of(y, x)
    assert_layout_of(x.grad, x)


@pytest.mark.parametrize("stats", ["none", "(N, C)"])
@pytest.mark.parametrize("shape", [(2, 2, 5), (1, 2, 2, 1, 3)])
def test_second_derivatives(shape, stats, device) -> None:
    x = random(*shape, dtype=torch.float64, device=device).requires_grad_()
    weight = random(2, dtype=torch.float64, device=device, seed=1, shift=2).requires_grad_()
    given = {"mean": per_channel(stats, x.detach(), torch.float64, 2)}
    given["var"] = per_channel(stats, x.detach(), torch.float64, 3, positive=True)

    def function(x, weight):
        return ours(x, weight, activation="tanh", **given)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@pytest.mark.parametrize("shape", [(1, 12, 5), (1, 12, 4, 5, 6), (2, 12, 4, 5, 6)])
def test_strides_of_channels_last(shape, device) -> None:
    """PyTorch tells the layout of a batch of one by its stride, which a view may change."""
    x = random(*shape, layout="channels_last", device=device).requires_grad_()
    y = instance_norm(x, activation="relu")
    y.square().sum().backward()
    pixels = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert y.stride() == x.grad.stride() == pixels.stride()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled(layout, dynamic) -> None:
    def function(x, residual):
        return instance_norm(x, residual=residual, activation="relu")

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 9), (3, 3, 11), (2, 3, 4, 5, 6), (1, 3, 5, 3, 8)):
        x = random(*shape, layout=layout).requires_grad_()
        residual = random(*shape, layout=layout, seed=1)
        y, expected = compiled(x, residual), function(x, residual)
        torch.testing.assert_close(y, expected)
        assert compiled(x.detach(), residual).stride() == expected.stride()
        assert_same_strides(y, expected)
        grads = [torch.autograd.grad(result.square().sum(), x)[0] for result in (y, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 4, 5, 6)])
def test_exported_with_a_free_batch_and_sizes(shape) -> None:
    class Norm(torch.nn.Module):
        def forward(self, x):
            return instance_norm(x, activation="relu")

    free = dict.fromkeys((0, *range(2, len(shape))), torch.export.Dim.AUTO)
    exported = torch.export.export(Norm(), (random(*shape),), dynamic_shapes=(free,)).module()
    x = random(3, 3, *(size + 2 for size in shape[2:]), seed=1)
    torch.testing.assert_close(exported(x), Norm()(x))


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_transforms(layout, shape) -> None:
    x = random(*shape, dtype=torch.float64, layout=layout)
    tangent = random(*shape, dtype=torch.float64, seed=1)

    def function(x):
        return instance_norm(x, activation="tanh")

    expected, expected_tangent = torch.func.jvp(
        lambda x: exact(x, activation="tanh"), (x,), (tangent,)
    )
    y, y_tangent = torch.func.jvp(function, (x,), (tangent,))
    torch.testing.assert_close((y, y_tangent), (expected, expected_tangent))
    mapped = torch.func.vmap(function)(torch.stack((x, 2 * x + 1)))
    torch.testing.assert_close(mapped[0], expected)
    grad = torch.func.grad(lambda x: function(x).pow(3).sum())(x)
    torch.testing.assert_close(
        grad, torch.func.grad(lambda x: exact(x, activation="tanh").pow(3).sum())(x)
    )


def test_residual_of_another_dtype_under_autocast() -> None:
    x, residual = random(2, 3, 4, 5, 6, dtype=torch.bfloat16), random(2, 3, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = instance_norm(x, residual=residual)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, in_torch(x.float(), residual=residual))


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 3, 1, 1, 1)])
def test_a_single_pixel(shape) -> None:
    x = random(*shape)
    with pytest.raises(ValueError, match=r"x: expected more than one pixel .*" + str(shape)[1:-1]):
        instance_norm(x)
    zeros, ones = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(instance_norm(x, stats=(zeros, ones), eps=0.0), x)


def test_other_numbers_of_dimensions() -> None:
    for shape in ((3,), (2, 3), (1, 2, 3, 4, 5, 6)):
        for function in (instance_norm, instance_norm_stats):
            with pytest.raises(ValueError, match=r"x: expected shape \(N, C, L\) or "):
                function(random(*shape))


def test_explain_names_the_layout() -> None:
    x = random(2, 3, 4, 5, 6, layout="channels_last")
    assert "(2, 3, 4, 5, 6) float32 channels_last on cpu" in explain("instance_norm", x)
    assert "strided" in explain("instance_norm", x.transpose(2, 3))


def test_forced_reference(device) -> None:
    x = random(2, 3, 4, 5, 6, layout="channels_last", device=device)
    with use_impl("reference"):
        y, stats = instance_norm(x, activation="relu"), instance_norm_stats(x)
    assert_layout_of(y, x)
    assert_accurate(y, in_torch(x, activation="relu"), exact(x.double(), activation="relu"))
    torch.testing.assert_close(stats, instance_norm_stats(x))
