"""Means of the losses of many steps."""

from torch import Tensor


class Means:
    """Running means of named losses; tensors are added up without waiting for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means so far, and start again."""
        means = {name: (total / self.count).item() for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means
