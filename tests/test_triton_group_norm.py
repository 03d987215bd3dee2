"""group_norm in Triton's kernels: pairs of options, and what holds for every implementation."""

import pytest

from tests.conftest import DTYPES, TRITON
from tests.instance_norms import ACTIVATIONS
from tests.pairwise import missing_pairs, name_of, pairwise
from tests.test_group_norm import (
    check_case,
    test_a_bad_value_stays_in_its_group,  # noqa: F401
    test_groups_of_a_single_value_are_zero,  # noqa: F401
    test_one_group_is_layer_norm,  # noqa: F401
)

pytestmark = TRITON

# Shape and number of groups; a plane in one tile, several planes in one, and planes in chunks.
SHAPES = (
    ((0, 8, 4, 4), 2),
    ((3, 6), 3),
    ((2, 32, 9, 7), 8),
    ((2, 12, 3, 5, 7), 1),
    ((1, 4, 61, 67), 2),
    ((1, 18, 31, 33), 3),
)
OPTIONS = {
    "of_shape": SHAPES,
    "dtype": DTYPES,
    "layout": ("contiguous", "channels_last", "cropped"),
    "grad_layout": ("contiguous", "channels_last"),
    "activation": tuple(ACTIVATIONS),
    "weight": ("none", "(C,)", "(N, C)"),
    "bias": ("none", "(C,)", "(N, C)"),
    "parameters": ("float32", "x's"),
    "residual": (None, "contiguous", "channels_last"),
    "residual_first": (False, True),
}
CASES = tuple(pairwise(OPTIONS))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    check_case(case, device)
