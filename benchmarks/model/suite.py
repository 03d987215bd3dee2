"""The model as a suite of ``python -m benchmarks``."""

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import notes
from benchmarks.model import engines, report
from benchmarks.model.cases import Case, Problem
from benchmarks.model.layers import LayersSuite
from benchmarks.model.memory import MemorySuite
from benchmarks.model.operations import image_bytes, layers
from benchmarks.model.options import add_options, select
from benchmarks.model.rivals import RIVALS, enter
from benchmarks.timing import measure


class ModelSuite(suite.Suite[Case, report.Row]):
    """Both widths of the generator, or a bundled style, frame by frame."""

    name = "model"
    quick = "the smallest size"
    devices = tuple(report.VIEWS)
    all_rivals = RIVALS

    add_options = staticmethod(add_options)

    @classmethod
    def of(cls, options: argparse.Namespace) -> suite.Suite:
        for name in ("memory", "layers"):
            if getattr(options, name) and options.device != "cpu":
                raise ValueError(f"--{name}: measured on a CPU only, not on {options.device}")
        if options.memory:
            return MemorySuite(options)
        return LayersSuite(options) if options.layers else cls(options)

    @classmethod
    def rivals_on(cls, device: str) -> tuple[str, ...]:
        """Return the rivals on a device: other engines run on CPUs only."""
        return tuple(name for name in RIVALS if device == "cpu" or name not in engines.PACKAGES)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.view = report.VIEWS[self.device.name]
        self.legend, self.table = self.view.legend, self.view.table
        self.cases = select(options)
        self.left_out = notes(options)
        missing = {
            rival: engines.missing_packages(rival)
            for rival in self.rivals
            if rival in engines.PACKAGES
        }
        self.missing = {rival: packages for rival, packages in missing.items() if packages}
        self.rivals = [rival for rival in self.rivals if rival not in self.missing]
        narrowed = options.quick or options.only or options.dtype or options.size or options.style
        known = self.rivals_on(self.device.name)
        self.complete = not narrowed and set(self.rivals) == set(known)

    def versions(self) -> dict[str, str]:
        return {
            rival: engines.installed_version(rival)
            for rival in self.rivals
            if rival in engines.PACKAGES
        }

    def notes(self) -> list[str]:
        return [
            *self.left_out,
            *(
                f"{rival}: skipped, not installed; pip install {' '.join(packages)}"
                for rival, packages in self.missing.items()
            ),
        ]

    def measure(self, case: Case, ceilings: Ceilings) -> report.Row:
        device = self.device
        gc.collect()  # free the memory of the case before, including its graphs
        with tempfile.TemporaryDirectory() as folder:
            problem = Problem(case, Path(folder), device.torch_device)
            entries = enter(problem, self.rivals, self.compile_mode, device)
            calls = {entry.name: entry.call for entry in entries if entry.error is None}
            samples = {}
            if calls:
                samples = measure(calls, budget_s=self.budget_s, clock=device.clock)
        config, (width, height) = problem.generator.config, case.size
        moved = image_bytes(config, height, width, problem.dtype.itemsize)
        return report.make_row(
            case,
            layers(config, height, width),
            entries,
            samples,
            ceilings,
            problem.precision,
            0 if device.name == "cpu" else moved,
        )

    def line(self, row: report.Row) -> str:
        return self.view.line(row)

    def as_json(self, row: report.Row) -> dict[str, Any]:
        return report.as_json(row)

    def summary(self, rows: list[report.Row]) -> str:
        fallback = any(
            row.case.dtype == "bfloat16" and "f32" in row.race.expressions.get("openvino", "")
            for row in rows
        )
        notes = [
            f"  {row.case.id}: {name}: {note}"
            for row in rows
            for name, note in row.race.notes.items()
        ]
        text = "\n".join([super().summary(rows), *notes])
        if fallback:
            text += "\n  openvino ran the bfloat16 cases in float32, as it does on this CPU"
        return text
