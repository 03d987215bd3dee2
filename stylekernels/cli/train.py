"""``stylekernels train``: a new style from a painting and a folder of photos."""

import os

from stylekernels.cli.options import with_options
from stylekernels.cli.styles import check_kernels
from stylekernels.cli.terminal import (
    DONE,
    INTERRUPTED,
    Refused,
    complain,
    plural,
    refusing,
    say,
)
from stylekernels.training.config import TrainConfig
from stylekernels.training.errors import DivergedError, SettingError


def run(config: TrainConfig) -> int:
    """Train, print the results and return the exit code."""
    try:
        config.check()
        from stylekernels.hardware import find_device, keep_freed_memory, memory_ran_out
        from stylekernels.training import train

        with refusing("--"):
            device = find_device(config.device)
        check_kernels(device.type)
        keep_freed_memory()
        result = train(config)
    except (SettingError, DivergedError, OSError) as error:
        raise Refused(with_options(str(error), config)) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise Refused(
            f"--batch-size {config.batch_size} and --crop {config.crop} need more memory than "
            "there is; lower one of them, or --stroke"
        ) from error
    if int(os.environ.get("RANK", "0")):  # of torchrun: the first process speaks for all
        return INTERRUPTED if result.interrupted else DONE
    if result.skipped:
        count = len(result.skipped)
        say(f"{count} {plural('file', count)} among the photos could not be read")
    held_out = " ".join(
        f"{name} {value:.3f}" for name, value in result.held_out.items() if "/" not in name
    )
    say(f"photos held out: {held_out}")
    if result.interrupted:
        complain(
            f"interrupted after {result.steps} of {config.steps} steps; the style so far is in "
            f"{result.output}, add --resume to go on"
        )
        return INTERRUPTED
    say(
        f"{result.output}: trained {result.steps} steps, {result.seconds / 60:.1f} minutes in all; "
        f"log and samples are in {result.run}; try stylekernels stylize PHOTO --style "
        f"{result.output}"
    )
    return DONE
