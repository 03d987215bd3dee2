"""Results of ops: verdicts against the targets, the table, the JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT
from benchmarks.ops.cases import Case, Problem
from benchmarks.race import Entry, Race
from benchmarks.report import Table, number
from benchmarks.timing import Summary, paired_ratio

_LAYOUTS = {"contiguous": "NCHW", "channels_last": "NHWC"}
TABLE = Table(
    (
        ("op", 27), ("pass", 4), ("shape", 13), ("type", 4), ("layout", 6), ("ours", 5), ("±", 4),
        ("eager", 5), ("comp.", 5), ("copy", 5), ("rate", 5), ("/copy", 5), ("/eager", 6),
        ("/comp", 5), ("verdict", 7),
    ),
    words=5,
)  # fmt: skip
LEGEND = """\
ours, eager, comp. (torch.compile), copy: median milliseconds; ±: inter-quartile range of ours;
rate: ours in GB/s, for products in GFLOP/s. /copy: our time over the copy's; /eager, /comp: our
speed over theirs, above 1 we are faster; medians of the ratios of each round. For products, copy
is the floor: the useful multiplications (one triangle of a Gram matrix) at the measured peak, or
the bytes at the speed of a copy. f+b: forward and backward. NCHW: contiguous; NHWC: channels_last.
win: faster than all, every target met; even: within 5 %; short: not slower, but a target missed;
loss: more than 5 % slower; alone: no rival ran; wrong: refused."""


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        bytes, flops: the work, as in `Problem`.
        implementation: of ours, and why it.
        race: who ran, and how fast.
        copies: ours over a plain copy, from the ratios of each round; None for products.
        floor: seconds below which no program does this work; None where not measured.
        verdict: win, even, short, loss, alone or wrong.
        misses: what keeps it from a win, in words.
    """

    case: Case
    bytes: float
    flops: float
    implementation: str
    race: Race
    copies: Summary | None
    floor: float | None
    verdict: str
    misses: list[str]


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
    floor = race.seconds["copy"].median if "copy" in samples else None
    if case.limited_by == "arithmetic":
        floor = ceilings.floor_seconds(case.dtype, problem.bytes, problem.flops)
    verdict, misses = race.judge(_missed_targets(case, race, copies))
    return Row(
        case, problem.bytes, problem.flops, implementation, race, copies, floor, verdict, misses
    )


def _missed_targets(case: Case, race: Race, copies: Summary | None) -> list[str]:
    target, missed = case.target, []
    if target.max_copies is not None and copies is not None and copies.median > target.max_copies:
        missed.append(f"{copies.median:.2f} copies, target {target.max_copies}")
    if target.min_speedup is not None and "eager" in race.speedups:
        speedup = race.speedups["eager"].median
        if speedup < target.min_speedup:
            missed.append(f"{speedup:.2f} times eager, target {target.min_speedup}")
    return missed


def rate(row: Row) -> tuple[float, str]:
    """Ours in GB/s for memory-bound ops and GFLOP/s for products, by the work of the case."""
    work, unit = row.bytes, "GB/s"
    if row.case.limited_by == "arithmetic":
        work, unit = row.flops, "GFLOP/s"
    return work / row.race.seconds["ours"].median / 1e9, unit


def line(row: Row) -> str:
    """One line of the table."""
    case, seconds = row.case, row.race.seconds
    times = {name: number(summary.median * 1e3) for name, summary in seconds.items()}
    speedups = {name: number(ratio.median) for name, ratio in row.race.speedups.items()}
    speed, spread, over_floor = "-", "-", None
    if "ours" in seconds:
        speed = number(rate(row)[0])
        spread = f"{seconds['ours'].spread:.0%}"
        if row.copies is not None:
            over_floor = row.copies.median
        elif row.floor is not None:
            over_floor = seconds["ours"].median / row.floor
    return TABLE.line(
        [
            f"{case.op} {case.variant}".strip(),
            "f+b" if case.backward else "fwd",
            "x".join(map(str, case.shape)),
            SHORT[case.dtype],
            _LAYOUTS[case.layout],
            times.get("ours", "-"),
            spread,
            times.get("eager", "-"),
            times.get("compile", "-"),
            number(None if row.floor is None else row.floor * 1e3),
            speed,
            number(over_floor),
            speedups.get("eager", "-"),
            speedups.get("compile", "-"),
            row.verdict,
        ]
    )


def as_json(row: Row) -> dict[str, Any]:
    """For ``json.dump``."""
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
        "bytes": row.bytes,
        "flops": row.flops,
        "rate": value,
        "rate_unit": unit,
        "target": asdict(case.target),
        "verdict": row.verdict,
        "misses": row.misses,
    }
