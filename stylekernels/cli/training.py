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
        groups: the settings under each heading of the help text, which calls them "... options".
        positional: names, in the command, of settings that are no options.
    """

    train: str
    noun: str
    memory: str
    then: str
    groups: Mapping[str, tuple[str, ...]]
    positional: Mapping[str, str] = field(default_factory=dict)


#: Headings that the verbs share.
_OPTIMISER = ("batch_size", "accumulate", "learning_rate", "ema", "seed")
_RUN = ("run", "resume", "overwrite", "log_every", "checkpoint_every")
_HARDWARE = ("device", "precision", "threads", "workers")

TRAIN = Verb(
    train="train",
    noun="style",
    memory="--batch-size {config.batch_size} and --crop {config.crop} need more memory than "
    "there is; lower one of them, or --stroke",
    then="stylekernels stylize PHOTO --style {}",
    groups={
        "main": ("art", "photos", "output", "steps", "minutes"),
        "run folder": (*_RUN, "preview"),
        "painting": ("stroke", "grain", "multi_style"),
        "photo": ("crop", "flat", "held_out"),
        "start": ("init", "lite", "upsample", "warmup_steps"),
        "loss": (
            *("features", "backbones", "content_weight", "style_weight", "color_weight"),
            *("art_colors", "tv_weight", "noise_weight"),
        ),
        "discriminator": ("gan_weight", "gan_loss", "gan_start", "gan_rate"),
        "optimiser": _OPTIMISER,
        "hardware": _HARDWARE,
    },
)
TRAIN_DCGAN = Verb(
    train="train_dcgan",
    noun="generator",
    memory="--batch-size {config.batch_size} needs more memory than there is; lower it, with "
    "--accumulate for as many passes more",
    then="stylekernels generate {}",
    groups={
        "main": ("photos", "output", "steps", "minutes"),
        "run folder": _RUN,
        "label and code": ("conditional", "categories", "continuous", "info_weight", "noise"),
        "discriminator": ("gan_loss", "discriminator_rate", "augment", "r1"),
        "optimiser": _OPTIMISER,
        "hardware": _HARDWARE,
    },
    positional={"photos": "FOLDER"},
)


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
