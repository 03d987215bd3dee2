"""Measurements of a part of a run of live pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        fps: pictures shown a second.
        latency: seconds from capture to display, the median; None of a video.
        memory: bytes of resident memory at its end; None where the system does not tell.
    """

    fps: float
    latency: float | None
    memory: int | None


def parts_of(
    times: Sequence[float], late: Sequence[float], memory: Sequence[int | None]
) -> list[Part]:
    """Return the tenths of a run.

    Args:
        times: when each picture was shown, in seconds.
        late: its latency, in seconds.
        memory: bytes of resident memory then; None where the system does not tell.
    """
    tenth = len(times) // 10

    def part(first: int) -> Part:
        last = first + tenth - 1
        fps = (last - first) / (times[last] - times[first])
        return Part(fps, float(np.median(late[first : last + 1])), memory[last])

    return [part(first) for first in range(0, 10 * tenth, tenth)]


def resident(process: int | str = "self") -> int | None:
    """Return the bytes of resident memory of a process; None where the system does not tell."""
    statm = Path(f"/proc/{process}/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
