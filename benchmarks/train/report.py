"""Results of training: the table, the JSON."""

from dataclasses import dataclass
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT
from benchmarks.race import Entry, Race
from benchmarks.report import (
    VERDICT_COLUMN,
    View,
    floor_cell,
    number,
    share_cell,
    speedup_cell,
    spread_cell,
    time_cell,
)
from benchmarks.train.cases import Case

_LEGEND = """\
ours: a step of `stylekernels train` with VGG19 as the loss network, from a photo and what it shall
look like (which are read and recoloured before): forward pass, losses, backward pass and Adam;
median milliseconds, and ±, its inter-quartile range. Rivals take the same step, the network in
torch.nn and Gram matrices by torch's product: eager (contiguous), NHWC (eager in channels_last),
comp. (torch.compile in channels_last; ours is in it too). On a GPU all are CUDA graphs. floor: the
multiplications of direct convolutions and products, forward and backward, at the measured peak;
share: the floor over our time. img/s: photos a second in such steps. /eager, /comp and /best: our
speed over eager, compile and the fastest rival, above 1 we are faster; medians of the ratios of
each round. win: faster than all; even: within 5 %; loss: more than 5 % slower; alone: no rival ran;
wrong: refused."""


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        race: the contenders and their times.
        flops: operations of direct convolutions and products in a step.
        floor: seconds for them at the peak; None if not measured.
        verdict: win, even, loss, alone or wrong.
        misses: the reasons why it is not a win, in words.
    """

    case: Case
    race: Race
    flops: float
    floor: float | None
    verdict: str
    misses: list[str]

    @property
    def seconds(self) -> float | None:
        """Our time for a step; None if it was refused."""
        return self.race.median("ours")

    @property
    def images_per_s(self) -> float | None:
        """Photos per second in our steps."""
        return None if self.seconds is None else self.case.batch / self.seconds

    @property
    def share_of_floor(self) -> float | None:
        """The floor over our time."""
        return None if self.floor is None or self.seconds is None else self.floor / self.seconds


def make_row(
    case: Case,
    flops: float,
    precision: str,
    entries: list[Entry],
    samples: dict[str, list[float]],
    ceilings: Ceilings,
) -> Row:
    """Reduce the samples of a case, one number per round and contender, to a row.

    Args:
        case, flops: the work.
        precision: precision of products.
        entries, samples: the contenders, and their seconds per step.
        ceilings: limits of the machine.
    """
    race = Race.of(entries, samples)
    return Row(case, race, flops, ceilings.floor_seconds(precision, 0, flops), *race.judge())


VIEW = View(
    (
        ("network", 7, lambda row: row.case.network),
        ("photos", 8, lambda row: f"{row.case.batch}x{row.case.crop}"),
        ("type", 4, lambda row: SHORT[row.case.dtype]),
        ("ours", 5, time_cell("ours")),
        ("±", 4, spread_cell),
        ("eager", 5, time_cell("eager")),
        ("NHWC", 5, time_cell("eager-nhwc")),
        ("comp.", 5, time_cell("compile")),
        ("floor", 5, floor_cell()),
        ("share", 5, share_cell),
        ("img/s", 5, lambda row: number(row.images_per_s)),
        ("/eager", 6, speedup_cell("eager")),
        ("/comp", 5, speedup_cell("compile")),
        ("/best", 5, speedup_cell()),
        VERDICT_COLUMN,
    ),
    3,
    _LEGEND,
)


def as_json(row: Row) -> dict[str, Any]:
    """Return the row as plain values, for ``json.dump``."""
    case = row.case
    return {
        "id": case.id,
        "network": case.network,
        "batch": case.batch,
        "crop": case.crop,
        "dtype": case.dtype,
        **row.race.as_json(),
        "flops": row.flops,
        "floor_seconds": row.floor,
        "share_of_floor": row.share_of_floor,
        "images_per_s": row.images_per_s,
        "verdict": row.verdict,
        "misses": row.misses,
    }
