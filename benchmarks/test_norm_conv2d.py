"""Benchmarks of the deferred-norm convolution: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.ops.cases import Case, grid

CASES = [case for case in grid(shape=(1, 64, 64, 64)) if case.op == "norm_conv2d"]


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_norm_conv2d(case: Case, contender: str, run) -> None:
    run(case, contender)
