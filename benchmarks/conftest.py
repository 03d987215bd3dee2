"""Settings for ``pytest benchmarks --benchmark-only``."""

import pytest

from stylekernels.hardware import keep_freed_memory


def pytest_configure(config: pytest.Config) -> None:
    """Set the variables that ``python -m benchmarks`` sets before it starts."""
    keep_freed_memory()


@pytest.fixture
def run(benchmark):
    """Check the answer of one contender of a case, ours or eager PyTorch, then benchmark it."""

    def run_case(case, contender: str) -> None:
        from benchmarks.ops.contenders import enter
        from benchmarks.ops.problems import prepare

        entry = next(e for e in enter(prepare(case), ("eager",)) if e.name == contender)
        assert entry.error is None
        benchmark.group = case.id
        benchmark.extra_info["expression"] = entry.expression
        benchmark.pedantic(entry.call, rounds=10, iterations=1, warmup_rounds=2)

    return run_case
