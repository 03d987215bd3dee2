"""Benchmarks of the Gram matrix and its loss: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.ops.cases import Case, grid

CASES = [case for case in grid(shape=(1, 128, 64, 64)) if case.op in ("gram_matrix", "gram_loss")]


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gram_matrix(case: Case, contender: str, run) -> None:
    run(case, contender)
