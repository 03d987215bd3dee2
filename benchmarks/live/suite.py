"""Moving pictures as a suite of ``python -m benchmarks``."""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import DTYPES, SHORT
from benchmarks.live import our_camera
from benchmarks.live.part import Part, resident
from benchmarks.model.cases import open_network
from benchmarks.report import Table, milliseconds, number, percent
from benchmarks.timing import Summary, paired_ratio
from stylekernels.hardware import fast_dtype
from stylekernels.inference import Stylizer
from stylekernels.models import StyleGenerator

_LEAST_SHARE = 0.9  # of the frames a second of the Stylizer alone
_JUDGED = 640 * 480  # pixels; smaller pictures take longer to show than to paint
_FLAT = 1.1  # the most that memory may grow, and latency beyond what the machine's speed explains
_MOST_LATENCY = 2.0  # frames
_ROUNDS = 5
_LEAST_PICTURES = 20


@dataclass(frozen=True)
class Case:
    """One row of the table. ``way`` is the command: webcam, video or serve."""

    way: str
    network: str
    size: tuple[int, int]
    dtype: str
    pictures: int

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        return f"{self.way}/{self.network}/{self.size[0]}x{self.size[1]}/{self.dtype}"


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        share: frames a second, as a share of the Stylizer's alone, of each round.
        bare: frames a second of the Stylizer alone.
        parts: the tenths of a long run; of a video the whole.
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
        if first.latency and last.latency:
            # Latency is in frames: the machine may be slower at the end.
            begin, end = first.latency * first.fps, last.latency * last.fps
            if end > _FLAT * max(_MOST_LATENCY, begin):
                found.append(f"latency grew to {end:.1f} frames")
            elif self.case.way == "serve" and end > _MOST_LATENCY:
                found.append(f"a latency of {end:.1f} frames")
        if first.memory and last.memory and last.memory > _FLAT * first.memory:
            found.append(f"memory grew {last.memory / first.memory:.2f} times")
        return found

    @property
    def verdict(self) -> str:
        return "short" if self.misses else "win"


class LiveSuite(suite.Suite[Case, Row]):
    """Each command at 640x480, full and lite, and many small pictures."""

    name = "live"
    quick = "fewer pictures"
    devices = ("cpu", "cuda")
    all_rivals = ("bare",)
    table = Table(
        (
            ("command", 7),
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
        words=4,
    )
    legend = """\
A moving pattern through `stylekernels webcam` (twice as many frames as the painter can take, text
over the pictures, a window without a screen), `video` (H.264 to H.264) and `serve` (a client in
this process, which sends JPEG files as the page does, and decodes no picture). fps: pictures a
second; bare: of the Stylizer alone, in turns with it; share: the former over the latter, the median
of the rounds. Of a run of so many pictures: first, last: latency from capture to display in its
first and last tenth, median milliseconds; MiB: resident memory at the end of these. win: a share of
at least 90 % (from 640x480 on: smaller ones take longer to show than to paint), latency and memory
within 10 %, for `serve` a latency of at most two frames."""

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--pictures",
            type=int,
            metavar="N",
            help="length of the run (default: 500, of small pictures 20000)",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.pictures is not None and options.pictures < _LEAST_PICTURES:
            raise ValueError(
                f"--pictures: expected at least {_LEAST_PICTURES}, got {options.pictures}"
            )
        fast = fast_dtype(torch.device(options.device))
        dtype = options.dtype or next(name for name, found in DTYPES.items() if found == fast)
        runs = [
            (way, network, (640, 480), 500)
            for way in ("webcam", "video", "serve")
            for network in ("full", "lite")
        ]
        runs.append(("webcam", "lite", (64, 64), 20_000))
        cases = [
            Case(way, network, size, dtype, options.pictures or count // _part_of(options))
            for way, network, size, count in runs
        ]
        self.cases = [case for case in cases if suite.fits(options, case.id, case.dtype)]
        self.complete = not (options.quick or options.only or options.pictures or options.dtype)

    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        generator = open_network(case.network)
        stylizer = Stylizer(generator, DTYPES[case.dtype], self.device.torch_device)
        frame = np.random.default_rng(0).integers(0, 256, (*case.size[::-1], 3), np.uint8)
        _bare_seconds(stylizer, frame, 2)  # packs weights
        each = _bare_seconds(stylizer, frame, 5)
        count = max(_LEAST_PICTURES, int(self.budget_s / _ROUNDS / each))
        bare, ours = [], []
        with _opened(case, generator, stylizer, self.device.name) as run:
            for _ in range(_ROUNDS):
                bare.append(_bare_seconds(stylizer, frame, count))
                rate = 2 / bare[-1]
                parts = run(rate, count)
                ours.append(float(np.mean([1 / part.fps for part in parts])))
            parts = run(rate, case.pictures)
        return Row(case, paired_ratio(bare, ours), 1 / float(np.median(bare)), parts)

    def line(self, row: Row) -> str:
        case, first, last = row.case, row.parts[0], row.parts[-1]
        return self.table.line(
            [
                case.way,
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


def _part_of(options: argparse.Namespace) -> int:
    """Return by what lengths are divided."""
    return 20 if options.quick else 1


def _bare_seconds(stylizer: Stylizer, frame: np.ndarray, pictures: int) -> float:
    """Return the seconds a frame that the Stylizer alone takes, for a number of frames."""
    began = time.perf_counter()
    for _ in range(pictures):
        stylizer(frame)
    return (time.perf_counter() - began) / pictures


@contextlib.contextmanager
def _opened(
    case: Case, generator: StyleGenerator, stylizer: Stylizer, device: str
) -> Iterator[Callable[[float, int], list[Part]]]:
    """Prepare a command. Yield a function of the source's rate and a number of pictures, which
    returns what was measured in the parts of a run, less the first one, in which threads start."""
    with tempfile.TemporaryDirectory() as folder:
        if case.way == "webcam":
            yield lambda rate, count: our_camera.run(stylizer, case.size, rate, count)[1:]
        elif case.way == "serve":
            from benchmarks.live import our_server  # needs aiohttp

            with our_server.serving(generator, Path(folder), device) as served:
                yield lambda rate, count: served.run(case.size, rate, count)[1:]
        else:
            from benchmarks.live import our_video  # needs PyAV

            def run(rate: float, count: int) -> list[Part]:
                clip = Path(folder, f"{count}.mp4")
                if not clip.exists():
                    our_video.make_clip(clip, case.size, count)
                seconds = our_video.run(stylizer, clip)
                return [Part(1 / seconds, None, resident())]

            yield run
