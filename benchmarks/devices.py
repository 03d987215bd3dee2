"""What a suite runs on: its stopwatch, its limits, and how calls are made ready for timing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from benchmarks import machine
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.timing import Clock

T = TypeVar("T")


class Device(ABC):
    """One of ``--device``.

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
        """The name it gives itself, for the names of results."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a result says about it, besides `machine.describe`."""

    @abstractmethod
    def heading(self, about: dict[str, Any]) -> str:
        """The machine in one line, out of its description."""

    @abstractmethod
    def notes(self) -> list[str]:
        """How is measured, in lines."""

    @abstractmethod
    def ceilings(self) -> Ceilings:
        """Measure what it can do at best."""

    @abstractmethod
    def sets(self, input_bytes: int) -> int:
        """How many copies of inputs of this size the calls shall take turns on."""

    @abstractmethod
    def ready(self, calls: Sequence[Callable[[], T]]) -> tuple[Callable[[], T], str]:
        """One call that does all of ``calls``, the same work on one set of inputs each, as fast as
        it gets, and returns the results of the first; and what to know about its times, if
        anything."""


class Cpu(Device):
    """The CPU, with as many threads as PyTorch has."""

    name = "cpu"
    place = "cpu"
    cached = True

    def __init__(self) -> None:
        self.clock = Clock()

    def hardware(self) -> str:
        return machine.cpu_name()

    def describe(self) -> dict[str, Any]:
        return {}

    def heading(self, about: dict[str, Any]) -> str:
        return (
            f"{about['cpu']}, {about['threads']} of {about['cores']} cores, {about['capability']}"
        )

    def notes(self) -> list[str]:
        return []

    def ceilings(self) -> Ceilings:
        return measure_ceilings(torch.get_num_threads())

    def sets(self, input_bytes: int) -> int:
        return 1

    def ready(self, calls: Sequence[Callable[[], T]]) -> tuple[Callable[[], T], str]:
        (call,) = calls
        return call, ""


def open_device(name: str) -> Device:
    """The device of this name.

    Raises:
        ValueError: it isn't there.
    """
    if name == "cpu":
        return Cpu()
    from benchmarks.cuda import Cuda

    return Cuda()
