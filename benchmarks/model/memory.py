"""The memory that a frame takes: ``python -m benchmarks model --memory``."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import suite
from benchmarks.ceilings import Ceilings
from benchmarks.dtypes import SHORT, notes
from benchmarks.model.cases import Case
from benchmarks.model.options import add_options, select
from benchmarks.race import NOISE
from benchmarks.report import Table, number

_ROOT = Path(__file__).resolve().parents[2]
_RIVALS = ("eager", "eager-nhwc")  # a compiler's own memory would hide the frame's


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process, in bytes.

    Attributes:
        peak: the most during the frame, including Python and PyTorch.
        before: memory with the network and the picture, before the frame.
    """

    peak: int
    before: int

    @property
    def of_frame(self) -> int:
        """The memory that the frame added."""
        return self.peak - self.before


@dataclass(frozen=True)
class Row:
    """A measured case: memory by contender, and failures."""

    case: Case
    memory: dict[str, Memory]
    verdict: str
    misses: list[str]

    def ratio(self, rival: str) -> float | None:
        """A rival's memory for the frame over ours; above 1 ours takes less."""
        if rival not in self.memory or "ours" not in self.memory:
            return None
        return self.memory[rival].of_frame / max(1, self.memory["ours"].of_frame)


class MemorySuite(suite.Suite[Case, Row]):
    """One frame in a fresh process, for ours and for eager PyTorch."""

    name = "model-memory"
    quick = "the smallest size"
    all_rivals = _RIVALS
    table = Table(
        (
            ("network", 12),
            ("size", 9),
            ("type", 4),
            ("ours", 6),
            ("eager", 6),
            ("NHWC", 6),
            ("ours+", 6),
            ("eager+", 6),
            ("NHWC+", 6),
            ("/eager", 6),
            ("/NHWC", 6),
            ("verdict", 7),
        ),
        words=3,
    )
    legend = """\
Peak resident memory in MiB of a fresh process that stylises one frame: ours, eager PyTorch, and
NHWC, eager in channels_last; with + what the frame added to what Python, PyTorch, the network and
the picture take. /eager and /NHWC: theirs over ours of the latter, above 1 ours takes less. win:
less than both; even: within 5 %; loss: more; alone: neither ran; wrong: ours failed."""

    add_options = staticmethod(add_options)

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.cases = select(options)
        self.left_out = notes(options)
        self.complete = False  # results are written only with --json

    def notes(self) -> list[str]:
        return self.left_out

    def measure(self, case: Case, ceilings: Ceilings) -> Row:
        memory, misses = {}, []
        for name in ("ours", *self.rivals):
            found = measure_memory(name, case)
            if isinstance(found, Memory):
                memory[name] = found
            else:
                misses.append(f"{name}: {found}")
        return judge(case, memory, misses)

    def line(self, row: Row) -> str:
        contenders = ("ours", *_RIVALS)
        found = [row.memory.get(name) for name in contenders]
        return self.table.line(
            [
                row.case.network,
                f"{row.case.size[0]}x{row.case.size[1]}",
                SHORT[row.case.dtype],
                *("-" if one is None else f"{one.peak / 2**20:.0f}" for one in found),
                *("-" if one is None else f"{one.of_frame / 2**20:.0f}" for one in found),
                *(number(row.ratio(name)) for name in _RIVALS),
                row.verdict,
            ]
        )

    def as_json(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.case.id,
            "peak_bytes": {name: found.peak for name, found in row.memory.items()},
            "frame_bytes": {name: found.of_frame for name, found in row.memory.items()},
            "verdict": row.verdict,
            "misses": row.misses,
        }


def measure_memory(contender: str, case: Case) -> Memory | str:
    """Run one frame in a new process. Return its memory, or one line about the failure."""
    size = f"{case.size[0]}x{case.size[1]}"
    arguments = [contender, case.network, size, case.dtype, str(torch.get_num_threads())]
    # With glibc's defaults, which return memory to the system. The benchmark's own settings keep
    # it.
    environment = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.model.one_frame", *arguments],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [""]
        return f"exit status {done.returncode}: {reason[-1]}"
    return Memory(**json.loads(done.stdout))


def judge(case: Case, memory: dict[str, Memory], misses: list[str]) -> Row:
    """Return the row of a case, with its verdict."""
    row = Row(case, memory, "wrong", misses)
    if "ours" not in memory:
        return row
    ratios = {name: row.ratio(name) for name in memory if name != "ours"}
    more = {name: ratio for name, ratio in ratios.items() if ratio < 1 - NOISE}
    even = any(ratio < 1 + NOISE for ratio in ratios.values())
    misses = [*misses, *(f"{name} takes {ratio:.2f} of ours" for name, ratio in more.items())]
    best = "win" if ratios else "alone"
    return Row(case, memory, "loss" if more else "even" if even else best, misses)
