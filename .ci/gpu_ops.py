"""Runs every op once on small odd shapes, forward and backward, for compute-sanitizer.

Results are checked against float64. The cases are those of the benchmark in other shapes, each by
the implementation that is preferred and, where there are compiled kernels, by these; with
``--compiled`` by these alone. They are interleaved by op, because a checker may leave no time for
all.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext

from benchmarks.ops import cuda_cases
from benchmarks.ops.cases import Case
from benchmarks.ops.contenders import enter
from benchmarks.ops.problems import prepare
from benchmarks.race import failure
from stylekernels import use_impl
from stylekernels.ops.dispatch import choose

#: Odd sizes, with so many pixels that a few at the kink of a ReLU do not decide bfloat16 gradients.
_SHAPE = (2, 37, 27, 41)


def _by_turns() -> list[Case]:
    seen: Counter[str] = Counter()
    turns = []
    for case in cuda_cases.grid(shape=_SHAPE):
        turns.append((seen[case.op], case))
        seen[case.op] += 1
    return [case for _, case in sorted(turns, key=lambda turn: turn[0])]


def _implementations(op: str, device: str, compiled_only: bool) -> list[str | None]:
    """The preferred implementation of an op, None, and the compiled kernels if they are another;
    or the compiled kernels alone, if there are some."""
    preferred = choose(op, device)
    try:
        with use_impl("native"):
            compiled = [choose(op, device)]
    except RuntimeError:  # there are none
        compiled = []
    if compiled_only:
        return compiled
    return [None, *(name for name in compiled if name != preferred)]


def main() -> int:
    """Return 1 if an answer was wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--time-limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--compiled", action="store_true", help="only the compiled kernels")
    options = parser.parse_args()
    turns = [
        (case, name)
        for case in _by_turns()
        for name in _implementations(case.op, options.device, options.compiled)
    ]
    done = wrong = 0
    start = time.monotonic()
    for case, name in turns:
        if time.monotonic() - start > options.time_limit:
            break
        try:
            with nullcontext() if name is None else use_impl(name):
                (ours,) = enter(prepare(case, options.device), rivals=())
            error = ours.error
        except Exception as exception:  # reported as a wrong answer; the others still run
            error = failure(exception)
        label = case.id if name is None else f"{case.id} by {name}"
        print(f"{label}: {error or 'right'}", flush=True)
        wrong += error is not None
        done += 1
    print(f"{done} of {len(turns)} cases, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
