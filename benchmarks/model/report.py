"""Results of the model: shares of the machine's peak, the table, the JSON."""

from dataclasses import dataclass
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT
from benchmarks.model.cases import Case
from benchmarks.model.operations import Layer, winograd_dtype
from benchmarks.model.rivals import RIVALS
from benchmarks.race import Entry, Race
from benchmarks.report import Table, number

TABLE = Table(
    (
        ("network", 12), ("size", 9), ("type", 4), ("ours", 5), ("±", 4), ("eager", 5),
        ("NHWC", 5), ("comp.", 5), ("ORT", 5), ("OV", 5), ("floor", 5), ("wino.", 5), ("rate", 5),
        ("peak", 5), ("fps", 5), ("/eager", 6), ("/best", 5), ("verdict", 7),
    ),
    words=3,
)  # fmt: skip
LEGEND = """\
ours: a Stylizer, 8-bit frame to 8-bit frame; median milliseconds, and ±, its inter-quartile range.
Rivals run the same network in torch.nn, floating-point picture to the same, no conversions timed:
eager, NHWC (eager in channels_last), comp. (torch.compile in channels_last), ORT (ONNX Runtime, in
float32 only) and OV (OpenVINO). floor: the multiplications of direct convolutions at the measured
peak; wino.: with Winograd's F(4x4, 3x3) in the residual blocks and F(4x4, 2x2) in upsampling, at
the peak of float32 (ours multiplies bfloat16 in tiles, without it, on AMX; elsewhere in float32).
rate: ours in GFLOP/s by the direct count; peak: as a share of the peak, above 100 % only by
Winograd. fps: our frames per second. /eager and /best: our speed over eager and over the fastest
rival, above 1 we are faster; medians of the ratios of each round. win: faster than all; even:
within 5 %; loss: more than 5 % slower; alone: no rival ran; wrong: refused."""


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        flops: operations of direct convolutions.
        winograd_flops: the same with Winograd's method where it applies; None where ours doesn't
            use it.
        race: who ran, and how fast.
        floor, winograd_floor: seconds for so many operations at the measured peak; None where it
            was not measured.
        verdict: win, even, loss, alone or wrong.
        misses: what keeps it from a win, in words.
    """

    case: Case
    flops: float
    winograd_flops: float | None
    race: Race
    floor: float | None
    winograd_floor: float | None
    verdict: str
    misses: list[str]

    @property
    def seconds(self) -> float | None:
        """Of ours, for a frame; None where it was refused."""
        return self.race.seconds["ours"].median if "ours" in self.race.seconds else None

    @property
    def share_of_peak(self) -> float | None:
        """The direct convolutions' floor over our time."""
        return None if self.floor is None or self.seconds is None else self.floor / self.seconds


def make_row(
    case: Case,
    layers: list[Layer],
    entries: list[Entry],
    samples: dict[str, list[float]],
    ceilings: Ceilings,
) -> Row:
    """Reduce the samples of a case, one number per round and contender, to a row."""

    flops = sum(layer.flops for layer in layers)
    floor = ceilings.floor_seconds(case.dtype, 0, flops)
    winograd, winograd_floor = None, None
    if (dtype := winograd_dtype(case.dtype)) is not None:
        winograd = sum(layer.winograd_flops for layer in layers)
        winograd_floor = ceilings.floor_seconds(dtype, 0, winograd)
    race = Race.of(entries, samples)
    return Row(case, flops, winograd, race, floor, winograd_floor, *race.judge())


def line(row: Row) -> str:
    """One line of the table."""
    case, race, seconds = row.case, row.race, row.seconds

    def milliseconds(value: float | None) -> str:
        return number(None if value is None else value * 1e3)

    def speedup(name: str | None) -> str:
        return number(race.speedups[name].median if name in race.speedups else None)

    times = [race.seconds[name].median if name in race.seconds else None for name in RIVALS]
    return TABLE.line(
        [
            case.network,
            f"{case.size[0]}x{case.size[1]}",
            SHORT[case.dtype],
            milliseconds(seconds),
            "-" if seconds is None else f"{race.seconds['ours'].spread:.0%}",
            *map(milliseconds, times),
            milliseconds(row.floor),
            milliseconds(row.winograd_floor),
            number(None if seconds is None else row.flops / seconds / 1e9),
            "-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}",
            number(None if seconds is None else 1 / seconds),
            speedup("eager"),
            speedup(race.best_rival),
            row.verdict,
        ]
    )


def as_json(row: Row) -> dict[str, Any]:
    """For ``json.dump``."""
    case, seconds = row.case, row.seconds
    return {
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
