"""Benchmarks of the upsampling block: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.ops.cases import Case, grid

CASES = [case for case in grid(shape=(1, 64, 64, 64)) if case.op == "upsample_block"]


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_upsample_block(case: Case, contender: str, run) -> None:
    run(case, contender)
