"""Means of the losses of many steps, and the step at which one was no longer finite."""

import torch
from torch import Tensor


class Means:
    """Running means of named losses. Tensors are added up without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bad: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, losses: dict[str, Tensor], step: int) -> None:
        """Add the losses of a step, scalars."""
        for name, value in losses.items():
            value = value.detach().double()
            bad = self._bad.get(name, torch.full_like(value, -1))
            here = (bad < 0) & ~torch.isfinite(value)
            self._bad[name] = torch.where(here, torch.full_like(value, step), bad)
            self._last[name] = torch.where(here, value, self._last.get(name, value))
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def first_bad(self) -> tuple[int, dict[str, float]] | None:
        """Return the first step with a loss that is NaN or infinite, and what these losses were
        there; None if all were finite."""
        steps = {name: int(step) for name, step in self._bad.items() if step >= 0}
        if not steps:
            return None
        first = min(steps.values())
        names = [name for name, step in steps.items() if step == first]
        return first, {name: self._last[name].item() for name in names}

    def take(self) -> dict[str, float]:
        """Return the means so far, and start again."""
        means = {name: (total / self._counts[name]).item() for name, total in self._sums.items()}
        self.__init__()
        return means
