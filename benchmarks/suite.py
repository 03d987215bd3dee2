"""Suites: the measurements of a verb of ``python -m benchmarks``, and the loop that runs them."""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from benchmarks import machine, race, report
from benchmarks.ceilings import Ceilings
from benchmarks.cpu import Cpu
from benchmarks.cuda import Cuda
from benchmarks.device import Device
from benchmarks.environment import MALLOC

RESULTS = Path(__file__).with_name("results")

CaseT = TypeVar("CaseT", bound=report.HasId)
RowT = TypeVar("RowT", bound=report.Judged)


class Suite(ABC, Generic[CaseT, RowT]):
    """The cases that the options select, the way to measure one, and the way to show a result.

    Attributes:
        name: the verb, and the first part of the names of its files.
        quick: description of the cases that ``--quick`` measures.
        devices: names for ``--device``.
        all_rivals: names for ``--rivals``.
        legend: the meaning of the columns.
        table: the columns.
        device: the device that the cases run on.
        cases: the cases in the order of the table.
        complete: whether nothing was left out, so that the results are kept.
    """

    name: ClassVar[str]
    quick: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    all_rivals: ClassVar[tuple[str, ...]]
    legend: str
    table: report.Table
    device: Device
    cases: list[CaseT]
    complete: bool

    def __init__(self, options: argparse.Namespace) -> None:
        known = self.rivals_on(options.device)
        chosen = known if options.rivals is None else options.rivals
        if unknown := [rival for rival in chosen if rival not in known]:
            raise ValueError(
                f"--rivals: {self.name} has {', '.join(known) or 'none'}, got {', '.join(unknown)}"
            )
        self.rivals = list(chosen)
        self.device = Cpu() if options.device == "cpu" else Cuda()
        self.compile_mode = "max-autotune-no-cudagraphs" if options.max_autotune else "default"
        self.budget_s: float = options.seconds
        if options.seconds is None:
            device = self.device
            self.budget_s = device.quick_budget_s if options.quick else device.budget_s

    @staticmethod
    @abstractmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the options that only this verb has."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Suite":
        """Return the suite for the options of the verb.

        Raises:
            ValueError: if it does not have one of the rivals, or the device is not available.
        """
        return cls(options)

    @classmethod
    def rivals_on(cls, device: str) -> tuple[str, ...]:
        """Return the names in ``all_rivals`` that a device has."""
        return cls.all_rivals

    def environment(self) -> dict[str, str]:
        """Return the variables that must be set when the process starts."""
        return MALLOC

    def versions(self) -> dict[str, str]:
        """Return the versions of rivals other than PyTorch."""
        return {}

    def notes(self) -> list[str]:
        """Return lines to print before the table."""
        return []

    @abstractmethod
    def measure(self, case: CaseT, ceilings: Ceilings) -> RowT:
        """Prepare, check and time one case."""

    @abstractmethod
    def line(self, row: RowT) -> str:
        """Return one line of the table."""

    @abstractmethod
    def as_json(self, row: RowT) -> dict[str, Any]:
        """Return a row as plain values, for ``json.dump``."""

    def summary(self, rows: Sequence[RowT]) -> str:
        """Return text to print below the table."""
        return report.summary(rows)


def fits(options: argparse.Namespace, case_id: str, dtype: str) -> bool:
    """Return whether ``--only`` and ``--dtype`` select a case."""
    if options.dtype is not None and dtype != options.dtype:
        return False
    return not options.only or any(text in case_id for text in options.only)


def _print_machine(about: dict[str, Any], ceilings: Ceilings, heading: str) -> None:
    rivals = "".join(f", {name} {version}" for name, version in about["rivals"].items())
    print(f"{heading}; torch {about['torch']}{rivals}; load {about['load_average']:.1f}")
    if about["load_average"] > 0.5 * about["cores"]:
        print("warning: other programs are running; these numbers are not for publishing")
    peaks = "".join(
        f", {dtype} {flops / 1e9:.0f} GFLOP/s"
        for dtype, flops in (ceilings.flops_per_s or {}).items()
    )
    print(f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s{peaks} ({ceilings.notes})")


def run(suite: Suite, json_path: Path | None, time_limit_s: float = float("inf")) -> int:
    """Measure every case of a suite and print the table.

    Args:
        suite: the suite.
        json_path: file or folder for the results; by default a complete suite goes to ``results/``.
        time_limit_s: no case starts later than this after the first.

    Returns:
        1 if an answer of ours was wrong or a case failed, else 0.
    """
    device = suite.device
    about = {**machine.describe(), **device.describe(), "rivals": suite.versions()}
    ceilings = device.ceilings()
    _print_machine(about, ceilings, device.heading(about))
    for note in (*device.notes(), *suite.notes()):
        print(note)
    print(suite.legend, suite.table.header(), sep="\n\n")
    hardware, date = machine.slug(device.hardware()), str(about["date"])[:10]
    name, path = f"{suite.name}-{device.name}-{hardware}-{date}.json", json_path
    if path is None and suite.complete and time_limit_s == float("inf"):
        path = RESULTS / name
    elif path is not None and path.is_dir():
        path = path / name
    rows: list = []
    failed: dict[str, str] = {}
    left_out = [case.id for case in suite.cases]
    start = time.monotonic()
    for case in suite.cases:
        if time.monotonic() - start > time_limit_s:
            break
        left_out.remove(case.id)
        try:
            rows.append(suite.measure(case, ceilings))
        except Exception as exception:  # reported below; the other cases still run
            failed[case.id] = race.failure(exception)
            print(f"{case.id}: {failed[case.id]}", flush=True)
        else:
            print(suite.line(rows[-1]), flush=True)
        if path is not None:  # after every case, since a long run may be stopped
            found = report.document(about, ceilings, [suite.as_json(row) for row in rows])
            path.parent.mkdir(parents=True, exist_ok=True)
            found |= {"failed": failed, "left_out": left_out}
            path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{time.monotonic() - start:.0f} s: {suite.summary(rows)}")
    if failed:
        print(f"{len(failed)} of {len(suite.cases)} cases failed: {', '.join(failed)}")
    if left_out:
        print(f"{len(left_out)} of {len(suite.cases)} cases left out: the time limit")
    if path is not None:
        print(f"written: {path}")
    return int(bool(failed) or any(row.verdict == "wrong" for row in rows))
