"""Which rows of a results file became slower: ``python -m benchmarks compare A.json B.json``.

Machines and their load differ between two runs. So a row is compared by what its own rounds
measured: our speed over a rival that both files have, or for ``live`` the share of the Stylizer's
pictures a second. Only rows without a common rival are compared by seconds, of the same machine.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.race import NOISE
from benchmarks.report import Table, number

_TABLE = Table(
    (("row", 60), ("compared", 12), ("before", 8), ("after", 8), ("speed", 6), ("verdict", 7)), 2
)
_MACHINE = ("cpu", "capability", "threads", "gpu")


@dataclass(frozen=True)
class Change:
    """A row in both files.

    Attributes:
        row: its id.
        measure: ``/rival``, our speed over it; ``share``; ``ms``; or ``answer``, which is wrong or
            missing in the second file.
        before, after: medians; None for ``answer``.
        speed: our speed after over that before; None for ``answer``.
        verdict: ``faster`` or ``slower`` if the medians differ by more than 5 % and the quartiles
            do not overlap; ``same``; or ``broken``.
    """

    row: str
    measure: str
    before: float | None
    after: float | None
    speed: float | None
    verdict: str

    @property
    def is_regression(self) -> bool:
        return self.verdict in ("slower", "broken")


def changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[Change], list[str]]:
    """Compare two results.

    Args:
        before, after: contents of files that ``python -m benchmarks`` wrote.

    Returns:
        The rows that both have and that can be compared, in the order of ``before``; and a line for
        each that can't.
    """
    same_machine = all(before["machine"].get(key) == after["machine"].get(key) for key in _MACHINE)
    rows = {row["id"]: row for row in after["rows"]}
    found, skipped = [], []
    for old in before["rows"]:
        name, new = old["id"], rows.get(old["id"])
        if new is None and name not in after.get("failed", {}):
            skipped.append(f"{name}: only in the first file")
        elif old["verdict"] == "wrong":
            skipped.append(f"{name}: wrong in the first file")
        elif new is None or new["verdict"] == "wrong":
            found.append(Change(name, "answer", None, None, None, "broken"))
        else:
            change = _compared(old, new, same_machine)
            if isinstance(change, Change):
                found.append(change)
            else:
                skipped.append(f"{name}: {change}")
    return found, skipped


def _compared(old: dict[str, Any], new: dict[str, Any], same_machine: bool) -> Change | str:
    """Compare a row of two files; return why it can't be compared otherwise."""
    rivals = [rival for rival in old.get("speedups", {}) if rival in new.get("speedups", {})]
    if rivals:
        # The steadiest rival tells most: one with wide quartiles hides a change.
        rival = min(rivals, key=lambda name: _spread(old["speedups"][name]))
        pair = old["speedups"][rival], new["speedups"][rival]
        return _judged(old["id"], f"/{rival}", *pair, higher_is_better=True)
    if "share" in old and "share" in new:
        return _judged(old["id"], "share", old["share"], new["share"], higher_is_better=True)
    if "ours" not in old.get("seconds", {}) or "ours" not in new.get("seconds", {}):
        return "it has no times"
    if not same_machine:
        return "no rival is in both files, and their machines differ"
    pair = (
        {key: 1e3 * row["seconds"]["ours"][key] for key in ("median", "q1", "q3")}
        for row in (old, new)
    )
    return _judged(old["id"], "ms", *pair, higher_is_better=False)


def _spread(summary: dict[str, float]) -> float:
    return (summary["q3"] - summary["q1"]) / summary["median"]


def _judged(
    row: str, measure: str, old: dict[str, float], new: dict[str, float], higher_is_better: bool
) -> Change:
    ratio = new["median"] / old["median"]
    speed = ratio if higher_is_better else 1 / ratio
    apart = new["q3"] < old["q1"] or new["q1"] > old["q3"]
    verdict = "same"
    if apart and abs(speed - 1) > NOISE:
        verdict = "faster" if speed > 1 else "slower"
    return Change(row, measure, old["median"], new["median"], speed, verdict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A.json", help="a file of --json")
    parser.add_argument("after", type=Path, metavar="B.json", help="one of a later run")


def run(options: argparse.Namespace) -> int:
    """Print the comparison of two files.

    Returns:
        1 if a row became slower or wrong, 2 if nothing could be compared, else 0.
    """
    try:
        before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
        found, skipped = changes(before, after)
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        print(f"expected two files that python -m benchmarks wrote; {kind}: {error}")
        return 2
    print(_TABLE.header())
    for change in found:
        speed = "-" if change.speed is None else f"{change.speed:.2f}"
        numbers = number(change.before), number(change.after), speed
        print(_TABLE.line([change.row, change.measure, *numbers, change.verdict]))
    for line in skipped:
        print(f"not compared: {line}")
    counts = dict.fromkeys(("faster", "same", "slower", "broken"), 0)
    for change in found:
        counts[change.verdict] += 1
    print("\n" + ", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if not found:
        print("no row could be compared")
        return 2
    return int(any(change.is_regression for change in found))
