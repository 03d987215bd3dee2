"""``stylekernels train-dcgan``: an image generator from a folder of photos."""

import os

from stylekernels.cli.options import with_options
from stylekernels.cli.styles import check_kernels
from stylekernels.cli.terminal import DONE, INTERRUPTED, Refused, complain, plural, refusing, say
from stylekernels.training.dcgan_config import DcganConfig
from stylekernels.training.errors import DivergedError, SettingError


def run(config: DcganConfig) -> int:
    """Train, print the results and return the exit code."""
    try:
        config.check()
        from stylekernels.hardware import find_device, keep_freed_memory, memory_ran_out
        from stylekernels.training.dcgan import train_dcgan

        with refusing("--"):
            device = find_device(config.device)
        check_kernels(device.type)
        keep_freed_memory()
        result = train_dcgan(config)
    except (SettingError, DivergedError, OSError) as error:
        raise Refused(with_options(str(error), config, {"photos": "FOLDER"})) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise Refused(
            f"--batch-size {config.batch_size} needs more memory than there is; lower it, with "
            "--accumulate for as many passes more"
        ) from error
    if int(os.environ.get("RANK", "0")):  # of torchrun: the first process speaks for all
        return INTERRUPTED if result.interrupted else DONE
    if result.skipped:
        count = len(result.skipped)
        say(f"{count} {plural('file', count)} among the photos left out")
    say(" ".join(f"{name} {value:.3f}" for name, value in result.losses.items()))
    if result.interrupted:
        complain(
            f"interrupted after {result.steps} of {config.steps} steps; the generator so far is in "
            f"{result.output}"
        )
        return INTERRUPTED
    say(
        f"{result.output}: trained {result.steps} steps, {result.seconds / 60:.1f} minutes in all; "
        f"try stylekernels generate {result.output}"
    )
    return DONE
