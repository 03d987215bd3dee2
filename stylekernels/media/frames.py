"""Frames of a moving picture, and what makes and takes them: files, cameras, windows, sockets."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One picture of a moving one.

    Attributes:
        rgb: (H, W, 3) uint8, RGB, upright.
        time: seconds from the beginning at which it appears.
        duration: seconds for which it is shown.
    """

    rgb: np.ndarray
    time: Fraction
    duration: Fraction


class Source(Protocol):
    """Yields frames in the order of their times.

    Anything else that it yields, such as packets of sound, is for the sink that is used with it.
    """

    def __iter__(self) -> Iterator[Frame | Any]: ...


class LiveSource(Source, Protocol):
    """A source that yields each frame when it happens. Times are those of its own clock.

    Attributes:
        problem: why there are no frames at the moment, as one line; None if there are.
    """

    problem: str | None

    def close(self) -> None:
        """End the iteration soon, also while it waits; called from any thread."""


class Sink(Protocol):
    """Takes frames, and whatever else the source yields, in the source's order."""

    def write(self, item: Frame | Any) -> None:
        """Take one item."""

    def finish(self) -> None:
        """Complete the result; called once, after the last item."""
