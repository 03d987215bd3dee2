"""norm_conv2d on random cases, against PyTorch's convolutions in float64."""

import pytest
import torch

from stylekernels import norm_conv2d
from tests.conftest import random
from tests.convolutions import (
    MODES,
    PADDING_MODES,
    check,
    half_padded,
    in_torch,
    inputs,
    is_possible,
    padding_of,
)
from tests.fuzzing import (
    IMPLEMENTATIONS,
    INTERPRETED,
    LAYOUTS,
    bad_values,
    dtypes,
    few_or_many,
    forced,
    fuzz,
    layouts,
    seeds,
    spoilt,
    strided,
)
from tests.instance_norms import ACTIVATIONS
from tests.test_norm_conv2d_contract import assert_finite_where_exact_is

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

#: Without those that repeat values: the largest error would be that of one sum.
WEIGHT_LAYOUTS = tuple(name for name in LAYOUTS if name not in ("expanded", "repeated"))
channels = st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 31, 32, 33)))


def cases(channels=channels, sides=few_or_many):
    return st.fixed_dictionaries(
        {
            "mode": st.sampled_from(MODES),
            "size": st.tuples(sides, st.integers(1, 24)),
            "batch": st.sampled_from((1, 1, 2, 3, 0)),
            "channels": channels,
            "out_channels": channels,
            "border": st.sampled_from(("none", "half", "most")),
            "padding_mode": st.sampled_from(PADDING_MODES),
            "dtype": dtypes,
            "layout": layouts,
            "weight_layout": st.sampled_from(WEIGHT_LAYOUTS),
            "shift": st.sampled_from((0.0, 3.0, 1000.0)),
            "scale_shift": st.sampled_from((None, "contiguous", "stepped", "transposed")),
            "bias": st.sampled_from((None, "float32", "x's")),
            "residual": st.sampled_from((None, *LAYOUTS)),
            "activation": st.sampled_from(tuple(ACTIVATIONS)),
            "return_input": st.booleans(),
            "return_stats": st.booleans(),
        }
    ).filter(is_possible)


def tensors_of(case: dict) -> dict[str, torch.Tensor]:
    # Without a norm a large mean is that of the output, and float16 ends at 65504.
    shift = case["shift"] if case["scale_shift"] else min(case["shift"], 3.0)
    shape = (case["batch"], case["channels"], *case["size"])
    tensors = inputs(
        case["mode"],
        shape,
        case["out_channels"],
        case["dtype"],
        shift=shift,
        scale_shift=case["scale_shift"] is not None,
        bias=None if case["dtype"] == torch.float64 and case["bias"] else case["bias"],
    )
    tensors["x"] = strided(tensors["x"], case["layout"])
    tensors["weight"] = strided(tensors["weight"], case["weight_layout"])
    if case["scale_shift"]:
        tensors["scale_shift"] = strided(tensors["scale_shift"], case["scale_shift"])
    if case["residual"] is not None:
        residual = random(*shape, dtype=case["dtype"], seed=5, shift=0.5)
        tensors["residual"] = strided(residual, case["residual"])
    return tensors


def check_values(case: dict) -> None:
    upsample, _, stride = case["mode"]
    constant = upsample != "none" and case["size"] == (1, 1)  # variance but for rounding
    check(
        tensors_of(case),
        stride=stride,
        padding=padding_of(case["mode"], case["border"]),
        padding_mode=case["padding_mode"],
        upsample=upsample,
        activation=case["activation"],
        return_input=case["return_input"],
        return_stats=case["return_stats"] and not constant,
    )


@pytest.mark.filterwarnings("ignore:var_mean")  # of no image, or of one pixel
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(80)
@given(case=cases())
def test_values(impl, case) -> None:
    with forced(impl):
        check_values(case)


@fuzz(4, interpreted=True)
@given(case=cases(st.integers(1, 9), st.integers(1, 6)))
def test_values_in_triton(case) -> None:
    with forced("triton"):
        check_values(case)


test_values_in_triton.pytestmark = [
    *INTERPRETED,
    pytest.mark.filterwarnings("ignore:var_mean"),
]


def reach_of_bad_values(case: dict) -> int:
    """Return how many pixels around those of PyTorch may be NaN: docs/design.md."""
    upsample, kernel, stride = case["mode"]
    if case["dtype"] == torch.float64:
        return 0
    if stride == 2:
        return 3 if kernel in (3, 4) else 0
    if upsample != "none":
        return 7
    return 4 if kernel >= 5 else 3 if kernel in (2, 3) else 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases(), bad=bad_values, seed=seeds)
def test_bad_values(impl, case, bad, seed) -> None:
    """NaN and infinities reach the outputs that PyTorch's reach, and a few around these."""
    case = case | {"shift": 0.0, "activation": "none", "border": "half"}
    options = {"padding_mode": case["padding_mode"], **half_padded(case["mode"])}
    if not is_possible(case) or case["batch"] == 0:
        return
    tensors = tensors_of(case | {"layout": "contiguous"})
    tensors["x"] = spoilt(tensors["x"], bad, case["layout"])
    with forced(impl):
        y, mean, var, _ = norm_conv2d(**tensors, **options)
    exact = in_torch(**{name: t.double() for name, t in tensors.items()}, **options)[0]
    if impl == "reference":  # PyTorch's convolutions in bfloat16: docs/pytorch-faults.md
        reach = int(case["dtype"] == torch.bfloat16)
    else:
        reach = reach_of_bad_values(case)
    assert_finite_where_exact_is(y, exact, reach)
    for stat in (mean, var):
        assert torch.equal(stat.isfinite(), y.isfinite().all((2, 3)))
