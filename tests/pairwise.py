"""Cases that contain every pair of values of any two options.

Faults of a fused loop nearly always depend on two of its branches. Pairs find them with a hundredth
of the cases that all combinations would take.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

Case = dict[str, object]
Options = dict[str, tuple]


def _draw(generator: random.Random, options: Options, is_possible: Callable[[Case], bool]) -> Case:
    while True:
        case = {name: generator.choice(values) for name, values in options.items()}
        if is_possible(case):
            return case


def _pairs_of(case: Case) -> set:
    return set(itertools.combinations(case.items(), 2))


def pairwise(
    options: Options, is_possible: Callable[[Case], bool] = lambda case: True
) -> Iterator[Case]:
    """Return cases with every possible pair of values. Each is the best of 30 random ones."""
    generator = random.Random(0)
    met: set = set()
    fruitless = 0
    while fruitless < 100:
        drawn = [_draw(generator, options, is_possible) for _ in range(30)]
        case = max(drawn, key=lambda case: len(_pairs_of(case) - met))
        if _pairs_of(case) <= met:
            fruitless += 1
            continue
        met |= _pairs_of(case)
        yield case


def missing_pairs(
    cases: Iterable[Case],
    options: Options,
    is_possible: Callable[[Case], bool] = lambda case: True,
) -> set:
    """Return the pairs of values that occur in 5000 random draws and not in ``cases``."""
    generator = random.Random(1)
    drawn = (_draw(generator, options, is_possible) for _ in range(5000))
    return set().union(*map(_pairs_of, drawn)) - set().union(*map(_pairs_of, cases))


def name_of(case: Case) -> str:
    """Return a test's id."""
    return "-".join(str(value).removeprefix("torch.") for value in case.values())
