"""Tables for a terminal, the text below them, and the JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from benchmarks.ceilings import Ceilings
from benchmarks.race import Race


def number(value: float | None) -> str:
    """Format three significant digits, without powers of ten; a dash for None."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds."""
    return number(None if seconds is None else seconds * 1e3)


def percent(share: float | None) -> str:
    """Format whole percent; a dash for None."""
    return "-" if share is None else f"{share:.0%}"


@dataclass(frozen=True)
class Table:
    """Columns of a table, one row per line.

    Attributes:
        columns: title and width of each.
        words: number of columns at the left that are words; the others are numbers.
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


@dataclass(frozen=True)
class View:
    """A table of raced cases: its columns and their content.

    Attributes:
        columns: title, width and content of each; the content is a function of a row.
        words: number of columns at the left that are words.
        legend: the meaning of the columns.
    """

    columns: tuple[tuple[str, int, "Cell"], ...]
    words: int
    legend: str

    @property
    def table(self) -> Table:
        return Table(tuple((title, width) for title, width, _ in self.columns), self.words)

    def line(self, row: "Raced") -> str:
        """One line of the table."""
        return self.table.line([cell(row) for _, _, cell in self.columns])


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


class Raced(Judged, Protocol):
    """A row with times of contenders and a floor in seconds."""

    @property
    def race(self) -> Race: ...
    @property
    def floor(self) -> float | None: ...
    @property
    def share_of_floor(self) -> float | None: ...


Cell = Callable[[Any], str]


def time_cell(name: str, units_per_s: float = 1e3) -> Cell:
    """Format a contender's median time, in milliseconds by default."""
    return lambda row: number(_scaled(row.race.median(name), units_per_s))


def floor_cell(units_per_s: float = 1e3) -> Cell:
    """Format the floor, in milliseconds by default."""
    return lambda row: number(_scaled(row.floor, units_per_s))


def _scaled(seconds: float | None, units_per_s: float) -> float | None:
    return None if seconds is None else seconds * units_per_s


def speedup_cell(name: str | None = None) -> Cell:
    """Format our speed over a rival's; by default over the fastest one's."""
    return lambda row: number(row.race.speedup(name or row.race.best_rival))


def spread_cell(row: Raced) -> str:
    """Format the inter-quartile range of our time, as a share of the median."""
    seconds = row.race.seconds.get("ours")
    return percent(None if seconds is None else seconds.spread)


def share_cell(row: Raced) -> str:
    """Format the floor over our time."""
    return percent(row.share_of_floor)


#: The last column.
VERDICT_COLUMN = ("verdict", 7, lambda row: row.verdict)


def summary(rows: Sequence[Judged]) -> str:
    """Count the verdicts, and list the reasons of every row that is not a win."""
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
    """Return all results of a run, for ``json.dump``."""
    return {"format": 1, "machine": machine, "ceilings": asdict(ceilings), "rows": rows}
