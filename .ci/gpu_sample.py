"""A pytest plugin: a fair sample of the parametrised tests, and in an order as fair.

``pytest -p gpu_sample --most-cases N`` with this folder on ``PYTHONPATH``. What is chosen, and its
order, depend on the tests' names only: they are the same in every run and in every worker of
pytest-xdist, which demands it.
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
        "--most-cases", type=_number, default=0, metavar="N",
        help="run at most N parametrised cases of each test function; 0, the default, for all",
    )  # fmt: skip


def _by_hash(items: list[pytest.Item], purpose: str) -> list[pytest.Item]:
    """In an order that has nothing to do with the tests, nor with that of another purpose."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{purpose} {item.nodeid}".encode()).digest()
    )


@pytest.hookimpl(trylast=True)  # after -m and -k: the cases are counted that these leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is too much of each function, and shuffle the rest.

    The order has a hash of its own. By the one that chooses, functions of many cases would come
    first, and a run that is cut short would have seen little of the others.
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
