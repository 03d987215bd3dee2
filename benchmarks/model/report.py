"""Results of the model: the table, shares of the machine's peak, the JSON."""

from dataclasses import dataclass
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT
from benchmarks.model.cases import MIN_OVER_COMPILE, Case
from benchmarks.model.operations import Layer, winograd_dtype
from benchmarks.race import Entry, Race
from benchmarks.report import (
    VERDICT_COLUMN,
    View,
    floor_cell,
    milliseconds,
    number,
    percent,
    share_cell,
    speedup_cell,
    spread_cell,
    time_cell,
)

_LEGEND = """\
ours: a Stylizer, 8-bit frame to 8-bit frame; median milliseconds, and ±, its inter-quartile range.
Rivals run the same network in torch.nn, floating-point picture to the same, no conversions timed:
eager, NHWC (eager in channels_last), comp. (torch.compile in channels_last), ORT (ONNX Runtime, in
float32 only) and OV (OpenVINO). floor: the multiplications of direct convolutions at the measured
peak; wino.: with Winograd's F(4x4, 3x3) in the residual blocks and F(4x4, 2x2) in upsampling, at
the peak of float32 (ours multiplies bfloat16 in tiles, without it, on AMX; elsewhere in float32,
but for strided layers with AVX512-BF16).
rate: ours in GFLOP/s by the direct count; peak: as a share of the peak, above 100 % only by
Winograd. fps: our frames per second. /eager and /best: our speed over eager and over the fastest
rival, above 1 we are faster; medians of the ratios of each round. win: faster than all; even:
within 5 %; loss: more than 5 % slower; alone: no rival ran; wrong: refused."""
_CUDA_LEGEND = """\
ours: a Stylizer, 8-bit frame on the GPU to 8-bit picture there; median milliseconds, and ±, its
inter-quartile range. Rivals run the same network in torch.nn, floating-point picture to the same,
no conversions timed, as a CUDA graph: eager (contiguous), NHWC (eager in channels_last), comp.
(torch.compile in channels_last). floor: the multiplications of direct convolutions at the rate of a
matrix product, or the images between layers, each written and read once, at the speed of a copy,
whichever takes longer; small images may stay in the L2 cache, which is faster. share: the floor
over our time. fps: our frames per second. /comp and /best: our speed over compile and over the
fastest rival, above 1 we are faster; medians of the ratios of each round. win: faster than all;
even: within 5 %; short: not slower, but a target missed; loss: more than 5 % slower; alone: no
rival ran; wrong: refused."""


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        precision: precision of products: the dtype, or tf32.
        flops: operations of direct convolutions.
        bytes: bytes of images between layers; 0 on a CPU, where they are not counted.
        winograd_flops: operations with Winograd's method; None if it is not used.
        race: the contenders and their times.
        peak: measured operations per second; None if not measured.
        floor: seconds for flops at the peak, or for bytes at the speed of a copy, whichever is
            longer; None if the peak was not measured.
        winograd_floor: seconds for winograd_flops at the peak of their dtype.
        verdict: win, even, short, loss, alone or wrong.
        misses: the reasons why it is not a win, in words.
    """

    case: Case
    precision: str
    flops: float
    bytes: int
    winograd_flops: float | None
    race: Race
    peak: float | None
    floor: float | None
    winograd_floor: float | None
    verdict: str
    misses: list[str]

    @property
    def seconds(self) -> float | None:
        """Our time for a frame; None if it was refused."""
        return self.race.median("ours")

    @property
    def share_of_peak(self) -> float | None:
        """Our operations per second, by the direct count, over the peak."""
        if self.peak is None or self.seconds is None:
            return None
        return self.flops / self.seconds / self.peak

    @property
    def share_of_floor(self) -> float | None:
        """The floor over our time."""
        return None if self.floor is None or self.seconds is None else self.floor / self.seconds


def make_row(
    case: Case,
    layers: list[Layer],
    entries: list[Entry],
    samples: dict[str, list[float]],
    ceilings: Ceilings,
    precision: str | None = None,
    moved_bytes: int = 0,
) -> Row:
    """Reduce the samples of a case, one number per round and contender, to a row.

    Args:
        case, layers: the work.
        entries, samples: the contenders, and their seconds per frame.
        ceilings: limits of the machine.
        precision: precision of products; the case's dtype by default.
        moved_bytes: bytes of images between layers.
    """
    precision = precision or case.dtype
    flops = sum(layer.flops for layer in layers)
    peak = None if ceilings.flops_per_s is None else ceilings.flops_per_s[precision]
    floor = ceilings.floor_seconds(precision, moved_bytes, flops)
    winograd, winograd_floor = None, None
    if case.device == "cpu" and (dtype := winograd_dtype(case.dtype)) is not None:
        winograd = sum(layer.winograd_flops for layer in layers)
        winograd_floor = ceilings.floor_seconds(dtype, 0, winograd)
    race = Race.of(entries, samples)
    return Row(
        case,
        precision,
        flops,
        moved_bytes,
        winograd,
        race,
        peak,
        floor,
        winograd_floor,
        *race.judge(_missed_target(case, race)),
    )


def _missed_target(case: Case, race: Race) -> list[str]:
    target, reached = MIN_OVER_COMPILE.get(case), race.speedups.get("compile")
    if target is None or reached is None or reached.median >= target:
        return []
    return [f"{reached.median:.2f} times compile, target {target}"]


def _rate(row: Row) -> str:
    return number(None if row.seconds is None else row.flops / row.seconds / 1e9)


def _frames_per_s(row: Row) -> str:
    return number(None if row.seconds is None else 1 / row.seconds)


_WORDS = (
    ("network", 12, lambda row: row.case.network),
    ("size", 9, lambda row: f"{row.case.size[0]}x{row.case.size[1]}"),
    ("type", 4, lambda row: SHORT[row.case.dtype]),
)
_OURS = (("ours", 5, time_cell("ours")), ("±", 4, spread_cell))
_IN_TORCH = (
    ("eager", 5, time_cell("eager")),
    ("NHWC", 5, time_cell("eager-nhwc")),
    ("comp.", 5, time_cell("compile")),
)
_LAST = (("/best", 5, speedup_cell()), VERDICT_COLUMN)

VIEWS = {
    "cpu": View(
        (
            *_WORDS,
            *_OURS,
            *_IN_TORCH,
            ("ORT", 5, time_cell("onnxruntime")),
            ("OV", 5, time_cell("openvino")),
            ("floor", 5, floor_cell()),
            ("wino.", 5, lambda row: milliseconds(row.winograd_floor)),
            ("rate", 5, _rate),
            ("peak", 5, lambda row: percent(row.share_of_peak)),
            ("fps", 5, _frames_per_s),
            ("/eager", 6, speedup_cell("eager")),
            *_LAST,
        ),
        3,
        _LEGEND,
    ),
    "cuda": View(
        (
            *_WORDS,
            *_OURS,
            *_IN_TORCH,
            ("floor", 5, floor_cell()),
            ("share", 5, share_cell),
            ("fps", 5, _frames_per_s),
            ("/comp", 5, speedup_cell("compile")),
            *_LAST,
        ),
        3,
        _CUDA_LEGEND,
    ),
}


def as_json(row: Row) -> dict[str, Any]:
    """Return the row as plain values, for ``json.dump``."""
    case, seconds = row.case, row.seconds
    found = {
        "id": case.id,
        "network": case.network,
        "width": case.size[0],
        "height": case.size[1],
        "dtype": case.dtype,
        **row.race.as_json(),
        "flops": row.flops,
        "winograd_flops": row.winograd_flops,
        "floor_seconds": row.floor,
        "winograd_floor_seconds": row.winograd_floor,
        "flops_per_s": None if seconds is None else row.flops / seconds,
        "share_of_peak": row.share_of_peak,
        "frames_per_s": None if seconds is None else 1 / seconds,
        "verdict": row.verdict,
        "misses": row.misses,
    }
    if case.device == "cuda":
        found |= {
            "precision": row.precision,
            "bytes": row.bytes,
            "share_of_floor": row.share_of_floor,
            "min_over_compile": MIN_OVER_COMPILE.get(case),
        }
    return found
