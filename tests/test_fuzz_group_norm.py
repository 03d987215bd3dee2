"""group_norm on random cases, against formulas in float64.

The cases are those of instance norm, of any rank from 2 and with a number of groups.
"""

import pytest
from torch import Tensor

from tests.conftest import assert_accurate
from tests.fuzzing import (
    IMPLEMENTATIONS,
    INTERPRETED,
    assert_bad_where_torch_has_them,
    bad_values,
    can_be_interpreted,
    forced,
    fuzz,
    gradient_cancels,
    spoilt,
)
from tests.group_norms import exact, in_torch, ours
from tests.test_fuzz_instance_norm import CLEAR_FOR_INFINITY, cases, options_of, tensors_of
from tests.test_group_norm import check

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

RANKS = (2, 3, 4, 5, 6)


def groups_of(x: Tensor, which: int) -> int:
    """Return a divisor of the number of channels."""
    divisors = [groups for groups in range(1, x.shape[1] + 1) if x.shape[1] % groups == 0]
    return divisors[which % len(divisors)]


def check_values(case: dict, which: int) -> None:
    tensors = tensors_of(case | {"stats": "none"})
    x = tensors["x"]
    options = options_of(case) | {"groups": groups_of(x, which)}
    count = x.shape[0] * options["groups"]
    group_size = x.shape[1:].numel() // options["groups"]
    wide = {name: t.double() for name, t in tensors.items()}
    if group_size == 1:  # normalised to 0, where PyTorch refuses some batches
        expected = exact(**wide, **options)
        assert_accurate(ours(**tensors, **options), expected.to(x.dtype), expected, "output")
    elif gradient_cancels(count, group_size):
        calls = (ours, tensors), (in_torch, tensors), (exact, wide)
        assert_accurate(*(function(**given, **options) for function, given in calls), "output")
    else:
        check(tensors, case["grad_layout"], **options)


def check_bad_values(case: dict, which: int, bad: list) -> None:
    tensors = tensors_of(case | {"stats": "none", "layout": "contiguous", "magnitude": "unit"})
    x = tensors["x"] = spoilt(tensors["x"], bad, case["layout"])
    groups = groups_of(x, which)
    if x.shape[1:].numel() == groups:
        return
    results = assert_bad_where_torch_has_them(
        ours, in_torch, tensors, **options_of(case), groups=groups
    )
    wide = {name: t.double() for name, t in tensors.items()}
    outputs = [*results, exact(**wide, **options_of(case), groups=groups)]
    healthy = x.isfinite().unflatten(1, (groups, -1)).flatten(2).all(2)
    if healthy.any():
        grouped = [y.unflatten(1, (groups, -1)) for y in outputs]
        assert_accurate(*(y[healthy] for y in grouped), "healthy groups")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(60)
@given(case=cases(RANKS), which=st.integers(0, 20))
def test_values(impl, case, which) -> None:
    if impl == "reference":  # subtracts a mean that is rounded to float32
        hypothesis.assume(case["magnitude"] != "large mean")
    with forced(impl):
        check_values(case, which)


@fuzz(4, interpreted=True)
@given(case=cases(RANKS, most_elements=600).filter(can_be_interpreted), which=st.integers(0, 20))
def test_values_in_triton(case, which) -> None:
    with forced("triton"):
        check_values(case, which)


test_values_in_triton.pytestmark = INTERPRETED


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases(RANKS, CLEAR_FOR_INFINITY), which=st.integers(0, 20), bad=bad_values)
def test_bad_values(impl, case, which, bad) -> None:
    with forced(impl):
        check_bad_values(case, which, bad)
