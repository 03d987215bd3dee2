"""upsample_block on random cases, against convolutions from index formulas in float64."""

import pytest
import torch

from stylekernels import upsample_block
from tests.conftest import random
from tests.convolutions import PADDING_MODES
from tests.fuzzing import (
    GRAD_LAYOUTS,
    IMPLEMENTATIONS,
    INTERPRETED,
    bad_values,
    dtypes,
    forced,
    fuzz,
    gradient_cancels,
    layouts,
    seeds,
    shapes,
    spoilt,
    strided,
)
from tests.instance_norms import ACTIVATIONS
from tests.test_upsample_block import KINDS, check

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

channels = st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 31, 32, 33)))


def cases(most_elements: int = 2000):
    return st.fixed_dictionaries(
        {
            "shape": shapes((4,), most_elements, channels),
            "outputs": channels,
            "kind": st.sampled_from(KINDS),
            "padding_mode": st.sampled_from(PADDING_MODES),
            "dtype": dtypes,
            "layout": layouts,
            "weight_layout": layouts,
            "grad_layout": st.sampled_from(GRAD_LAYOUTS),
            "activation": st.sampled_from(tuple(ACTIVATIONS)),
            "norm": st.sampled_from(("none", "instance")),
            "parameters": st.sampled_from((None, "(C,)", "(N, C)")),
            "bias": st.booleans(),
            "seed": seeds,
        }
    )


def can_reflect(case: dict) -> bool:
    (upsample, kernel), side = case["kind"], min(case["shape"][2:])
    return side * 2 > kernel // 2 if upsample == "nearest" else side > 1


def tensors_of(case: dict) -> dict[str, torch.Tensor]:
    (upsample, kernel), dtype, seed = case["kind"], case["dtype"], case["seed"]
    inputs, outputs = case["shape"][1], case["outputs"]
    sizes = (inputs, outputs) if upsample == "transpose" else (outputs, inputs)
    x = random(*case["shape"], dtype=dtype, shift=0.2, seed=seed)
    spread = (inputs * kernel) ** -0.5
    weight = random(*sizes, kernel, kernel, dtype=dtype, scale=spread, seed=seed + 1)
    tensors = {
        "x": strided(x, case["layout"]),
        "weight": strided(weight, case["weight_layout"]),
    }
    if case["norm"] == "none":
        if case["bias"]:
            tensors["bias"] = random(outputs, dtype=dtype, seed=seed + 2)
    elif case["parameters"] is not None:
        size = (outputs,) if case["parameters"] == "(C,)" else (len(x), outputs)
        for i, name in enumerate(("norm_weight", "norm_bias"), 3):
            tensors[name] = random(*size, dtype=dtype, seed=seed + i, shift=0.5)
    return tensors


def check_values(case: dict) -> None:
    tensors = tensors_of(case)
    mode = case["kind"][0], case["padding_mode"], case["norm"], case["activation"]
    if case["padding_mode"] == "reflect" and not can_reflect(case):
        with pytest.raises(ValueError, match=r"^x: expected more than \d pixels a side"):
            call(case, tensors)
        return
    # PyTorch's gradient of the norm of one image in channels_last: docs/pytorch-faults.md.
    grad_layout = case["grad_layout"] if case["shape"][0] != 1 else "contiguous"
    check(tensors, *mode, grad_layout)


def call(case: dict, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    options = {name: case[name] for name in ("padding_mode", "norm", "activation")}
    return upsample_block(**tensors, upsample=case["kind"][0], **options)


def is_comparable(case: dict) -> bool:
    """Return whether the exact results are no zeros but for rounding.

    A norm undoes the weights of a kernel of one pixel and few channels, and the gradient of planes
    of few pixels nearly cancels.
    """
    n, channels, height, width = case["shape"]
    few = case["kind"][1] == 1 and (channels < 4 or case["layout"] == "repeated")
    cancels = few or min(height, width) == 1
    cancels = cancels or gradient_cancels(n * case["outputs"], height * width)
    return case["norm"] == "none" or not cancels


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(60)
@given(case=cases().filter(is_comparable))
def test_values(impl, case) -> None:
    with forced(impl):
        check_values(case)


@fuzz(4, interpreted=True)
@given(case=cases(most_elements=200).filter(is_comparable))
def test_values_in_triton(case) -> None:
    with forced("triton"):
        check_values(case)


test_values_in_triton.pytestmark = INTERPRETED


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases().filter(can_reflect), bad=bad_values)
def test_bad_values(impl, case, bad) -> None:
    """Images without bad values have the same output and gradient as alone. All pixels of the
    others are NaN after a norm."""
    case = case | {"activation": "none"}  # some take infinity to 0
    tensors = tensors_of(case | {"layout": "contiguous"})
    healthy_x = tensors["x"]
    x = tensors["x"] = spoilt(healthy_x, bad, case["layout"]).requires_grad_()
    healthy = x.detach().isfinite().flatten(1).all(1)
    with forced(impl):
        y = call(case, tensors)
        if case["norm"] == "instance":
            assert y[~healthy].isnan().all()
        else:
            assert not y[~healthy].flatten(1).isfinite().all(1).any()
        (grad,) = torch.autograd.grad(y.sum(), x)
        whole = strided(healthy_x, case["layout"]).requires_grad_()
        y_whole = call(case, tensors | {"x": whole})
        (grad_whole,) = torch.autograd.grad(y_whole.sum(), whole)
    assert torch.equal(y[healthy], y_whole[healthy])
    assert torch.equal(grad[healthy], grad_whole[healthy])
