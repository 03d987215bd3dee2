"""A fault put into CUDA kernels on purpose, and kernels that have some."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A text of a file of csrc/cuda, which occurs there once, and what replaces it.

    Attributes:
        check: what finds the fault, of `Kernels.checks`.
        limits: the GPUs on which it does, of `Kernels.limits`; all of them if empty.
        seen: the share of orders of threads that must show it.
        message: a pattern of the error that must show it; else a wrong result may.
    """

    file: str
    old: str
    new: str
    check: str
    limits: tuple[str, ...] = ()
    seen: float = 1.0
    message: str = ""


def by_kind(kinds: Mapping[str, Mapping[str, Fault]]) -> dict[str, Fault]:
    """Return the faults of all kinds, with the kind before each name."""
    return {
        f"{kind}, {name}": fault for kind, faults in kinds.items() for name, fault in faults.items()
    }


@dataclass(frozen=True)
class Kernels:
    """Kernels that get faults, one at a time.

    Attributes:
        source: the file of csrc/cuda that has their launches. It is compiled for each fault.
        limits: the emulated GPUs, as environment variables without their prefix.
        checks: functions that raise an error if something is wrong.
        faults: by name.
        fewer_types: texts of the source and their replacements, which leave out types that no
            check needs: kernels of fewer types take less time to compile.
        needs: files of csrc/cuda that the source is linked to, compiled once. None of them may
            include a file that gets a fault.
    """

    source: str
    limits: Mapping[str, Mapping[str, int]]
    checks: Mapping[str, Callable[[], None]]
    faults: Mapping[str, Fault]
    fewer_types: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
