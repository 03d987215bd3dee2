"""Interleaved timing: every round runs each contender once, and ratios are taken within a round.

A machine's speed drifts by tens of percent over a minute (other processes, clocks, temperature).
Contenders that are timed one after another see different speeds. Those of one round see the same
speed, so the ratios of a round are steady even if times are not.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Pause before each sample, so that the threads of the previous contender stop spinning.
PAUSE_S = 0.030
#: The least duration of a sample: short calls are repeated.
SAMPLE_S = 0.002
#: Calls shorter than this follow an untimed one, because threads sleep after the pause.
SHORT_CALL_S = 0.005
#: The most time for a first estimate of a call's duration.
GLANCE_S = 0.2
#: Rounds end when the standard error of every median ratio is below this share of it.
SETTLED = 0.01

Call = Callable[[], object]


@dataclass(frozen=True)
class Clock:
    """The way to time calls. Tests replace the clock, and a GPU has its own.

    Attributes:
        now, sleep: as in the module ``time``.
        pause_s: pause before each sample.
    """

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    pause_s: float = PAUSE_S

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """Return the seconds per call of ``repeats`` consecutive calls."""
        start = self.now()
        for _ in range(repeats):
            call()
        return (self.now() - start) / repeats


@dataclass(frozen=True)
class Summary:
    """Median and quartiles over a number of rounds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @property
    def spread(self) -> float:
        """The inter-quartile range as a share of the median."""
        return (self.q3 - self.q1) / self.median


def summarize(values: Sequence[float]) -> Summary:
    """Return median and quartiles of ``values``, at least one."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, q1, q3, len(values))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Summary:
    """Return median and quartiles of the ratios of each round. Both must be of the same rounds."""
    return summarize([a / b for a, b in zip(numerator, denominator, strict=True)])


def _glance(call: Call, clock: Clock) -> float:
    """Estimate the duration of a call: the best of three, or of fewer if they are long."""
    times = [clock.seconds(call)]
    while len(times) < 3 and sum(times) < GLANCE_S:
        times.append(clock.seconds(call))
    return min(times)


def fastest(candidates: Mapping[str, Call], *, clock: Clock | None = None) -> str:
    """Return the name of the candidate that seems fastest. Each has been called before."""
    if len(candidates) == 1:
        return next(iter(candidates))
    times = {name: _glance(call, clock or Clock()) for name, call in candidates.items()}
    return min(times, key=times.__getitem__)


def _settled(samples: Mapping[str, list[float]]) -> bool:
    first, *others = samples.values()
    for other in others:
        ratio = paired_ratio(other, first)
        # The standard error of a median is 1.25 sigma / sqrt(n), and sigma is 0.74 of the range.
        if 0.93 * ratio.spread / math.sqrt(ratio.rounds) > SETTLED:
            return False
    return True


def measure(
    contenders: Mapping[str, Call],
    *,
    budget_s: float,
    min_rounds: int = 5,
    max_rounds: int = 100,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Time contenders against each other.

    Args:
        contenders: calls by name, each called before. Ratios to the first one decide when there
            were enough rounds.
        budget_s: no round starts later than this, once there are ``min_rounds``.
        min_rounds, max_rounds: bounds on the number of rounds.
        clock: the way to time calls.

    Returns:
        Seconds per call: for each contender one number per round, in the order of the rounds.
    """
    clock = clock or Clock()
    repeats, wake = {}, {}
    for name, call in contenders.items():
        seconds = _glance(call, clock)
        repeats[name] = max(1, math.ceil(SAMPLE_S / max(seconds, 1e-7)))
        wake[name] = seconds < SHORT_CALL_S
    order, shuffle = list(contenders), random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in order}
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = clock.now()
        for done in range(max_rounds):
            if done >= min_rounds and (clock.now() - start > budget_s or _settled(samples)):
                break
            shuffle(order)  # so that the neighbours of a contender change
            for name in order:
                clock.sleep(clock.pause_s)
                if wake[name]:
                    contenders[name]()
                samples[name].append(clock.seconds(contenders[name], repeats[name]))
            gc.collect(0)
    finally:
        if was_enabled:
            gc.enable()
    return samples
