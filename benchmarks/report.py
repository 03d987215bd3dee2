"""Results of cases: verdicts against the targets, the table for a terminal, the JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cases import Case, Problem
from benchmarks.ceilings import Ceilings
from benchmarks.contenders import Entry
from benchmarks.timing import Summary, paired_ratio, summarize

#: A ratio within this of 1 is noise.
NOISE = 0.05

_SHORT = {
    "float32": "f32", "bfloat16": "bf16", "contiguous": "NCHW", "channels_last": "NHWC",
}  # fmt: skip
#: Title and width of each column; the first ones are words, to the left.
_COLUMNS = (
    ("op", 27), ("pass", 4), ("shape", 13), ("type", 4), ("layout", 6), ("ours", 5), ("±", 4),
    ("eager", 5), ("comp.", 5), ("copy", 5), ("rate", 5), ("/copy", 5), ("/eager", 6),
    ("/comp", 5), ("verdict", 7),
)  # fmt: skip
_WORDS = 5
LEGEND = """\
ours, eager, comp. (torch.compile), copy: median milliseconds; ±: inter-quartile range of ours;
rate: ours in GB/s, for products in GFLOP/s. /copy: our time over the copy's; /eager, /comp: our
speed over theirs, above 1 we are faster; medians of the ratios of each round. For products, copy
is the floor: the useful multiplications (one triangle of a Gram matrix) at the measured peak, or
the bytes at the speed of a copy. f+b: forward and backward. NCHW: contiguous; NHWC: channels_last.
win: faster than all, every target met; even: within 5 %; short: not slower, but a target missed;
loss: more than 5 % slower; wrong: refused."""


@dataclass
class Row:
    """A measured case; numbers and names only, for tensors are large and rows are many.

    Attributes:
        bytes, flops: the work, as in `Problem`.
        expressions: what each contender ran.
        refused: why a contender did not run.
        seconds: per call, by contender: ours, the rivals and for memory-bound ops the copy.
        speedups: of ours over each rival, from the ratios of each round.
        copies: ours over a plain copy, from the ratios of each round; None for products.
        floor: seconds below which no program does this work; None where not measured.
        verdict: win, even, short, loss or wrong.
        misses: what keeps it from a win, in words.
    """

    case: Case
    bytes: float
    flops: float
    implementation: str
    expressions: dict[str, str]
    refused: dict[str, str]
    seconds: dict[str, Summary]
    speedups: dict[str, Summary]
    copies: Summary | None
    floor: float | None
    verdict: str = ""
    misses: list[str] = field(default_factory=list)


def make_row(
    case: Case,
    problem: Problem,
    implementation: str,
    entries: list[Entry],
    samples: dict[str, list[float]],
    ceilings: Ceilings,
) -> Row:
    """Reduce the samples of a case, one number per round and contender, to a row."""
    seconds = {name: summarize(values) for name, values in samples.items()}
    speedups, copies = {}, None
    if "ours" in samples:
        speedups = {
            name: paired_ratio(values, samples["ours"])
            for name, values in samples.items()
            if name not in ("ours", "copy")
        }
        if "copy" in samples:
            copies = paired_ratio(samples["ours"], samples["copy"])
    floor = seconds["copy"].median if "copy" in seconds else None
    if case.limited_by == "arithmetic":
        floor = ceilings.floor_seconds(case.dtype, problem.bytes, problem.flops)
    expressions = {entry.name: entry.expression for entry in entries}
    refused = {entry.name: entry.error for entry in entries if entry.error is not None}
    row = Row(
        case, problem.bytes, problem.flops, implementation, expressions, refused, seconds, speedups,
        copies, floor,
    )  # fmt: skip
    _judge(row)
    return row


def _judge(row: Row) -> None:
    target = row.case.target
    for name, error in row.refused.items():
        row.misses.append(f"{name} ({row.expressions[name]}): {error}")
    if "ours" not in row.seconds:
        row.verdict = "wrong"
        return
    slower = {name: ratio for name, ratio in row.speedups.items() if ratio.median < 1 - NOISE}
    for name, ratio in slower.items():
        row.misses.append(f"{name} is {1 / ratio.median:.2f} times faster")
    short = False
    if target.max_copies is not None and row.copies is not None:
        short = row.copies.median > target.max_copies
        if short:
            row.misses.append(f"{row.copies.median:.2f} copies, target {target.max_copies}")
    if target.min_speedup is not None and "eager" in row.speedups:
        speedup = row.speedups["eager"].median
        if speedup < target.min_speedup:
            short = True
            row.misses.append(f"{speedup:.2f} times eager, target {target.min_speedup}")
    even = any(ratio.median < 1 + NOISE for ratio in row.speedups.values())
    row.verdict = "loss" if slower else "short" if short else "even" if even else "win"


def _number(value: float | None) -> str:
    """Three significant digits, never in powers of ten."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(row: Row) -> tuple[float, str]:
    """Ours in GB/s for memory-bound ops and GFLOP/s for products, by the work of the case."""
    work, unit = row.bytes, "GB/s"
    if row.case.limited_by == "arithmetic":
        work, unit = row.flops, "GFLOP/s"
    return work / row.seconds["ours"].median / 1e9, unit


