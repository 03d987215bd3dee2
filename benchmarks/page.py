"""The page of all committed results, ``docs/benchmarks.md``: ``python -m benchmarks report``."""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from benchmarks.kept_results import KINDS, Machine, Row, machines
from benchmarks.report import milliseconds, number, percent
from benchmarks.suite import RESULTS

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
IMAGES = PAGE.parent / "images" / "benchmarks"

_ABOUT = """\
# Benchmarks

All results that the project keeps, losses included. `python -m benchmarks report` writes this page
from `benchmarks/results/`, whose README tells how each of them was measured; docs/performance.md
explains the numbers. Contenders take turns in rounds. A speedup is the median over the rounds of a
rival's time over ours, and the best rival is the fastest of those that ran. The floor is the least
time for the bytes and multiplications of a case, at the speed that a plain copy and a plain matrix
product reached in the same run. A case can be faster than it: Winograd's method multiplies less
than the direct convolutions that are counted, a copy also writes where statistics only read, and
small images come from a cache.

Verdicts: **win**, faster than every rival by more than 5 %; **even**, within 5 %; **short**, no
rival is faster, but a target of the project is missed; **loss**, a rival is more than 5 % faster;
**alone**, no rival ran.
"""
#: Verdicts in the order of the page.
VERDICTS = ("win", "even", "short", "loss", "alone", "wrong")


def _table(titles: list[str], lines: Iterable[list[str]]) -> str:
    head = [titles, ["---"] * len(titles)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*head, *lines])


def _counts(rows: Iterable[Row]) -> list[str]:
    verdicts = [row.verdict for row in rows]
    return [str(verdicts.count(verdict) or "") for verdict in VERDICTS]


def _median_speedup(rows: Iterable[Row]) -> str:
    speedups = [row.speedup["median"] for row in rows if row.speedup]
    return number(statistics.median(speedups)) if speedups else "-"


def _by_kind(machine: Machine) -> dict[str, list[Row]]:
    rows = defaultdict(list)
    for row in machine.rows.values():
        rows[row.kind].append(row)
    return {kind: rows[kind] for kind in KINDS if kind in rows}


def _overview(found: list[Machine]) -> str:
    lines = [
        [
            f"[{machine.title}](#{machine.name})",
            KINDS[kind],
            str(len(rows)),
            *_counts(rows),
            _median_speedup(rows),
        ]
        for machine in found
        for kind, rows in _by_kind(machine).items()
    ]
    return _table(["machine", "what", "cases", *VERDICTS, "median speedup"], lines)


def _cells(row: Row) -> list[str]:
    quartiles = f"{number(row.speedup['q1'])} to {number(row.speedup['q3'])}" if row.speedup else ""
    return [
        f"`{row.id}`",
        milliseconds(row.seconds),
        f"{milliseconds(row.rival_seconds)} ({row.rival})" if row.rival else "-",
        number(row.speedup["median"]) if row.speedup else "-",
        quartiles,
        percent(row.share),
        f"**{row.verdict}**" if row.verdict in ("loss", "wrong") else row.verdict,
    ]


_TITLES = ["case", "ours, ms", "best rival, ms", "speedup", "quartiles", "of the floor", "verdict"]


def _section(machine: Machine, plots: list[Path]) -> str:
    copy = machine.ceilings["copy_bytes_per_s"]
    peaks = ", ".join(
        f"{dtype} {number(flops / 1e12)} TFLOP/s"
        for dtype, flops in (machine.ceilings.get("flops_per_s") or {}).items()
    )
    parts = [
        f'<a id="{machine.name}"></a>\n\n## {machine.title}',
        f"{machine.about}. A copy moves {number(copy / 1e9)} GB/s; products: {peaks}.",
        *(f"![{path.stem.replace('-', ' ')}]({path.relative_to(PAGE.parent)})" for path in plots),
    ]
    losses = [row for row in machine.rows.values() if row.verdict in ("loss", "wrong")]
    if losses:
        lines = [[f"`{row.id}`", "; ".join(row.misses)] for row in losses]
        parts += ["Losses:", _table(["case", "what was faster"], lines)]
    for kind, rows in _by_kind(machine).items():
        table = _table(_TITLES, map(_cells, rows))
        parts.append(
            f'<details markdown="1"><summary>All {len(rows)} cases: {KINDS[kind]}</summary>\n\n'
            f"{table}\n\n</details>"
        )
    return "\n\n".join(parts)


def text(found: list[Machine], plots: dict[str, list[Path]]) -> str:
    """Return the page.

    Args:
        found: the machines, in their order on the page.
        plots: files by the name of their machine.
    """
    sections = [_section(machine, plots[machine.name]) for machine in found]
    return "\n\n".join([_ABOUT + "\n" + _overview(found), *sections]) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and its plots.

    Returns:
        2 if the folder has no results, else 0.
    """
    from benchmarks import plots  # matplotlib takes a second

    found = machines(sorted(options.results.glob("*.json")))
    if not found:
        print(f"--results: expected files that python -m benchmarks wrote, got {options.results}")
        return 2
    IMAGES.mkdir(parents=True, exist_ok=True)
    drawn = {machine.name: plots.draw(machine, IMAGES) for machine in found}
    PAGE.write_text(text(found, drawn))
    print(f"written: {PAGE}, {sum(map(len, drawn.values()))} plots in {IMAGES}")
    return 0
