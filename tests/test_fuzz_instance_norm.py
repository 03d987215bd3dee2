"""instance_norm and instance_norm_stats on random cases, against formulas in float64.

Every case draws a shape, dtypes, memory layouts, magnitudes and options. Planes of one pixel are
refused unless statistics are given.
"""

import math

import pytest
import torch

from tests.conftest import assert_accurate
from tests.fuzzing import (
    GRAD_LAYOUTS,
    IMPLEMENTATIONS,
    INTERPRETED,
    LAYOUTS,
    MAGNITUDES,
    assert_bad_where_torch_has_them,
    bad_values,
    can_be_interpreted,
    dtypes,
    forced,
    fuzz,
    gradient_cancels,
    layouts,
    seeds,
    shapes,
    spoilt,
    strided,
    values,
)
from tests.instance_norms import ACTIVATIONS, exact, in_torch, ours, per_channel
from tests.test_instance_norm import check, check_stats

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

PARAMETERS = ("none", "(C,)", "(N, C)")


#: PyTorch's GELU of infinity is NaN or infinity, depending on the position.
CLEAR_FOR_INFINITY = tuple(name for name in ACTIVATIONS if name != "gelu")


def cases(ranks: tuple[int, ...] = (3, 4, 5), activations=tuple(ACTIVATIONS), **shape):
    return st.fixed_dictionaries(
        {
            "shape": shapes(ranks, **shape),
            "dtype": dtypes,
            "layout": layouts,
            "magnitude": st.sampled_from(tuple(MAGNITUDES)),
            "grad_layout": st.sampled_from(GRAD_LAYOUTS),
            "activation": st.sampled_from(activations),
            "weight": st.sampled_from(PARAMETERS),
            "bias": st.sampled_from(PARAMETERS),
            "float32_parameters": st.booleans(),
            "parameter_layout": st.sampled_from(("contiguous", "stepped", "misaligned")),
            "stats": st.sampled_from(("none", *PARAMETERS)),
            "residual": st.sampled_from((None, *LAYOUTS)),
            "residual_first": st.booleans(),
            "seed": seeds,
        }
    )


def tensors_of(case: dict) -> dict:
    shape, dtype, seed = case["shape"], case["dtype"], case["seed"]
    x = values(shape, dtype, case["layout"], case["magnitude"], seed)
    wide = case["float32_parameters"] and dtype != torch.float64
    parameter_dtype = torch.float32 if wide else dtype
    tensors = {"x": x}
    scale, shift = MAGNITUDES[case["magnitude"]](dtype)
    spread = max(1.0, scale)
    for i, (name, kind) in enumerate(
        (("weight", "weight"), ("bias", "bias"), ("mean", "stats"), ("var", "stats")), 1
    ):
        parameter = per_channel(case[kind], x, parameter_dtype, seed + i, positive=name == "var")
        if parameter is not None:
            if kind == "stats":  # near those of x
                parameter = parameter * spread + shift if name == "mean" else parameter * spread**2
            tensors[name] = strided(parameter, case["parameter_layout"])
    if case["residual"] is not None:
        tensors["residual"] = values(shape, dtype, case["residual"], "unit", seed + 5)
    return tensors


def options_of(case: dict) -> dict:
    return {name: case[name] for name in ("activation", "residual_first")}


def check_values(case: dict) -> None:
    tensors = tensors_of(case)
    options = options_of(case)
    pixels = math.prod(case["shape"][2:])
    if "mean" in tensors:
        check(tensors, case["grad_layout"], **options)
    elif pixels == 1:
        with pytest.raises(ValueError, match=r"^x: expected more than one pixel per plane"):
            ours(**tensors, **options)
    elif gradient_cancels(math.prod(case["shape"][:2]), pixels):
        wide = {name: t.double() for name, t in tensors.items()}
        calls = (ours, tensors), (in_torch, tensors), (exact, wide)
        assert_accurate(*(function(**given, **options) for function, given in calls), "output")
    else:
        check(tensors, case["grad_layout"], **options)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(60)
@given(case=cases())
def test_values(impl, case) -> None:
    if impl == "reference":  # subtracts a mean that is rounded to float32
        hypothesis.assume(case["magnitude"] != "large mean")
    with forced(impl):
        check_values(case)


@fuzz(6, interpreted=True)
@given(case=cases(most_elements=600).filter(can_be_interpreted))
def test_values_in_triton(case) -> None:
    with forced("triton"):
        check_values(case)


test_values_in_triton.pytestmark = INTERPRETED


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(
    shape=shapes((3, 4, 5)),
    dtype=dtypes,
    layout=layouts,
    magnitude=st.sampled_from([name for name in MAGNITUDES if "constant" not in name]),
    which=st.sampled_from((0, 1)),
    seed=seeds,
)
def test_stats(impl, shape, dtype, layout, magnitude, which, seed) -> None:
    """Relative errors of a variance of zero say nothing: constant planes have their own test."""
    if impl == "reference":  # subtracts a mean that is rounded to float32
        hypothesis.assume(magnitude != "large mean")
    with forced(impl):
        check_stats(values(shape, dtype, layout, magnitude, seed), which)


def check_bad_values(case: dict, bad: list) -> None:
    """A plane without bad values is as accurate as ever."""
    tensors = tensors_of(case | {"layout": "contiguous", "magnitude": "unit"})
    x = tensors["x"] = spoilt(tensors["x"], bad, case["layout"])
    if "mean" not in tensors and math.prod(x.shape[2:]) == 1:
        return
    results = assert_bad_where_torch_has_them(ours, in_torch, tensors, **options_of(case))
    healthy = x.isfinite().flatten(2).all(2)
    if healthy.any():
        wide = {name: t.double() for name, t in tensors.items()}
        outputs = [*results, exact(**wide, **options_of(case))]
        assert_accurate(*(y[healthy] for y in outputs), "healthy planes")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases(activations=CLEAR_FOR_INFINITY), bad=bad_values)
def test_bad_values(impl, case, bad) -> None:
    with forced(impl):
        check_bad_values(case, bad)
