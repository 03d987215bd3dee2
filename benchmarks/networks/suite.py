"""Published networks as a suite of ``python -m benchmarks``."""

import argparse
import gc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import race, suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import DTYPES, SHORT, leaves_bfloat16_out, notes
from benchmarks.networks.cases import NETWORKS, WORKS, Case
from benchmarks.networks.contenders import RIVALS, Answer, Problem, enter, norms_share
from benchmarks.race import Race
from benchmarks.report import (
    VERDICT_COLUMN,
    View,
    floor_cell,
    percent,
    share_cell,
    speedup_cell,
    spread_cell,
    time_cell,
)
from benchmarks.timing import measure

# The largest relative error of the output.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}

# That of each gradient, or twice the error of eager PyTorch if that is more. Gradients have more of
# it than outputs: a value on the other side of an activation's kink changes all that depends on it.
# In bfloat16 those of first layers may be rounding errors alone, in any implementation: gradients
# are not judged if eager's error exceeds _ROUNDED.
_GRADIENT_TOLERANCE, _ROUNDED = 0.05, 0.25


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        counts: what was fused, norms that run alone, and what was left.
        norms: share of norms in the time of eager; None on a GPU.
        floor: seconds for the multiplications at the peak; None if not measured.
    """

    case: Case
    race: Race
    counts: tuple[int, int, int]
    norms: float | None
    floor: float | None
    verdict: str
    misses: list[str]

    @property
    def share_of_floor(self) -> float | None:
        """The floor over our time."""
        seconds = self.race.median("ours")
        return None if self.floor is None or seconds is None else self.floor / seconds


_VIEW = View(
    (
        ("network", 13, lambda row: row.case.network),
        ("work", 7, lambda row: row.case.work),
        ("type", 4, lambda row: SHORT[row.case.dtype]),
        ("fused", 5, lambda row: str(row.counts[0])),
        ("alone", 5, lambda row: str(row.counts[1])),
        ("left", 4, lambda row: str(row.counts[2])),
        ("norms", 5, lambda row: percent(row.norms)),
        ("ours", 5, time_cell("ours")),
        ("±", 4, spread_cell),
        ("eager", 5, time_cell("eager")),
        ("NHWC", 5, time_cell("eager-nhwc")),
        ("comp.", 5, time_cell("compile")),
        ("both", 5, time_cell("both")),
        ("floor", 5, floor_cell()),
        ("share", 5, share_cell),
        ("/eager", 6, speedup_cell("eager")),
        ("/comp", 5, speedup_cell("compile")),
        ("/best", 5, speedup_cell()),
        VERDICT_COLUMN,
    ),
    3,
    """\
