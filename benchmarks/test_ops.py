"""Benchmarks of every op: ``pytest benchmarks --benchmark-only``, ``-k gram_matrix`` for one op."""

import pytest

from benchmarks.ops.cases import Case, grid

SHAPES = {
    "gram_matrix": (1, 128, 64, 64),
    "gram_loss": (1, 128, 64, 64),
    "group_norm": (1, 64, 128, 128),
    "instance_norm": (1, 64, 128, 128),
    "instance_norm_stats": (1, 64, 128, 128),
    "norm_conv2d": (1, 64, 64, 64),
    "upsample_block": (1, 64, 64, 64),
}
CASES = [case for op, shape in SHAPES.items() for case in grid(shape=shape) if case.op == op]


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(case: Case, contender: str, run) -> None:
    run(case, contender)
