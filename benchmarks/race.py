"""The contenders of a case, and the comparison of ours with the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Summary, paired_ratio, summarize

#: A ratio within this of 1 is noise.
NOISE = 0.05

#: Contenders that ours is not judged by: what it is combined with a rival, and a plain copy.
_NO_RIVALS = ("ours", "both", "copy")

_SMALLEST_SHARE = 1e-4


@dataclass
class Entry:
    """A contender of a case: its call, or the reason why it cannot run, and a note about its
    times."""

    name: str
    expression: str
    call: Callable[[], Any] | None
    error: str | None = None
    note: str = ""


def refusal(error_of_answer: Callable[[], float], allowed: float) -> str | None:
    """Return why a contender is refused: it fails, or its answer is wrong. None if it may run.

    Args:
        error_of_answer: calls the contender once and returns the error of its answer.
        allowed: the largest error of a right answer. NaN is wrong.
    """
    try:
        error = error_of_answer()
    except Exception as exception:  # a contender that fails is a result, not an error
        return failure(exception)
    if error <= allowed:
        return None
    return f"wrong: relative error {error:.2g}, allowed {allowed:.2g}"


def gradient_errors(found: Sequence[Tensor], right: Sequence[Tensor]) -> list[float]:
    """Return the errors of gradients, each as a share of the right gradient's norm.

    A gradient with a norm below 1e-4 of that of all together counts as if it had that norm: some
    are only rounding errors, for the next norm cancels the effect of their weights. NaN stays NaN.
    """
    least = _SMALLEST_SHARE * torch.stack([gradient.norm() for gradient in right]).norm()
    pairs = zip(found, right, strict=True)
    return [((a - b).norm() / b.norm().clamp_min(least)).item() for a, b in pairs]


def failure(exception: Exception) -> str:
    """Return the exception as one line."""
    return f"{type(exception).__name__}: {str(exception).partition(chr(10))[0]}"


@dataclass(frozen=True)
class Race:
    """The contenders of a case and their times. It holds only numbers and names, for tensors are
    large.

    Attributes:
        expressions: the code that each contender ran.
        refused: the reason why a contender did not run.
        notes: notes about a contender's times.
        seconds: seconds per call of ours, the rivals and, if it was timed, a plain copy.
        speedups: speed of ours over each rival, from the ratios of each round.
    """

    expressions: dict[str, str]
    refused: dict[str, str]
    notes: dict[str, str]
    seconds: dict[str, Summary]
    speedups: dict[str, Summary]

    @classmethod
    def of(cls, entries: Sequence[Entry], samples: Mapping[str, Sequence[float]]) -> "Race":
        """Reduce samples, one number per round and contender."""
        speedups = {}
        if "ours" in samples:
            speedups = {
                name: paired_ratio(values, samples["ours"])
                for name, values in samples.items()
                if name not in _NO_RIVALS
            }
        return cls(
            {entry.name: entry.expression for entry in entries},
            {entry.name: entry.error for entry in entries if entry.error is not None},
            {entry.name: entry.note for entry in entries if entry.note},
            {name: summarize(values) for name, values in samples.items()},
            speedups,
        )

    def median(self, name: str) -> float | None:
        """Return the seconds per call of a contender; None if it did not run."""
        return self.seconds[name].median if name in self.seconds else None

    def speedup(self, name: str | None) -> float | None:
        """Return the speed of ours over a rival; None if it did not run."""
        return self.speedups[name].median if name in self.speedups else None

    @property
    def best_rival(self) -> str | None:
        """The fastest rival that ran."""
        medians = {name: self.seconds[name].median for name in self.speedups}
        return min(medians, key=medians.__getitem__) if medians else None

    def judge(self, short: Sequence[str] = ()) -> tuple[str, list[str]]:
        """Return the verdict (win, even, short, loss, alone or wrong), and the reasons why it is no
        win.

        Args:
            short: targets that were missed, in words.
        """
        misses = []
        for name, error in self.refused.items():
            expression = self.expressions[name]  # empty if nothing ran
            misses.append(f"{name} ({expression}): {error}" if expression else f"{name}: {error}")
        if "ours" not in self.seconds:
            return "wrong", misses
        slower = {name: ratio for name, ratio in self.speedups.items() if ratio.median < 1 - NOISE}
        misses += [
            f"{name} is {1 / ratio.median:.2f} times faster" for name, ratio in slower.items()
        ]
        best = "win" if self.speedups else "alone"  # there was no rival to beat
        even = any(ratio.median < 1 + NOISE for ratio in self.speedups.values())
        verdict = "loss" if slower else "short" if short else "even" if even else best
        return verdict, [*misses, *short]

    def as_json(self) -> dict[str, Any]:
        """Return the race as plain values, for ``json.dump``."""
        best = self.best_rival
        return {
            "expressions": self.expressions,
            "refused": self.refused,
            "notes": self.notes,
            "seconds": {name: asdict(seconds) for name, seconds in self.seconds.items()},
            "speedups": {name: asdict(ratio) for name, ratio in self.speedups.items()},
            "best_rival": best,
            "speedup_over_best": asdict(self.speedups[best]) if best else None,
        }
