"""Benchmarks of instance norm and its statistics: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.ops.cases import Case, grid

CASES = [case for case in grid(shape=(1, 64, 128, 128)) if case.op.startswith("instance_norm")]


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_instance_norm(case: Case, contender: str, run) -> None:
    run(case, contender)
