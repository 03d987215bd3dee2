"""The model as a suite of ``python -m benchmarks``."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.model import engines, report
from benchmarks.model.cases import Case, Problem
from benchmarks.model.layers import LayersSuite
from benchmarks.model.memory import MemorySuite
from benchmarks.model.operations import layers
from benchmarks.model.options import add_options, notes, select
from benchmarks.model.rivals import RIVALS, enter
from benchmarks.timing import measure


class ModelSuite(suite.Suite[Case, report.Row]):
    """Both widths of the generator, or a bundled style, in both dtypes, frame by frame."""

    name = "model"
    quick = "the smallest size"
    all_rivals = RIVALS
    legend = report.LEGEND
    table = report.TABLE

    add_options = staticmethod(add_options)

    @classmethod
    def of(cls, options: argparse.Namespace) -> suite.Suite:
        if options.memory:
            return MemorySuite(options)
        return LayersSuite(options) if options.layers else cls(options)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
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
        self.complete = not narrowed and set(self.rivals) == set(RIVALS)

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
        with tempfile.TemporaryDirectory() as folder:
            problem = Problem(case, Path(folder))
            entries = enter(problem, self.rivals, self.compile_mode)
            calls = {entry.name: entry.call for entry in entries if entry.error is None}
            samples = measure(calls, budget_s=self.budget_s) if calls else {}
        counted = layers(problem.generator.config, case.size[1], case.size[0])
        return report.make_row(case, counted, entries, samples, ceilings)

    def line(self, row: report.Row) -> str:
        return report.line(row)

    def as_json(self, row: report.Row) -> dict[str, Any]:
        return report.as_json(row)

    def summary(self, rows: list[report.Row]) -> str:
        fallback = any(
            row.case.dtype == "bfloat16" and "f32" in row.race.expressions.get("openvino", "")
            for row in rows
        )
        text = super().summary(rows)
        if fallback:
            text += "\n  openvino ran the bfloat16 cases in float32, as it does on this CPU"
        return text
