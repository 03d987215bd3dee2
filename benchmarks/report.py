"""Tables for a terminal, what to say below them, and the JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.ceilings import Ceilings


def number(value: float | None) -> str:
    """Three significant digits, never in powers of ten; a dash for what is not known."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float | None) -> str:
    """As `number` writes them."""
    return number(None if seconds is None else seconds * 1e3)


def percent(share: float | None) -> str:
    """In whole percent; a dash for what is not known."""
    return "-" if share is None else f"{share:.0%}"


@dataclass(frozen=True)
class Table:
    """Columns of a table, one row per line.

    Attributes:
        columns: title and width of each.
        words: so many of them, the first, are words, to the left; the others are numbers.
    """

    columns: tuple[tuple[str, int], ...]
    words: int

    def header(self) -> str:
        """The titles of the columns."""
        return self.line([title for title, _ in self.columns])

    def line(self, cells: Sequence[str]) -> str:
        """One line of the table."""
        return " ".join(
            cell.ljust(width) if index < self.words else cell.rjust(width)
            for index, (cell, (_, width)) in enumerate(zip(cells, self.columns, strict=True))
        )


class HasId(Protocol):
    """A case."""

    @property
    def id(self) -> str: ...


class Judged(Protocol):
    """A row that has a verdict."""

    @property
    def case(self) -> HasId: ...
    @property
    def verdict(self) -> str: ...
    @property
    def misses(self) -> list[str]: ...


def summary(rows: Sequence[Judged]) -> str:
    """How many rows won, and every reason why others did not."""
    counts = {
        verdict: sum(row.verdict == verdict for row in rows)
        for verdict in ("win", "even", "short", "loss", "alone", "wrong")
    }
    lines = [", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)]
    lines += [f"  {row.case.id}: {'; '.join(row.misses)}" for row in rows if row.misses]
    return "\n".join(lines)


def document(
    machine: dict[str, Any], ceilings: Ceilings, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything a run found, for ``json.dump``."""
    return {"format": 1, "machine": machine, "ceilings": asdict(ceilings), "rows": rows}
