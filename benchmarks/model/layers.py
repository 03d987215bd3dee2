"""The time of each layer of a frame: ``python -m benchmarks model --layers``."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels
from benchmarks import report, suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT, notes
from benchmarks.model.cases import Case, Problem
from benchmarks.model.operations import Layer, layers, winograd_dtype
from benchmarks.model.options import add_options, select
from benchmarks.model.rivals import make
from benchmarks.report import Table, number
from benchmarks.timing import Summary, summarize

_MIN_FRAMES, _MAX_FRAMES = 5, 100
#: Arguments that a layer reads or writes once.
_IMAGES = ("x", "residual", "y", "input")


@dataclass(frozen=True)
class Call:
    """One layer of one frame: its time, and the bytes of the images among its arguments."""

    seconds: float
    bytes: int


class Stopwatch(TorchDispatchMode):
    """Times every layer that runs inside of it: a Stylizer calls `norm_conv2d_out` for each."""

    def __init__(self) -> None:
        super().__init__()
        self.op = torch.ops.stylekernels.norm_conv2d_out.default
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if func is self.op:
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False), **(kwargs or {}))
            images = [given[name] for name in _IMAGES if isinstance(given.get(name), Tensor)]
            self.calls.append(Call(seconds, sum(image.nbytes for image in images)))
        return result


@dataclass(frozen=True)
class LayerTime:
    """A layer's time in each frame.

    Attributes:
        layer: the layer, and the operations that it needs.
        bytes: bytes of the images that it reads and writes.
        seconds: time in each frame.
        floor: the least seconds of a direct convolution; None if not measured.
        winograd_floor: the same for Winograd's method; None if it is not used.
        share_of_peak: operations per second of a direct convolution over the measured peak.
    """

    layer: Layer
    bytes: int
    seconds: Summary
    floor: float | None
    winograd_floor: float | None
    share_of_peak: float | None


@dataclass(frozen=True)
class Row:
    """A measured case.

    Attributes:
        layers: the layers in order; empty if the Stylizer has no plan.
        frame: seconds of whole frames.
        rest: seconds of a frame outside of all layers.
    """

    case: Case
    layers: list[LayerTime]
    frame: Summary
    rest: Summary
    verdict: str
    misses: list[str]


def watch(call: Callable[[], object], budget_s: float) -> list[tuple[float, list[Call]]]:
    """Run frames for about this long. Return the seconds and the layers of each."""
    call()
    frames = []
    start = time.perf_counter()
    while len(frames) < _MIN_FRAMES or (
        len(frames) < _MAX_FRAMES and time.perf_counter() - start < budget_s
    ):
        with Stopwatch() as stopwatch:
            begin = time.perf_counter()
            call()
            frames.append((time.perf_counter() - begin, stopwatch.calls))
    return frames


def make_row(
    case: Case,
    counted: list[Layer],
    frames: list[tuple[float, list[Call]]],
    ceilings: Ceilings,
) -> Row:
    """Reduce the calls of all frames to one time per layer."""
    whole = summarize([seconds for seconds, _ in frames])
    rest = summarize([seconds - sum(call.seconds for call in calls) for seconds, calls in frames])
    found = {len(calls) for _, calls in frames}
    if found != {len(counted)}:
        count = " or ".join(map(str, sorted(found)))
        reason = f"expected {len(counted)} layers of norm_conv2d in a frame, found {count}"
        return Row(case, [], whole, rest, "wrong", [reason])
    times = [
        _layer_time(layer, list(calls), case.dtype, ceilings)
        for layer, *calls in zip(counted, *(calls for _, calls in frames), strict=True)
    ]
    return Row(case, times, whole, rest, "", [])


def _layer_time(layer: Layer, calls: list[Call], dtype: str, ceilings: Ceilings) -> LayerTime:
    size, seconds = calls[0].bytes, summarize([call.seconds for call in calls])
    arithmetic = ceilings.floor_seconds(dtype, 0, layer.flops)
    winograd, computed_in = None, winograd_dtype(dtype)
    if layer.winograd < 1 and computed_in is not None:
        winograd = ceilings.floor_seconds(computed_in, size, layer.winograd_flops)
    return LayerTime(
        layer,
        size,
        seconds,
        ceilings.floor_seconds(dtype, size, layer.flops),
        winograd,
        None if arithmetic is None else arithmetic / seconds.median,
    )


class LayersSuite(suite.Suite[Case, Row]):
    """The layers of our Stylizer as a suite."""

    name = "model-layers"
    quick = "the smallest size"
    all_rivals = ()
    table = Table(
        (
            ("network", 12),
            ("size", 9),
            ("type", 4),
            ("layer", 12),
            ("channels", 8),
            ("output", 9),
            ("ours", 5),
            ("±", 4),
            ("share", 5),
            ("floor", 5),
            ("wino.", 5),
            ("rate", 5),
            ("peak", 5),
            ("GB/s", 5),
        ),
        words=6,
    )
    legend = """\
ours: median milliseconds of a layer in a frame of a Stylizer, and ±, the inter-quartile range;
share: of the frame. floor: a direct convolution's multiplications at the measured peak, or the
images it reads and writes at the speed of a copy; wino.: the same with Winograd's F(4x4, 3x3) or
F(4x4, 2x2), in float32. In bfloat16 ours has tiles instead on AMX, and pairs for strided layers
with AVX512-BF16.
rate: GFLOP/s by the direct count; peak: as a share of the peak; GB/s: of those images. rest: what
of a frame is in no layer."""

    add_options = staticmethod(add_options)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.cases = select(options)
        self.left_out = notes(options)
        self.complete = False  # results are written only with --json

    def notes(self) -> list[str]:
        return self.left_out

    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        problem = Problem(case, Path())
        _, call = make("ours", problem)
        counted = layers(problem.generator.config, case.size[1], case.size[0])
        return make_row(case, counted, watch(call, self.budget_s), ceilings)

    def line(self, row: Row) -> str:
        case = row.case
        words = [case.network, f"{case.size[0]}x{case.size[1]}", SHORT[case.dtype]]
        lines = []
        for time_ in row.layers:
            layer, seconds = time_.layer, time_.seconds.median
            lines.append(
                [
                    *words,
                    layer.name,
                    f"{layer.in_channels}-{layer.out_channels}",
                    f"{layer.width}x{layer.height}",
                    number(seconds * 1e3),
                    f"{time_.seconds.spread:.0%}",
                    f"{seconds / row.frame.median:.0%}",
                    number(None if time_.floor is None else time_.floor * 1e3),
                    number(None if time_.winograd_floor is None else time_.winograd_floor * 1e3),
                    number(layer.flops / seconds / 1e9),
                    "-" if time_.share_of_peak is None else f"{time_.share_of_peak:.0%}",
                    number(time_.bytes / seconds / 1e9),
                ]
            )
        for name, found in (("rest", row.rest), ("frame", row.frame)):
            share = f"{found.median / row.frame.median:.0%}"
            times = [number(found.median * 1e3), f"{found.spread:.0%}", share]
            lines.append([*words, name, "", "", *times, *[""] * 5])
        return "\n".join(self.table.line(cells).rstrip() for cells in lines)

    def summary(self, rows: Sequence[Row]) -> str:
        failed = any(row.misses for row in rows)
        return report.summary(rows) if failed else "each layer by the median over the frames"

    def as_json(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.case.id,
            "layers": [asdict(time_) for time_ in row.layers],
            "rest": asdict(row.rest),
            "frame": asdict(row.frame),
            "misses": row.misses,
        }
