"""The device of a suite: its stopwatch, its limits, and how calls are made ready for timing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from benchmarks.ceilings import Ceilings
from benchmarks.timing import Clock

T = TypeVar("T")


class Device(ABC):
    """A device that cases run on.

    Attributes:
        name: as in ``--device``, in a case and in the names of results.
        place: where tensors are made.
        clock: times the calls that `ready` returns.
        budget_s, quick_budget_s: time for the rounds of a case, where ``--seconds`` says nothing.
        cached: whether tensors of a case may stay in a cache between calls, so that a plain copy
            of them runs beside the contenders, as fast as the cache lets it.
    """

    name: ClassVar[str]
    place: ClassVar[str]
    clock: Clock
    budget_s: ClassVar[float] = 3.0
    quick_budget_s: ClassVar[float] = 0.5
    cached: ClassVar[bool]

    @abstractmethod
    def hardware(self) -> str:
        """The name of the hardware, for the names of results."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The properties in a result, besides those of `machine.describe`."""

    @abstractmethod
    def heading(self, about: dict[str, Any]) -> str:
        """The machine in one line, out of its description."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Lines that say how it is measured."""

    @abstractmethod
    def ceilings(self) -> Ceilings:
        """Measure its limits."""

    @abstractmethod
    def sets(self, input_bytes: int) -> int:
        """The number of copies of inputs of this size that the calls take turns on."""

    @abstractmethod
    def ready(self, calls: Sequence[Callable[[], T]]) -> tuple[Callable[[], T], str]:
        """One call that does all of ``calls``, the same work on one set of inputs each, as fast as
        it gets, and returns the results of the first; and what to know about its times, if
        anything."""
