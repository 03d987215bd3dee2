"""The committed results: the newest row of each case, by machine."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import slug

#: What each suite measures that races rivals.
KINDS = {
    "ops": "ops",
    "model": "the generator, one frame",
    "networks": "published networks",
    "train": "a training step of a style",
}


@dataclass(frozen=True)
class Row:
    """A case of which ours and rivals were timed.

    Attributes:
        kind: ``ops``, ``model``, ``networks`` or ``train``.
        group: label in the plots: an op and its direction, or the kind.
        speedup: median and quartiles over the best rival; None if none ran.
        seconds: our time; None if our answer was wrong.
        share: the floor over our time; None without one of them.
        bytes, flops: the work, both None for rows without one of them.
    """

    id: str
    kind: str
    group: str
    dtype: str
    seconds: float | None
    rival: str | None
    rival_seconds: float | None
    speedup: dict[str, float] | None
    share: float | None
    verdict: str
    misses: list[str]
    bytes: float | None
    flops: float | None


@dataclass
class Machine:
    """The newest results of each case on one machine.

    Attributes:
        title: its heading on the page.
        name: the part of the plots' file names that tells it from others.
        about: one line: versions and dates.
        ceilings: the highest of its files: another program can only lower what was measured.
        rows: by id.
    """

    title: str
    name: str
    about: str = ""
    ceilings: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)


def _row(kind: str, row: dict[str, Any]) -> Row | None:
    """Read a row; None if it has no times, as those of memory."""
    if "seconds" not in row:
        return None
    ours, speedups = row["seconds"].get("ours"), row["speedups"]
    rival = min(speedups, key=lambda name: row["seconds"][name]["median"], default=None)
    floor = row.get("floor_seconds")
    work = (row.get("bytes"), row.get("flops")) if kind == "ops" else (None, None)
    group = f"{row['op']}, {row['direction']}" if kind == "ops" else KINDS[kind]
    if "work" in row:  # of networks: forward or step
        group += f", {row['work']}"
    return Row(
        row["id"],
        kind,
        group,
        row["dtype"],
        ours["median"] if ours else None,
        rival,
        row["seconds"][rival]["median"] if rival else None,
        speedups[rival] if rival else None,
        floor / ours["median"] if floor and ours else None,
        row["verdict"],
        row["misses"],
        *(work if all(work) else (None, None)),
    )


def _title(path: Path, machine: dict[str, Any]) -> tuple[str, str]:
    """Return the heading of a machine and its part of file names. Clouds hide the models of CPUs:
    the generation is in the name of the file."""
    if "gpu" in machine:
        return machine["gpu"], slug(machine["gpu"])
    generation = re.search(r"\bzen-?(\d)", path.name)
    core = f"Zen {generation[1]}" if generation else machine["cpu"].replace("(R)", "")
    title = f"{machine['threads']} cores: {core}, {machine['capability'].upper().replace('_', '-')}"
    return title, slug(title)


def machines(paths: Iterable[Path]) -> list[Machine]:
    """Read results files; the later one of two has the valid row of a case."""
    found: dict[str, Machine] = {}
    documents = [(path, json.loads(path.read_text())) for path in paths]
    dates = defaultdict(set)
    for path, document in sorted(documents, key=lambda pair: pair[1]["machine"]["date"]):
        kind = path.name.split("-")[0]
        if kind not in KINDS:
            continue
        title, name = _title(path, document["machine"])
        machine = found.setdefault(name, Machine(title, name))
        dates[name].add(document["machine"]["date"][:10])
        machine.about = f"torch {document['machine']['torch']}; measured on {_and(dates[name])}"
        machine.ceilings = _highest(machine.ceilings, document["ceilings"])
        for failed in document.get("failed", {}):
            machine.rows.pop(failed, None)
        for row in (_row(kind, row) for row in document["rows"]):
            if row is not None:
                machine.rows[row.id] = row
    return [machine for machine in found.values() if machine.rows]


def _highest(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Merge ceilings of two files, the larger number of each."""
    merged = {**before, **after}
    for name, value in before.items():
        if isinstance(value, dict):
            merged[name] = _highest(value, after.get(name) or {})
        elif isinstance(value, (int, float)) and isinstance(after.get(name), (int, float)):
            merged[name] = max(value, after[name])
    return merged


def _and(words: Iterable[str]) -> str:
    *most, last = sorted(words)
    return f"{', '.join(most)} and {last}" if most else last
