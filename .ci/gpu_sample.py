"""A pytest plugin that runs a representative sample of the parametrised tests, shuffled.

``pytest -p gpu_sample --most-cases N`` with this folder on ``PYTHONPATH``. Selection and order
depend only on the names of the tests. They are the same in every run and in every worker of
pytest-xdist, which requires that.
"""

import argparse
import hashlib
from collections import Counter

import pytest


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {number}")
    return number


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--most-cases",
        type=_number,
        default=0,
        metavar="N",
        help="run at most N parametrised cases of each test function; 0, the default, for all",
    )


def _by_hash(items: list[pytest.Item], purpose: str) -> list[pytest.Item]:
    """Sort by a hash that depends on the names and on ``purpose`` only."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{purpose} {item.nodeid}".encode()).digest()
    )


@pytest.hookimpl(trylast=True)  # after -m and -k, to count the cases that they leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect cases beyond the limit of each function, and shuffle the rest.

    The order uses another hash than the selection. With the same hash, functions with many cases
    would come first, and an interrupted run would have covered little of the others.
    """
    most = config.getoption("most_cases")
    kept, left_out = [], []
    seen: Counter[str] = Counter()
    for item in _by_hash(items, "choice"):
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        (kept if most == 0 or seen[function] <= most else left_out).append(item)
    items[:] = _by_hash(kept, "order")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