Published networks with random weights, one image or volume. work: forward, or a step, forward and
backward with the gradients of all parameters. ours: the network by `fuse_convolutions` for images
forward, else by `convert`; median milliseconds, and ±, its inter-quartile range. fused: by
`fuse_convolutions`, convolutions that normalise their input themselves, by `convert`, norms that
are one op with their activation; alone: norms that run without one; left: convolutions or norms
that stay PyTorch's. norms: their share of the time of eager PyTorch. Rivals: eager (contiguous),
NHWC (eager in channels_last), comp. (torch.compile in channels_last; ours is in it too). both:
torch.compile of the network by `convert`, which nothing is judged by. floor: the multiplications of
direct convolutions at the measured peak; share: the floor over our time. /eager, /comp and /best:
our speed over eager, compile and the fastest rival, above 1 we are faster; medians of the ratios of
each round. win: faster than all; even: within 5 %; loss: more than 5 % slower; alone: no rival ran;
wrong: refused.""",
)


class NetworksSuite(suite.Suite[Case, Row]):
    """Generators, decoders, a discriminator and networks for volumes."""

    name = "networks"
    quick = "the first two cases"
    devices = ("cpu", "cuda")
    all_rivals = RIVALS
    legend, table = _VIEW.legend, _VIEW.table

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        pass

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        dtypes = ("float32",) if leaves_bfloat16_out(options) else tuple(DTYPES)
        cases = [
            Case(network, work, dtype) for dtype in dtypes for network in NETWORKS for work in WORKS
        ]
        cases = [case for case in cases if suite.fits(options, case.id, case.dtype)]
        missing = {name: network.missing for name, network in NETWORKS.items() if network.missing}
        self.cases = [case for case in cases if case.network not in missing]
        if options.quick:
            self.cases = self.cases[: len(WORKS)]
        self._notes = notes(options) + [
            f"{name}: left out, for its package is missing; pip install {package}"
            for name, package in missing.items()
            if any(case.network == name for case in cases)
        ]
        narrowed = options.quick or options.only or options.dtype or missing
        self.complete = not narrowed and set(self.rivals) == set(RIVALS)

    def notes(self) -> list[str]:
        return self._notes

    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        gc.collect()
        torch.compiler.reset()
        # Outside of inference mode, as a model is usually made: `fuse_convolutions` packs weights
        # that are made inside anew in each call.
        original = _problem(case)
        problem = original.to(self.device.torch_device, DTYPES[case.dtype])
        entries, counts = enter(problem, self.rivals, self.compile_mode)
        with torch.inference_mode(case.work == "forward"):
            with FlopCounterMode(display=False) as counter:
                exact = original.to(torch.float64).call()()
            allowed = [_TOLERANCE[case.dtype]]
            if case.work == "step":
                eager = _errors(problem.call()(), exact)[1:]
                allowed += [
                    max(_GRADIENT_TOLERANCE, 2 * error) if error <= _ROUNDED else math.inf
                    for error in eager
                ]
            for entry in entries:
                entry.error = race.refusal(
                    lambda call=entry.call: _error(call(), exact, allowed), allowed[0]
                )
            calls = {entry.name: entry.call for entry in entries if entry.error is None}
            clock = self.device.clock
            samples = measure(calls, budget_s=self.budget_s, clock=clock) if calls else {}
            norms = norms_share(problem.call()) if self.device.name == "cpu" else None
        results = Race.of(entries, samples)
        floor = ceilings.floor_seconds(case.dtype, 0, counter.get_total_flops())
        return Row(case, results, counts, norms, floor, *results.judge())

    def line(self, row: Row) -> str:
        return _VIEW.line(row)

    def as_json(self, row: Row) -> dict[str, Any]:
        fused, alone, left = row.counts
        return {
            "id": row.case.id,
            "network": row.case.network,
            "work": row.case.work,
            "dtype": row.case.dtype,
            "fused": fused,
            "alone": alone,
            "left": left,
            "norms_share_of_eager": row.norms,
            **row.race.as_json(),
            "floor_seconds": row.floor,
            "share_of_floor": row.share_of_floor,
            "verdict": row.verdict,
            "misses": row.misses,
        }


def _problem(case: Case) -> Problem:
    """Return the network with random weights, and a random image or volume."""
    network = NETWORKS[case.network]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.make()
        x = torch.randn(1, *network.size)
        if case.work == "forward":
            return Problem(model.eval(), x)
        with torch.no_grad():
            return Problem(model.train(), x, torch.randn_like(model(x)))


def _errors(found: Answer, exact: Answer) -> list[float]:
    """Return the relative errors of the output and of the gradients, of their norms."""
    y, *grads = (tensor.cpu().double() for tensor in found)
    error = ((y - exact[0]).norm() / exact[0].norm()).item()
    return [error, *(race.gradient_errors(grads, exact[1:]) if grads else [])]


def _error(found: Answer, exact: Answer, allowed: list[float]) -> float:
    """Return the worst of `_errors`, each scaled as if that of the output were allowed for it."""
    errors = zip(_errors(found, exact), allowed, strict=True)
    scaled = [error * (allowed[0] / limit) for error, limit in errors]
    return torch.tensor(scaled).max().item()  # NaN stays NaN
