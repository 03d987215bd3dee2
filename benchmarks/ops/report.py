"""Results of ops: verdicts, the tables, the JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT
from benchmarks.ops.cases import Case, Target
from benchmarks.ops.problems import Problem
from benchmarks.race import Entry, Race
from benchmarks.report import (
    VERDICT_COLUMN,
    Cell,
    View,
    floor_cell,
    number,
    share_cell,
    speedup_cell,
    spread_cell,
    time_cell,
)
from benchmarks.timing import Summary, paired_ratio


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        precision, bytes, flops, counted: the work, as in `Problem`.
        implementation: the implementation of ours, and the reason for it.
        race: the contenders and their times.
        copies: our time over that of a plain copy, from the ratios of each round; None for
            products.
        floor: the least seconds for this work; None if not measured.
        verdict: win, even, short, loss, alone or wrong.
        misses: the reasons why it is not a win, in words.
    """

    case: Case
    precision: str
    bytes: float
    flops: float
    counted: str
    implementation: str
    race: Race
    copies: Summary | None
    floor: float | None
    verdict: str
    misses: list[str]

    @property
    def share_of_floor(self) -> float | None:
        """The floor over our time."""
        if self.floor is None or "ours" not in self.race.seconds:
            return None
        return self.floor / self.race.seconds["ours"].median


def make_row(
    case: Case,
    problem: Problem,
    implementation: str,
    entries: list[Entry],
    samples: dict[str, list[float]],
    ceilings: Ceilings,
) -> Row:
    """Reduce the samples of a case, one number per round and contender, to a row."""
    race = Race.of(entries, samples)
    copies = None
    if "ours" in samples and "copy" in samples:
        copies = paired_ratio(samples["ours"], samples["copy"])
    if "copy" in samples:
        floor = race.seconds["copy"].median
    else:
        floor = ceilings.floor_seconds(problem.precision, problem.bytes, problem.flops)
    verdict, misses = race.judge(_missed_targets(case.target, race, copies, floor))
    return Row(
        case,
        problem.precision,
        problem.bytes,
        problem.flops,
        problem.counted,
        implementation,
        race,
        copies,
        floor,
        verdict,
        misses,
    )


def _missed_targets(
    target: Target, race: Race, copies: Summary | None, floor: float | None
) -> list[str]:
    missed = []
    if target.max_copies is not None and copies is not None and copies.median > target.max_copies:
        missed.append(f"{copies.median:.2f} copies, target {target.max_copies}")
    if target.min_share is not None and floor is not None and "ours" in race.seconds:
        share = floor / race.seconds["ours"].median
        if share < target.min_share:
            missed.append(f"{share:.0%} of the floor's speed, target {target.min_share:.0%}")
    rival = race.best_rival if target.over == "best" else target.over
    if target.min_speedup is not None and rival in race.speedups:
        speedup = race.speedups[rival].median
        if speedup < target.min_speedup:
            missed.append(f"{speedup:.2f} times {rival}, target {target.min_speedup}")
    return missed


def rate(row: Row) -> tuple[float, str]:
    """Our GB/s for memory-bound ops, or GFLOP/s for products, by the work of the case."""
    work, unit = row.bytes, "GB/s"
    if row.case.limited_by == "arithmetic":
        work, unit = row.flops, "GFLOP/s"
    return work / row.race.seconds["ours"].median / 1e9, unit


def as_json(row: Row) -> dict[str, Any]:
    """Return the row as plain values, for ``json.dump``."""
    case = row.case
    value, unit = rate(row) if "ours" in row.race.seconds else (None, None)
    return {
        "id": case.id,
        "op": case.op,
        "variant": case.variant,
        "direction": case.direction,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "implementation": row.implementation,
        **row.race.as_json(),
        "copies": None if row.copies is None else asdict(row.copies),
        "floor_seconds": row.floor,
        "share_of_floor": row.share_of_floor,
        "precision": row.precision,
        "bytes": row.bytes,
        "bytes_counted": row.counted,
        "flops": row.flops,
        "rate": value,
        "rate_unit": unit,
        "target": asdict(case.target),
        "verdict": row.verdict,
        "misses": row.misses,
    }


def _words(shape_width: int) -> tuple[tuple[str, int, Cell], ...]:
    layouts = {"contiguous": "NCHW", "channels_last": "NHWC"}
    return (
        ("op", 27, lambda row: f"{row.case.op} {row.case.variant}".strip()),
        ("dir", 3, lambda row: "f+b" if row.case.backward else "fwd"),
        ("shape", shape_width, lambda row: "x".join(map(str, row.case.shape))),
        ("type", 4, lambda row: SHORT[row.case.dtype]),
        ("mem.", 4, lambda row: layouts[row.case.layout]),
    )


def _rate(row: Row) -> str:
    return number(rate(row)[0] if "ours" in row.race.seconds else None)


def _over_floor(row: Row) -> str:
    if row.copies is not None:
        return number(row.copies.median)
    return number(None if row.share_of_floor is None else 1 / row.share_of_floor)


_VERDICTS = """\
win: faster than all, every target met; even: within 5 %; short: not slower, but a target missed;
loss: more than 5 % slower; alone: no rival ran; wrong: refused."""

VIEWS = {
    "cpu": View(
        (
            *_words(16),
            ("ours", 5, time_cell("ours")),
            ("±", 4, spread_cell),
            ("eager", 5, time_cell("eager")),
            ("comp.", 5, time_cell("compile")),
            ("copy", 5, floor_cell()),
            ("rate", 5, _rate),
            ("/copy", 5, _over_floor),
            ("/eager", 6, speedup_cell("eager")),
            ("/comp", 5, speedup_cell("compile")),
            VERDICT_COLUMN,
        ),
        5,
        f"""\
ours, eager, comp. (torch.compile), copy: median milliseconds; ±: inter-quartile range of ours;
rate: ours in GB/s, for products in GFLOP/s. /copy: our time over the copy's; /eager, /comp: our
speed over theirs, above 1 we are faster; medians of the ratios of each round. For products, copy
is the floor: the useful multiplications (one triangle of a Gram matrix) at the measured peak, or
the bytes at the speed of a copy. dir: forward, or forward and backward (f+b). mem., the layout in
memory: NCHW, contiguous; NHWC, channels_last.
{_VERDICTS}""",
    ),
    "cuda": View(
        (
            *_words(14),
            ("ours", 5, time_cell("ours", 1e6)),
            ("±", 4, spread_cell),
            ("eager", 5, time_cell("eager", 1e6)),
            ("NHWC", 5, time_cell("eager-nhwc", 1e6)),
            ("comp.", 5, time_cell("compile", 1e6)),
            ("floor", 5, floor_cell(1e6)),
            ("share", 5, share_cell),
            ("/comp", 5, speedup_cell("compile")),
            ("/best", 5, speedup_cell()),
            VERDICT_COLUMN,
        ),
        5,
        f"""\
ours, eager (contiguous), NHWC (eager in channels_last), comp. (torch.compile in our layout): median
microseconds; ±: inter-quartile range of ours. floor: the bytes at the speed of a copy (images whose
planes don't fit on the chip count twice where they are read twice) or the useful multiplications
(one triangle of a Gram matrix) at the rate of a matrix product, whichever takes longer; share: the
floor over our time. /comp, /best: our speed over theirs and over the fastest rival's, cuDNN's graph
included, above 1 we are faster; medians of the ratios of each round. dir: forward, or forward and
backward (f+b). mem., the layout in memory: NCHW, contiguous; NHWC, channels_last. {_VERDICTS}""",
    ),
}
