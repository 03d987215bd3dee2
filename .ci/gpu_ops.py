"""Runs every op once on small odd shapes, forward and backward, for a memory checker.

Results are checked against float64. The cases are those of the benchmark in other shapes. They are
interleaved by op, because a memory checker may leave no time for all.
"""

import argparse
import sys
import time
from collections import Counter

from benchmarks.ops import cuda_cases
from benchmarks.ops.cases import Case
from benchmarks.ops.contenders import enter
from benchmarks.ops.problems import prepare
from benchmarks.race import failure

#: Odd sizes, with so many pixels that a few at the kink of a ReLU do not decide bfloat16 gradients.
_SHAPE = (2, 37, 27, 41)


def _by_turns() -> list[Case]:
    seen: Counter[str] = Counter()
    turns = []
    for case in cuda_cases.grid(shape=_SHAPE):
        turns.append((seen[case.op], case))
        seen[case.op] += 1
    return [case for _, case in sorted(turns, key=lambda turn: turn[0])]


def main() -> int:
    """Return 1 if an answer was wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS")
    options = parser.parse_args()
    cases, done, wrong = _by_turns(), 0, 0
    start = time.monotonic()
    for case in cases:
        if time.monotonic() - start > options.time_limit:
            break
        try:
            (ours,) = enter(prepare(case, options.device), rivals=())
            error = ours.error
        except Exception as exception:  # reported as a wrong answer; the others still run
            error = failure(exception)
        print(f"{case.id}: {error or 'right'}", flush=True)
        wrong += error is not None
        done += 1
    print(f"{done} of {len(cases)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
