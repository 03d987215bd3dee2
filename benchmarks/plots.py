"""Plots of results, one set per machine: speedups with shares of the floor, and a roofline."""

from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.kept_results import Machine, Row

# Wong's palette, which colour-blind readers can tell apart. Nature Methods 8, 441 (2011).
_COLORS = {"float32": "#0072B2", "bfloat16": "#D55E00", "float16": "#009E73", "float64": "#CC79A7"}
_MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^", "float64": "D"}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


def draw(machine: Machine, folder: Path) -> list[Path]:
    """Draw the plots of a machine as PNG files into an existing folder, and return them."""
    with mpl.rc_context(_STYLE):
        figures = {"speedups": _speedups(machine), "roofline": _roofline(machine)}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{machine.name}-{name}.png"
            figure.savefig(path, dpi=150)
            paths.append(path)
    return paths


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows by their label, the first group last: axes count upwards."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return dict(reversed(groups.items()))


def _dots(axes: Axes, groups: dict[str, list[Row]], value) -> None:
    """Draw a dot for each row, side by side within a group."""
    for position, rows in enumerate(groups.values()):
        kept = [row for row in rows if value(row) is not None]
        offsets = np.linspace(0.3, -0.3, len(kept)) if len(kept) > 1 else [0.0]
        for row, offset in zip(kept, offsets, strict=True):
            axes.plot(
                value(row),
                position + offset,
                _MARKERS[row.dtype],
                color=_COLORS[row.dtype],
                markersize=3.5,
                markeredgewidth=0.7,
                markerfacecolor="white" if row.verdict == "loss" else _COLORS[row.dtype],
            )
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.grid(axis="y", visible=False)
    for edge in range(1, len(groups)):
        axes.axhline(edge - 0.5, color="#e6e6e6", linewidth=0.8)


def _legend(figure: Figure, rows: list[Row]) -> None:
    handles = [
        mpl.lines.Line2D([], [], color=_COLORS[dtype], marker=_MARKERS[dtype], ls="", label=dtype)
        for dtype in _COLORS
        if any(row.dtype == dtype for row in rows)
    ]
    if any(row.verdict == "loss" for row in rows):
        loss = mpl.lines.Line2D([], [], color="#555555", marker="o", mfc="white", ls="")
        loss.set_label("loss")
        handles.append(loss)
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)


def _speedups(machine: Machine) -> Figure:
    rows = list(machine.rows.values())
    groups = _groups(rows)
    figure = Figure(figsize=(9, 1.3 + 0.55 * len(groups)), layout="constrained")
    figure.suptitle(machine.title, x=0.01, ha="left", fontsize=10)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _dots(left, groups, lambda row: row.speedup["median"] if row.speedup else None)
    left.set_xscale("log", base=2)
    least, most = left.get_xlim()
    left.set_xlim(min(least, 0.71), max(most, 2.83))
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    left.axvline(1, color="#555555", linewidth=1)
    left.set_xlabel("times as fast as the best rival")
    left.set_yticks(range(len(groups)), list(groups))
    _dots(right, groups, lambda row: row.share and 100 * row.share)
    right.axvline(100, color="#555555", linewidth=1)
    right.set_xlim(0, max(105, right.get_xlim()[1]))
    right.tick_params(axis="y", length=0)
    right.set_xlabel("% of the floor's speed")
    _legend(figure, rows)
    return figure


def _roofline(machine: Machine) -> Figure | None:
    """Williams, Waterman and Patterson, "Roofline", 2009. None without rows that multiply."""
    rows = [row for row in machine.rows.values() if row.flops and row.seconds]
    if not rows:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(f"Roofline, {machine.title}", x=0.01, ha="left", fontsize=10)
    axes = figure.subplots()
    intensities = [row.flops / row.bytes for row in rows]
    peaks = machine.ceilings["flops_per_s"]
    bandwidth = machine.ceilings["copy_bytes_per_s"]
    ends = np.geomspace(min(intensities) / 2, max(intensities) * 2, 200)
    for dtype in _COLORS:
        if dtype in peaks and any(row.dtype == dtype for row in rows):
            roof = np.minimum(ends * bandwidth, peaks[dtype]) / 1e9
            axes.plot(ends, roof, color=_COLORS[dtype], linewidth=1.2)
    for row, intensity in zip(rows, intensities, strict=True):
        axes.plot(
            intensity,
            row.flops / row.seconds / 1e9,
            _MARKERS[row.dtype],
            color=_COLORS[row.dtype],
            markersize=4,
            markeredgewidth=0.7,
            markerfacecolor="white" if row.verdict == "loss" else _COLORS[row.dtype],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("multiplications and additions of a direct product, per byte that must move")
    axes.set_ylabel("GFLOP/s")
    _legend(figure, rows)
    return figure
