"""Published networks as a suite of ``python -m benchmarks``."""

import argparse
import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import race, suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import DTYPES, SHORT, leaves_bfloat16_out, notes
from benchmarks.networks import models
from benchmarks.race import Entry, Race
from benchmarks.report import (
    VERDICT_COLUMN,
    View,
    floor_cell,
    share_cell,
    speedup_cell,
    spread_cell,
    time_cell,
)
from benchmarks.timing import measure
from stylekernels import fuse_convolutions

_RIVALS = ("eager", "eager-nhwc", "compile")
# The largest relative error, of the picture's norm, against float64.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}


@dataclass(frozen=True)
class _Network:
    make: Callable[[], nn.Module]
    size: tuple[int, int, int]


#: Networks in the sizes of their papers.
NETWORKS = {
    "cyclegan": _Network(models.cyclegan_resnet, (3, 256, 256)),
    "transformer": _Network(models.Transformer, (3, 512, 512)),
    "adain": _Network(models.adain_decoder, (512, 64, 64)),
    "animegan": _Network(models.AnimeGan, (3, 512, 512)),
    "pix2pix": _Network(models.pix2pix_unet, (3, 256, 256)),
    "pix2pix-batch": _Network(lambda: models.pix2pix_unet(norm=nn.BatchNorm2d), (3, 256, 256)),
    "patchgan": _Network(models.patchgan, (3, 256, 256)),
}


@dataclass(frozen=True)
class Case:
    """One row of the table: a name in `NETWORKS`, and a dtype."""

    network: str
    dtype: str

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.network}/{self.dtype}"


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        counts: convolutions that were fused, norms that run alone, convolutions that were left.
        floor: seconds for the multiplications at the peak; None if not measured.
    """

    case: Case
    race: Race
    counts: tuple[int, int, int]
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
        ("type", 4, lambda row: SHORT[row.case.dtype]),
        ("fused", 5, lambda row: str(row.counts[0])),
        ("alone", 5, lambda row: str(row.counts[1])),
        ("left", 4, lambda row: str(row.counts[2])),
        ("ours", 5, time_cell("ours")),
        ("±", 4, spread_cell),
        ("eager", 5, time_cell("eager")),
        ("NHWC", 5, time_cell("eager-nhwc")),
        ("comp.", 5, time_cell("compile")),
        ("floor", 5, floor_cell()),
        ("share", 5, share_cell),
        ("/eager", 6, speedup_cell("eager")),
        ("/comp", 5, speedup_cell("compile")),
        ("/best", 5, speedup_cell()),
        VERDICT_COLUMN,
    ),
    2,
    """\
Published networks with random weights, one image. ours: what `fuse_convolutions` makes of them;
median milliseconds, and ±, its inter-quartile range. fused: convolutions that normalise their input
themselves; alone: norms that run without one; left: convolutions that stay PyTorch's. Rivals: eager
(contiguous), NHWC (eager in channels_last), comp. (torch.compile in channels_last; ours is in it
too). floor: the multiplications of direct convolutions at the measured peak; share: the floor over
our time. /eager, /comp and /best: our speed over eager, compile and the fastest rival, above 1 we
are faster; medians of the ratios of each round. win: faster than all; even: within 5 %; loss: more
than 5 % slower; alone: no rival ran; wrong: refused.""",
)


class NetworksSuite(suite.Suite[Case, Row]):
    """Generators, a decoder and a discriminator."""

    name = "networks"
    quick = "the first case"
    devices = ("cpu", "cuda")
    all_rivals = _RIVALS
    legend, table = _VIEW.legend, _VIEW.table

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        pass

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        dtypes = ("float32",) if leaves_bfloat16_out(options) else tuple(DTYPES)
        cases = [Case(network, dtype) for dtype in dtypes for network in NETWORKS]
        cases = [case for case in cases if suite.fits(options, case.id, case.dtype)]
        self.cases = cases[:1] if options.quick else cases
        self._notes = notes(options)
        narrowed = options.quick or options.only or options.dtype
        self.complete = not narrowed and set(self.rivals) == set(_RIVALS)

    def notes(self) -> list[str]:
        return self._notes

    @torch.inference_mode()
    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        gc.collect()
        torch.compiler.reset()
        network = NETWORKS[case.network]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = network.make().eval()
            x = torch.randn(1, *network.size)
        with FlopCounterMode(display=False) as counter:
            exact = copy.deepcopy(model).double()(x.double())
        dtype, device = DTYPES[case.dtype], self.device.torch_device
        model, x = model.to(device, dtype), x.to(device, dtype)
        entries, counts = self._enter(model, x)
        tolerance = _TOLERANCE[case.dtype]
        for entry in entries:
            entry.error = race.refusal(lambda call=entry.call: _error(call(), exact), tolerance)
        calls = {entry.name: entry.call for entry in entries if entry.error is None}
        samples = measure(calls, budget_s=self.budget_s, clock=self.device.clock) if calls else {}
        results = Race.of(entries, samples)
        floor = ceilings.floor_seconds(case.dtype, 0, counter.get_total_flops())
        return Row(case, results, counts, floor, *results.judge())

    def _enter(self, model: nn.Module, x: torch.Tensor) -> tuple[list[Entry], tuple[int, int, int]]:
        """Return the contenders, and the counts of the report of ours."""
        nhwc = x.contiguous(memory_format=torch.channels_last)
        wide = copy.deepcopy(model).to(memory_format=torch.channels_last)
        fused, report = fuse_convolutions(wide)
        compiled = torch.compile(wide, mode=self.compile_mode)
        entries = [
            Entry("ours", "fuse_convolutions(model)[0](x) in channels_last", lambda: fused(nhwc)),
            Entry("eager", "model(x)", lambda: model(x)),
            Entry("eager-nhwc", "model(x) in channels_last", lambda: wide(nhwc)),
            Entry("compile", "torch.compile(model)(x) in channels_last", lambda: compiled(nhwc)),
        ]
        chosen = [entry for entry in entries if entry.name in ("ours", *self.rivals)]
        return chosen, (len(report.fused), len(report.alone), len(report.left))

    def line(self, row: Row) -> str:
        return _VIEW.line(row)

    def as_json(self, row: Row) -> dict[str, Any]:
        fused, alone, left = row.counts
        return {
            "id": row.case.id,
            "network": row.case.network,
            "dtype": row.case.dtype,
            "fused": fused,
            "alone": alone,
            "left": left,
            **row.race.as_json(),
            "floor_seconds": row.floor,
            "share_of_floor": row.share_of_floor,
            "verdict": row.verdict,
            "misses": row.misses,
        }


def _error(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative error of a picture: of its norm."""
    return float((y.cpu().double() - exact).norm() / exact.norm())
