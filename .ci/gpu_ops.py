"""Every op once on small odd shapes, forward and backward, held to float64; for a memory checker.

Cases are those of the benchmark, in other shapes; they take turns by op, because under a memory
checker there may be no time for all.
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

#: Odd, and of so many pixels that bfloat16's gradients don't hang on a few at the kink of a ReLU.
_SHAPE = (2, 37, 27, 41)


def _by_turns() -> list[Case]:
    seen: Counter[str] = Counter()
    turns = []
    for case in cuda_cases.grid(shape=_SHAPE):
        turns.append((seen[case.op], case))
        seen[case.op] += 1
    return [case for _, case in sorted(turns, key=lambda turn: turn[0])]


def main() -> int:
    """1 if an answer was wrong, else 0."""
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
        except Exception as exception:  # not of ours, and no reason to stop
            error = failure(exception)
        print(f"{case.id}: {error or 'right'}", flush=True)
        wrong += error is not None
        done += 1
    print(f"{done} of {len(cases)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
