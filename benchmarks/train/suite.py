"""Training as a suite of ``python -m benchmarks``."""

import argparse
import gc
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import notes
from benchmarks.timing import measure
from benchmarks.train import report
from benchmarks.train.cases import CONFIG, Case, Problem, select
from benchmarks.train.rivals import RIVALS, enter, plain_step


class TrainSuite(suite.Suite[Case, report.Row]):
    """Both widths of the generator, with few and with more photos a step."""

    name = "train"
    quick = "the first case"
    devices = ("cpu", "cuda")
    all_rivals = RIVALS
    legend, table = report.VIEW.legend, report.VIEW.table

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--crop",
            type=int,
            default=CONFIG.crop,
            metavar="PIXELS",
            help="side of the square photos (default: %(default)s)",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.crop < 32:
            raise ValueError(f"--crop: expected at least 32 pixels, got {options.crop}")
        self.cases = select(options)
        self.left_out = notes(options)
        narrowed = options.quick or options.only or options.dtype or options.crop != CONFIG.crop
        self.complete = not narrowed and set(self.rivals) == set(RIVALS)

    def notes(self) -> list[str]:
        return self.left_out

    def measure(self, case: Case, ceilings: Ceilings) -> report.Row:
        gc.collect()  # free the memory of the case before, including its graphs
        device = self.device
        problem = Problem(case, device.torch_device)
        entries = enter(problem, self.rivals, self.compile_mode, device)
        calls = {entry.name: entry.call for entry in entries if entry.error is None}
        samples = measure(calls, budget_s=self.budget_s, clock=device.clock) if calls else {}
        return report.make_row(case, _flops(problem), problem.precision, entries, samples, ceilings)

    def line(self, row: report.Row) -> str:
        return report.VIEW.line(row)

    def as_json(self, row: report.Row) -> dict[str, Any]:
        return report.as_json(row)


def _flops(problem: Problem) -> int:
    """Count the operations of a step's convolutions and products, forward and backward."""
    _, take = plain_step(problem, torch.float32)
    with FlopCounterMode(display=False) as counter:
        take()
    return counter.get_total_flops()