def _columns(cells: Sequence[str]) -> str:
    aligned = (
        cell.ljust(width) if index < _WORDS else cell.rjust(width)
        for index, (cell, (_, width)) in enumerate(zip(cells, _COLUMNS, strict=True))
    )
    return " ".join(aligned)


def header() -> str:
    """The titles of the columns."""
    return _columns([title for title, _ in _COLUMNS])


def line(row: Row) -> str:
    """One line of the table."""
    case, seconds = row.case, row.seconds
    times = {name: _number(summary.median * 1e3) for name, summary in seconds.items()}
    speedups = {name: _number(ratio.median) for name, ratio in row.speedups.items()}
    speed, spread, over_floor = "-", "-", None
    if "ours" in seconds:
        speed = _number(rate(row)[0])
        spread = f"{seconds['ours'].spread:.0%}"
        if row.copies is not None:
            over_floor = row.copies.median
        elif row.floor is not None:
            over_floor = seconds["ours"].median / row.floor
    return _columns(
        [
            f"{case.op} {case.variant}".strip(),
            "f+b" if case.backward else "fwd",
            "x".join(map(str, case.shape)),
            _SHORT[case.dtype],
            _SHORT[case.layout],
            times.get("ours", "-"),
            spread,
            times.get("eager", "-"),
            times.get("compile", "-"),
            _number(None if row.floor is None else row.floor * 1e3),
            speed,
            _number(over_floor),
            speedups.get("eager", "-"),
            speedups.get("compile", "-"),
            row.verdict,
        ]
    )


def summary(rows: list[Row]) -> str:
    """How many rows won, and every reason why others did not."""
    counts = {
        verdict: sum(row.verdict == verdict for row in rows)
        for verdict in ("win", "even", "short", "loss", "wrong")
    }
    lines = [", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)]
    lines += [f"  {row.case.id}: {'; '.join(row.misses)}" for row in rows if row.misses]
    return "\n".join(lines)


def _as_json(row: Row) -> dict[str, Any]:
    case = row.case
    value, unit = rate(row) if "ours" in row.seconds else (None, None)
    return {
        "id": case.id,
        "op": case.op,
        "variant": case.variant,
        "direction": case.direction,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "implementation": row.implementation,
        "expressions": row.expressions,
        "refused": row.refused,
        "seconds": {name: asdict(seconds) for name, seconds in row.seconds.items()},
        "speedups": {name: asdict(ratio) for name, ratio in row.speedups.items()},
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


def document(machine: dict[str, Any], ceilings: Ceilings, rows: list[Row]) -> dict[str, Any]:
    """Everything a run found, for ``json.dump``."""
    return {
        "format": 1,
        "machine": machine,
        "ceilings": asdict(ceilings),
        "rows": [_as_json(row) for row in rows],
    }
