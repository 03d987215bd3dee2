"""The ops as a suite of ``python -m benchmarks``."""

import argparse
from typing import Any

import stylekernels
from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.ops import report
from benchmarks.ops.cases import Case, Shape, grid, prepare
from benchmarks.ops.contenders import enter, plain_copy
from benchmarks.timing import measure


def _shape(text: str) -> Shape:
    try:
        n, c, h, w = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NxCxHxW, got {text!r}") from None
    return n, c, h, w


class OpsSuite(suite.Suite[Case, report.Row]):
    """Every op, forward and backward, in both dtypes and layouts."""

    name = "ops"
    quick = "one shape per op"
    all_rivals = ("eager", "compile")
    legend = report.LEGEND
    table = report.TABLE

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--shape", type=_shape, metavar="NxCxHxW", help="instead of the listed shapes"
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.cases = [
            case
            for case in grid(options.quick, options.shape)
            if suite.fits(options, case.id, case.dtype)
        ]
        narrowed = options.quick or options.only or options.dtype or options.shape
        self.complete = not narrowed and set(self.rivals) == set(self.all_rivals)

    def measure(self, case: Case, ceilings: Ceilings) -> report.Row:
        problem = prepare(case)
        entries = enter(problem, self.rivals, self.compile_mode)
        calls = {entry.name: entry.call for entry in entries if entry.error is None}
        if case.limited_by == "memory":
            calls["copy"] = plain_copy(problem)
            calls["copy"]()
        samples = measure(calls, budget_s=self.budget_s) if calls else {}
        implementation = stylekernels.explain(case.op, problem.inputs[0]).partition(": ")[2]
        return report.make_row(case, problem, implementation, entries, samples, ceilings)

    def line(self, row: report.Row) -> str:
        return report.line(row)

    def as_json(self, row: report.Row) -> dict[str, Any]:
        return report.as_json(row)
