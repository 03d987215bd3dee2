"""The CPU as a device: a clock, and limits measured with all of PyTorch's threads."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from benchmarks import machine
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.device import Device
from benchmarks.timing import Clock

T = TypeVar("T")


class Cpu(Device):
    """The CPU, with as many threads as PyTorch has."""

    name = "cpu"
    torch_device = "cpu"
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
