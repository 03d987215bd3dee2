"""The live pipeline as a suite of ``python -m benchmarks``."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import DTYPES, SHORT
from benchmarks.live.our_camera import Part, bare_seconds, run
from benchmarks.model.cases import open_network
from benchmarks.report import Table, milliseconds, number, percent
from benchmarks.timing import Summary, paired_ratio
from stylekernels.hardware import fast_dtype
from stylekernels.inference import Stylizer

_LEAST_SHARE = 0.9  # of the frames a second of the Stylizer alone
_JUDGED = 640 * 480  # pixels; smaller pictures take longer to show than to paint
_FLAT = 1.1  # the most that memory may grow, and latency beyond what the machine's speed explains
_ROUNDS = 5
_LEAST_PICTURES = 20


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str
    size: tuple[int, int]
    dtype: str
    pictures: int

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.network}/{self.size[0]}x{self.size[1]}/{self.dtype}"


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        share: frames a second, as a share of the Stylizer's alone, of each round.
        bare: frames a second of the Stylizer alone.
        parts: the tenths of a long run.
    """

    case: Case
    share: Summary
    bare: float
    parts: list[Part]

    @property
    def misses(self) -> list[str]:
        first, last = self.parts[0], self.parts[-1]
        found = []
        width, height = self.case.size
        if width * height >= _JUDGED and self.share.median < _LEAST_SHARE:
            found.append(f"{self.share.median:.0%} of the Stylizer's frames a second")
        # Latency is in frames: the machine may be slower at the end.
        if last.latency * last.fps > _FLAT * max(2.0, first.latency * first.fps):
            found.append(f"latency grew to {last.latency * last.fps:.1f} frames")
        if first.memory and last.memory and last.memory > _FLAT * first.memory:
            found.append(f"memory grew {last.memory / first.memory:.2f} times")
        return found

    @property
    def verdict(self) -> str:
        return "short" if self.misses else "win"


class LiveSuite(suite.Suite[Case, Row]):
    """The full network at 640x480, and many pictures of a narrow one."""

    name = "live"
    quick = "fewer pictures"
    devices = ("cpu", "cuda")
    all_rivals = ("bare",)
    table = Table(
        (
            ("network", 7),
            ("size", 8),
            ("type", 4),
            ("pictures", 8),
            ("fps", 5),
            ("bare", 5),
            ("share", 5),
            ("first", 6),
            ("last", 6),
            ("MiB", 6),
            ("MiB", 6),
            ("verdict", 7),
        ),
        words=3,
    )
    legend = """\
`stylekernels webcam` on a moving pattern of twice the painter's speed, with text over the pictures
and a window without a screen. fps: pictures shown a second; bare: of the Stylizer alone, in turns
with it; share: the former over the latter, the median of the rounds. Of a run of so many pictures:
first, last: latency from capture to display in its first and last tenth, median milliseconds; MiB:
resident memory at the end of these. win: a share of at least 90 % (from 640x480 on: smaller ones
take longer to show than to paint), latency and memory within 10 %."""

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--pictures",
            type=int,
            metavar="N",
            help="length of the run (default: 500, of the narrow network 20000)",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.pictures is not None and options.pictures < _LEAST_PICTURES:
            raise ValueError(
                f"--pictures: expected at least {_LEAST_PICTURES}, got {options.pictures}"
            )
        fast = fast_dtype(torch.device(options.device))
        dtype = options.dtype or next(name for name, found in DTYPES.items() if found == fast)
        runs = (("full", (640, 480), 500), ("lite", (64, 64), 20_000))
        cases = [
            Case(network, size, dtype, options.pictures or count // (20 if options.quick else 1))
            for network, size, count in runs
        ]
        self.cases = [case for case in cases if suite.fits(options, case.id, case.dtype)]
        self.complete = not (options.quick or options.only or options.pictures or options.dtype)

    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        device = self.device.torch_device
        stylizer = Stylizer(open_network(case.network), DTYPES[case.dtype], device)
        frame = np.random.default_rng(0).integers(0, 256, (*case.size[::-1], 3), np.uint8)
        bare_seconds(stylizer, frame, 2)  # packs weights
        each = max(_LEAST_PICTURES, int(self.budget_s / _ROUNDS / bare_seconds(stylizer, frame, 5)))
        bare, ours = [], []
        for _ in range(_ROUNDS):
            bare.append(bare_seconds(stylizer, frame, each))
            rate = 2 / bare[-1]
            _, *parts = run(stylizer, case.size, rate, each)  # the first starts the threads
            ours.append(float(np.mean([1 / part.fps for part in parts])))
        parts = run(stylizer, case.size, rate, case.pictures)
        return Row(case, paired_ratio(bare, ours), 1 / float(np.median(bare)), parts)

    def line(self, row: Row) -> str:
        case, first, last = row.case, row.parts[0], row.parts[-1]
        return self.table.line(
            [
                case.network,
                f"{case.size[0]}x{case.size[1]}",
                SHORT[case.dtype],
                str(case.pictures),
                number(row.bare * row.share.median),
                number(row.bare),
                percent(row.share.median),
                milliseconds(first.latency),
                milliseconds(last.latency),
                *(number(part.memory / 2**20 if part.memory else None) for part in (first, last)),
                row.verdict,
            ]
        )

    def as_json(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.case.id,
            **asdict(row.case),
            "bare_fps": row.bare,
            "share": asdict(row.share),
            "parts": [asdict(part) for part in row.parts],
            "verdict": row.verdict,
            "misses": row.misses,
        }
