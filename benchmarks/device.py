"""The device of a suite: its clock, its limits, and preparation of calls for timing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from benchmarks.ceilings import Ceilings
from benchmarks.timing import Clock

T = TypeVar("T")


class Device(ABC):
    """A device that cases run on.

    Attributes:
        name: name in ``--device``, in cases and in the names of results.
        torch_device: torch device of the tensors.
        clock: times the calls that `ready` returns.
        budget_s, quick_budget_s: time for the rounds of a case, by default.
        cached: whether the tensors of a case may stay in a cache between calls. If so, a plain copy
            of them is timed with the contenders, and profits from the cache as they do.
    """

    name: ClassVar[str]
    torch_device: ClassVar[str]
    clock: Clock
    budget_s: ClassVar[float] = 3.0
    quick_budget_s: ClassVar[float] = 0.5
    cached: ClassVar[bool]

    @abstractmethod
    def hardware(self) -> str:
        """Return the name of the hardware for the names of results."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the properties that a result records besides those of `machine.describe`."""

    @abstractmethod
    def heading(self, about: dict[str, Any]) -> str:
        """Return one line about the machine from its description."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Return lines about the method of measuring."""

    @abstractmethod
    def ceilings(self) -> Ceilings:
        """Measure the limits of the device."""

    @abstractmethod
    def sets(self, input_bytes: int) -> int:
        """Return the number of copies of inputs of this size that calls rotate over."""

    @abstractmethod
    def ready(self, calls: Sequence[Callable[[], T]]) -> tuple[Callable[[], T], str]:
        """Combine ``calls``, the same work on one set of inputs each, into one fast call.

        Returns the call, which returns the results of the first of ``calls``, and a note about its
        times or "".
        """
