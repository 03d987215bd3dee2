"""The command line: a verb, such as ``stylekernels stylize``, and its options.

Every verb is a dataclass that tyro turns into options. PyTorch is imported when a verb begins to
work, so that help and refusals appear at once. Exit codes: 0 done, 1 an internal error, 2 something
was refused (one line on stderr says what), 130 interrupted by Ctrl-C, SIGTERM or SIGHUP, 141 the
reader of the output has gone.
"""

import contextlib
import errno
import functools
import operator
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import tyro

import stylekernels
from stylekernels.cli import training
from stylekernels.cli.demo import Demo
from stylekernels.cli.evaluate import Evaluate
from stylekernels.cli.export import Export
from stylekernels.cli.generate import Generate
from stylekernels.cli.info import Info
from stylekernels.cli.options import Grouped, described
from stylekernels.cli.serve import Serve
from stylekernels.cli.stylize import Stylize
from stylekernels.cli.terminal import (
    DONE,
    FAILED,
    INTERRUPTED,
    READER_LEFT,
    REFUSED,
    Refused,
    complain,
    say,
)
from stylekernels.cli.video import Video
from stylekernels.cli.webcam import Webcam
from stylekernels.signals import handled
from stylekernels.training.config import TrainConfig
from stylekernels.training.dcgan_config import DcganConfig

_TRAINING = {TrainConfig: training.TRAIN, DcganConfig: training.TRAIN_DCGAN}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        say(f"stylekernels {stylekernels.__version__}")
        return DONE
    argv, debug = _take_debug(argv)
    try:
        # SIGTERM and SIGHUP raise KeyboardInterrupt too, so that temporary files are removed.
        with handled(signal.default_int_handler):
            command = parse(argv)
            _check_environment()
            code = run(command)
            sys.stdout.flush()
            return code
    except Refused as error:
        complain(str(error))
        return REFUSED
    except KeyboardInterrupt as stop:
        complain(" ".join(("interrupted", *map(str, stop.args))))
        return INTERRUPTED
    except SystemExit as stop:  # raised by tyro after help (0) or an error message (2)
        return stop.code if isinstance(stop.code, int) else REFUSED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            # The reader of the output, such as `head` or a terminal, has gone. Python flushes
            # again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return READER_LEFT
        if debug:
            raise
        complain(
            f"an error of the program's own, {type(error).__name__}: {error}; "
            "the option --debug shows where it happened"
        )
        return FAILED


def run(command: Any) -> int:
    """Run a parsed verb and return the exit code."""
    for config, verb in _TRAINING.items():
        if isinstance(command, config):
            return training.run(command, verb)
    return command.run()


def _take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """Remove ``--debug``, which every verb has, from the arguments. Return the rest, and whether it
    was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return options + argv[end:], len(options) < end


def _check_environment() -> None:
    """Refuse an unavailable implementation or capability that the environment asks for. PyTorch,
    whose import takes seconds, is imported only if it asks for one."""
    if {"STYLEKERNELS_IMPL", "STYLEKERNELS_CPU_CAPABILITY"} & os.environ.keys():
        try:
            import stylekernels.ops.dispatch  # noqa: F401
        except (ValueError, RuntimeError) as error:
            raise Refused(str(error)) from None


def parse(argv: Sequence[str]) -> Any:
    """Return the verb of a command with its options.

    Raises:
        SystemExit: after help (0) or an error message (2) was printed.
    """
    verbs = {
        "demo": (Demo, "Paint a well-known photo in the bundled styles, on one sheet."),
        "stylize": (Stylize, "Paint photos in a style."),
        "video": (Video, "Paint a video in a style, with its sound."),
        "webcam": (Webcam, "Paint a camera live, in a window or as a virtual camera."),
        "serve": (Serve, "Paint the camera, photos and videos in a page of the browser."),
        "export": (Export, "Write a style for other programs, or as a web page."),
        "train": (TrainConfig, "Train a new style from a painting and a folder of photos."),
        "evaluate": (Evaluate, "Measure a style: losses, likeness to the photo, stability."),
        "train-dcgan": (DcganConfig, "Train a network that makes pictures like those of a folder."),
        "generate": (Generate, "Draw pictures with a network that train-dcgan trained."),
        "info": (Info, "Show versions, hardware, bundled styles, and which kernels run and why."),
    }
    groups = {config: verb.groups for config, verb in _TRAINING.items()}
    subcommands = [
        Annotated[described(verb, groups.get(verb)), tyro.conf.subcommand(name, description=text)]
        for name, (verb, text) in verbs.items()
    ]
    # tyro names all verbs in one line of the usage, longer than a terminal is wide.
    usage = "{" + ",".join(verbs) + "}"
    with contextlib.redirect_stdout(_Replacing(sys.stdout, usage, "VERB ...")):
        command = tyro.cli(
            functools.reduce(operator.or_, subcommands),
            prog="stylekernels",
            description="Fused kernels for neural style networks: paint photos, train new styles.\n"
            "`stylekernels --version` prints the version.\n"
            "`--debug` after a verb shows the traceback of an error of the program's own.",
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return command.ungrouped() if isinstance(command, Grouped) else command


class _Replacing:
    """A stream that replaces one text by another, and else is the given stream."""

    def __init__(self, stream: TextIO, old: str, new: str) -> None:
        self._stream, self._old, self._new = stream, old, new

    def write(self, text: str) -> int:
        return self._stream.write(text.replace(self._old, self._new))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
