"""Training on the command line: what ``train`` and ``train-dcgan`` share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stylekernels.cli.options import with_options
from stylekernels.cli.styles import check_kernels
from stylekernels.cli.terminal import DONE, INTERRUPTED, Refused, complain, plural, refusing, say
from stylekernels.training.errors import DivergedError, SettingError

if TYPE_CHECKING:
    from stylekernels.training.config import RunConfig


@dataclass(frozen=True)
class Verb:
    """Differences between the verbs.

    Attributes:
        train: name of the function in `stylekernels.training`.
        noun: what is trained.
        memory: what to lower where memory runs out; ``{config}`` is filled in.
        then: a command to try with the output, which ``{}`` stands for.
        positional: names, in the command, of settings that are no options.
    """

    train: str
    noun: str
    memory: str
    then: str
    positional: Mapping[str, str] = field(default_factory=dict)


def run(config: "RunConfig", verb: Verb) -> int:
    """Train, print the results and return the exit code."""
    try:
        config.check()
        from stylekernels import training
        from stylekernels.hardware import find_device, keep_freed_memory, memory_ran_out

        with refusing("--"):
            device = find_device(config.device)
        check_kernels(device.type)
        keep_freed_memory()
        result = getattr(training, verb.train)(config)
    except (SettingError, DivergedError, OSError) as error:
        raise Refused(with_options(str(error), config, verb.positional)) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise Refused(verb.memory.format(config=config)) from error
    if int(os.environ.get("RANK", "0")):  # rank 0 prints for all processes of torchrun
        return INTERRUPTED if result.interrupted else DONE
    if result.skipped:
        count = len(result.skipped)
        say(f"{count} {plural('file', count)} among the photos left out")
    label, losses = "photos held out", result.held_out
    if not losses:
        label, losses = "last steps", result.losses
    values = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if "/" not in name)
    say(f"{label}: {values}")
    if result.interrupted:
        complain(
            f"interrupted after {result.steps} of {config.steps} steps; the {verb.noun} so far is "
            f"in {result.output}, add --resume to go on"
        )
        return INTERRUPTED
    steps = f"{result.steps} {plural('step', result.steps)}"
    say(
        f"{result.output}: trained {steps}, {result.seconds / 60:.1f} minutes in all; "
        f"log and samples are in {result.run}; try {verb.then.format(config.weights)}"
    )
    return DONE
