"""Settings for ``pytest benchmarks --benchmark-only``."""

import ctypes
import sys

import pytest

from benchmarks.environment import MALLOC

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def pytest_configure(config: pytest.Config) -> None:
    """What ``python -m benchmarks`` sets before it starts, in a process that runs already."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, int(MALLOC["MALLOC_MMAP_THRESHOLD_"]))
        # An int cannot hold more.
        mallopt(_M_TRIM_THRESHOLD, min(int(MALLOC["MALLOC_TRIM_THRESHOLD_"]), 2**31 - 1))


@pytest.fixture
def run(benchmark):
    """Benchmark one contender of a case, ours or eager PyTorch, after checking its answer."""

    def run_case(case, contender: str) -> None:
        from benchmarks.ops.contenders import enter
        from benchmarks.ops.problems import prepare

        entry = next(e for e in enter(prepare(case), ("eager",)) if e.name == contender)
        assert entry.error is None
        benchmark.group = case.id
        benchmark.extra_info["expression"] = entry.expression
        benchmark.pedantic(entry.call, rounds=10, iterations=1, warmup_rounds=2)

    return run_case
