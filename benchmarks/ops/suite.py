"""The ops as a suite of ``python -m benchmarks``."""

import argparse
import gc
from collections.abc import Sequence
from typing import Any

import stylekernels
from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.environment import MALLOC, OPENMP
from benchmarks.ops import cases, cuda_cases, cudnn_graph, report
from benchmarks.ops.cases import Case, Shape
from benchmarks.ops.contenders import RIVALS, enter, plain_copy, sets_of
from benchmarks.ops.problems import prepare
from benchmarks.timing import measure


def _shape(text: str) -> Shape:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) not in (4, 5):
        raise argparse.ArgumentTypeError(f"expected NxCxHxW or NxCxDxHxW, got {text!r}")
    return shape


class OpsSuite(suite.Suite[Case, report.Row]):
    """Every op, forward and backward, in both dtypes and layouts."""

    name = "ops"
    quick = "one shape per op"
    devices = tuple(RIVALS)
    all_rivals = ("eager", "eager-nhwc", "compile", "cudnn-graph")

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--shape",
            type=_shape,
            metavar="NxCxHxW",
            help="a shape to measure instead of the listed ones, or NxCxDxHxW",
        )

    @classmethod
    def rivals_on(cls, device: str) -> tuple[str, ...]:
        return tuple(RIVALS[device])

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.view = report.VIEWS[self.device.name]
        self.legend, self.table = self.view.legend, self.view.table
        grid = {"cpu": cases.grid, "cuda": cuda_cases.grid}[self.device.name]
        self.cases = [
            case
            for case in grid(options.quick, options.shape)
            if suite.fits(options, case.id, case.dtype)
        ]
        self.missing = "cudnn-graph" in self.rivals and not cudnn_graph.is_installed()
        if self.missing:
            self.rivals.remove("cudnn-graph")
        narrowed = options.quick or options.only or options.dtype or options.shape
        rivals = {*self.rivals, "cudnn-graph"} if self.missing else set(self.rivals)
        self.complete = not narrowed and rivals == set(RIVALS[self.device.name])

    def versions(self) -> dict[str, str]:
        if "cudnn-graph" not in self.rivals:
            return {}
        return {"cudnn-graph": cudnn_graph.installed_version()}

    def notes(self) -> list[str]:
        if not self.missing:
            return []
        return [f"cudnn-graph: skipped, not installed; pip install {cudnn_graph.PACKAGE}"]

    def environment(self) -> dict[str, str]:
        # Not on a GPU: compilers that a bound thread starts stay on its core, which makes
        # torch.compile slow on many cores.
        return MALLOC | OPENMP if self.device.name == "cpu" else MALLOC

    def measure(self, case: Case, ceilings: Ceilings) -> report.Row:
        device = self.device
        gc.collect()  # free the memory of the case before, including its graphs
        problem = prepare(case, device.torch_device)
        entries = enter(problem, self.rivals, self.compile_mode, device)
        calls = {entry.name: entry.call for entry in entries if entry.error is None}
        if case.limited_by == "memory" and device.cached:
            calls["copy"] = plain_copy(problem)
            calls["copy"]()
        samples = {}
        if calls:
            samples = measure(calls, budget_s=self.budget_s, clock=device.clock)
        sets = sets_of(problem, device)  # each call runs all of them
        samples = {name: [value / sets for value in values] for name, values in samples.items()}
        implementation = stylekernels.explain(case.op, problem.inputs[0]).partition(": ")[2]
        return report.make_row(case, problem, implementation, entries, samples, ceilings)

    def line(self, row: report.Row) -> str:
        return self.view.line(row)

    def summary(self, rows: Sequence[report.Row]) -> str:
        notes = [
            f"  {row.case.id}: {name}: {note}"
            for row in rows
            for name, note in row.race.notes.items()
        ]
        return "\n".join([super().summary(rows), *notes])

    def as_json(self, row: report.Row) -> dict[str, Any]:
        return report.as_json(row)
