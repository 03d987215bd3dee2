"""gram_matrix, gram_loss and gram_losses on random cases, against an einsum in float64.

Centred features of one value a plane are zero, and relative errors of zero say nothing: centred
cases have several pixels and no constant planes.
"""

import pytest
import torch

from stylekernels import gram_loss, gram_matrix, native
from tests.fuzzing import (
    IMPLEMENTATIONS,
    INTERPRETED,
    LAYOUTS,
    MAGNITUDES,
    bad_values,
    dtypes,
    few_or_many,
    forced,
    fuzz,
    layouts,
    seeds,
    shapes,
    spoilt,
    values,
)
from tests.test_gram_losses import check_losses
from tests.test_gram_matrix import (
    TARGET_LAYOUTS,
    TARGET_SHAPES,
    apart,
    check_gram,
    check_loss,
    exact_gram,
    target_for,
)

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

channels = st.one_of(few_or_many, st.sampled_from((96, 100, 128, 130)))
VARYING = tuple(name for name in MAGNITUDES if name not in ("constant planes", "constant", "zero"))

# Its gradient exceeds float16 in some elements.
INFINITE_GRADIENT = {
    "shape": (1, 1, 15, 31, 31),
    "dtype": torch.float16,
    "layout": "contiguous",
    "magnitude": "unit",
    "scale": 1.0,
    "center": False,
    "target_shape": "(N, C, C)",
    "target_layout": "contiguous",
    "seed": 0,
}

# The instructions that multiply pairs of bfloat16 take denormal values for zeros.
MULTIPLIES_PAIRS = native.cpu_capability in ("avx512_bf16", "amx", "amx_emulated_avx512")


def cases(most_elements: int = 20_000):
    return st.fixed_dictionaries(
        {
            "shape": shapes((3, 4, 5), most_elements, channels),
            "dtype": dtypes,
            "layout": layouts,
            "magnitude": st.sampled_from(tuple(MAGNITUDES)),
            "scale": st.sampled_from((None, 1.0, 3e-5, -0.5)),
            "center": st.booleans(),
            "target_shape": st.sampled_from(TARGET_SHAPES),
            "target_layout": st.sampled_from(TARGET_LAYOUTS),
            "seed": seeds,
        }
    ).filter(is_comparable)


def is_comparable(case: dict) -> bool:
    if case["center"] and case["magnitude"] not in VARYING:
        return False
    large = case["magnitude"] not in ("unit", "small", "denormal", "zero")
    if case["dtype"] == torch.float16 and large and case["scale"] is not None:
        return False  # gradients exceed float16
    if case["magnitude"] == "denormal" and case["dtype"] == torch.bfloat16 and MULTIPLIES_PAIRS:
        return False
    pixels = torch.Size(case["shape"][2:]).numel()
    return not case["center"] or pixels > 4


def features_of(case: dict) -> torch.Tensor:
    return values(case["shape"], case["dtype"], case["layout"], case["magnitude"], case["seed"])


def check_matrix(case: dict) -> None:
    check_gram(features_of(case), scale=case["scale"], center=case["center"])


def check_one_loss(case: dict) -> None:
    """A loss is one number, which PyTorch may have exactly by luck, with twice the error of a Gram
    matrix. So the matrix has no large sums of one sign. Gradients of denormal features underflow.
    The mean of no squares is NaN."""
    x = features_of(case)
    one_sign = case["magnitude"] in ("large mean", "constant", "constant planes")
    if len(x) == 0 or case["magnitude"] == "denormal" or (one_sign and not case["center"]):
        return
    options = {"scale": case["scale"], "center": case["center"]}
    target = target_for(x, case["target_shape"], case["target_layout"])
    check_loss(x, apart(target, exact_gram(x.double(), **options)), **options)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases())
def test_gram_matrix(impl, case) -> None:
    with forced(impl):
        check_matrix(case)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(case=cases())
@hypothesis.example(case=INFINITE_GRADIENT)
def test_gram_loss(impl, case) -> None:
    with forced(impl):
        check_one_loss(case)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(20)
@given(
    layers=st.lists(st.tuples(shapes((3, 4, 5), 4000, channels), layouts), min_size=1, max_size=6),
    dtype=dtypes,
    scales=st.booleans(),
    center=st.booleans(),
    seed=seeds,
)
def test_gram_losses(impl, layers, dtype, scales, center, seed) -> None:
    features = [
        values((max(1, shape[0]), *shape[1:-1], shape[-1] + 4), dtype, layout, "unit", seed + i)
        for i, (shape, layout) in enumerate(layers)
    ]
    scaled = scales and dtype != torch.float16  # whose gradients exceed it
    factors = (0.25, 3e-5, 1.0, -0.5, 2.0, 1.5)[: len(features)] if scaled else None
    with forced(impl):
        check_losses(features, factors, center)


@fuzz(4, interpreted=True)
@given(case=cases(most_elements=600))
def test_values_in_triton(case) -> None:
    with forced("triton"):
        check_matrix(case)
        check_one_loss(case)


test_values_in_triton.pytestmark = INTERPRETED


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@fuzz(40)
@given(
    shape=shapes((3, 4, 5), channels=channels),
    dtype=dtypes,
    layout=st.sampled_from([name for name in LAYOUTS if name not in ("expanded", "repeated")]),
    center=st.booleans(),
    bad=bad_values,
    seed=seeds,
)
def test_bad_values(impl, shape, dtype, layout, center, bad, seed) -> None:
    """NaN and infinities are where the sums have them."""
    x = values(shape, dtype, "contiguous", "unit", seed)
    x = spoilt(x, bad, layout)
    with forced(impl):
        gram = gram_matrix(x, center=center)
        exact = exact_gram(x.double(), center=center)
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(gram), test(exact)), test.__name__
        if len(x) > 0:
            target = target_for(x)
            loss = gram_loss(x, target, center=center)
            expected = (exact - target).square().mean()
            assert (loss.isnan(), loss.isinf()) == (expected.isnan(), expected.isinf())
