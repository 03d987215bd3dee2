"""What a verb of ``python -m benchmarks`` measures, and the run that measures it."""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from benchmarks import machine, report
from benchmarks.ceilings import Ceilings, measure_ceilings

RESULTS = Path(__file__).with_name("results")

CaseT = TypeVar("CaseT", bound=report.HasId)
RowT = TypeVar("RowT", bound=report.Judged)


class Suite(ABC, Generic[CaseT, RowT]):
    """The cases that some options ask for, how each is measured, and how a result is shown.

    Attributes:
        name: the verb, and first part of the name of its files.
        quick: what of it ``--quick`` measures.
        all_rivals: names for ``--rivals``.
        legend: what the columns are.
        table: the columns.
        cases: in the order of the table.
        complete: whether nothing was left out, so that the results are worth keeping.
    """

    name: ClassVar[str]
    quick: ClassVar[str]
    all_rivals: ClassVar[tuple[str, ...]]
    legend: ClassVar[str]
    table: ClassVar[report.Table]
    cases: list[CaseT]
    complete: bool

    def __init__(self, options: argparse.Namespace) -> None:
        chosen = self.all_rivals if options.rivals is None else options.rivals
        if unknown := [rival for rival in chosen if rival not in self.all_rivals]:
            raise ValueError(
                f"--rivals: {self.name} has {', '.join(self.all_rivals) or 'none'}, "
                f"got {', '.join(unknown)}"
            )
        self.rivals = list(chosen)
        self.compile_mode = "max-autotune-no-cudagraphs" if options.max_autotune else "default"
        self.budget_s: float = options.seconds
        if options.seconds is None:
            self.budget_s = 0.5 if options.quick else 3.0

    @staticmethod
    @abstractmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """The options that only this verb has."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Suite":
        """The suite that the options of the verb ask for.

        Raises:
            ValueError: it doesn't have one of the rivals.
        """
        return cls(options)

    def versions(self) -> dict[str, str]:
        """Of the rivals that aren't PyTorch."""
        return {}

    def notes(self) -> list[str]:
        """What to know before the table."""
        return []

    @abstractmethod
    def measure(self, case: CaseT, ceilings: Ceilings) -> RowT:
        """Prepare, check and time one case."""

    @abstractmethod
    def line(self, row: RowT) -> str:
        """One line of the table."""

    @abstractmethod
    def as_json(self, row: RowT) -> dict[str, Any]:
        """For ``json.dump``."""

    def summary(self, rows: Sequence[RowT]) -> str:
        """What to say below the table."""
        return report.summary(rows)


def fits(options: argparse.Namespace, case_id: str, dtype: str) -> bool:
    """Whether ``--only`` and ``--dtype`` let a case through."""
    if options.dtype is not None and dtype != options.dtype:
        return False
    return not options.only or any(text in case_id for text in options.only)


def _print_machine(about: dict[str, Any], ceilings: Ceilings) -> None:
    rivals = "".join(f", {name} {version}" for name, version in about["rivals"].items())
    print(
        f"{about['cpu']}, {about['threads']} of {about['cores']} cores, {about['capability']}; "
        f"torch {about['torch']}{rivals}; load {about['load_average']:.1f}"
    )
    if about["load_average"] > 0.5 * about["cores"]:
        print("warning: other programs are running; these numbers are not for publishing")
    peaks = "".join(
        f", {dtype} {flops / 1e9:.0f} GFLOP/s"
        for dtype, flops in (ceilings.flops_per_s or {}).items()
    )
    print(f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s{peaks} ({ceilings.notes})")


def run(suite: Suite, json_path: Path | None) -> int:
    """Measure every case of a suite and print the table.

    Args:
        suite: what to measure.
        json_path: where to write the results; by default a complete suite goes to ``results/``.

    Returns:
        1 if an answer of ours was wrong, else 0.
    """
    about = {**machine.describe(), "rivals": suite.versions()}
    ceilings = measure_ceilings(torch.get_num_threads())
    _print_machine(about, ceilings)
    for note in suite.notes():
        print(note)
    print(suite.legend, suite.table.header(), sep="\n\n")
    path = json_path
    if path is None and suite.complete:
        date = str(about["date"])[:10]
        path = RESULTS / f"{suite.name}-cpu-{machine.slug(machine.cpu_name())}-{date}.json"
    rows: list = []
    start = time.monotonic()
    for case in suite.cases:
        rows.append(suite.measure(case, ceilings))
        print(suite.line(rows[-1]), flush=True)
        if path is not None:  # after every case: a run takes long, and may be stopped
            found = report.document(about, ceilings, [suite.as_json(row) for row in rows])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{time.monotonic() - start:.0f} s: {suite.summary(rows)}")
    if path is not None:
        print(f"written: {path}")
    return int(any(row.verdict == "wrong" for row in rows))
