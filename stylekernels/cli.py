"""The command line: ``stylekernels demo | stylize | train | info``.

Every verb is a dataclass that tyro turns into options; PyTorch is imported when a verb is about to
work, so that help and refused arguments come at once. Exit codes: 0 done, 1 an error of the
program's own, 2 something was refused (one line on stderr says what), 130 interrupted by Ctrl-C,
SIGTERM or SIGHUP, 141 nobody reads the output any more.
"""

import dataclasses
import errno
import functools
import operator
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import stylekernels
from stylekernels.models.styles import bundled_styles, style_file
from stylekernels.signals import handled
from stylekernels.terminal import Refused, advance, complain, plural, progress, refusing, say
from stylekernels.training.config import TrainConfig
from stylekernels.training.errors import DivergedError, SettingError

if TYPE_CHECKING:
    import numpy as np

    from stylekernels.inference import Stylizer
    from stylekernels.media import Photo

_DONE, _FAILED, _REFUSED, _INTERRUPTED, _READER_LEFT = 0, 1, 2, 130, 141
_DEMO_SHEET = "stylekernels-demo.png"


def _arg(metavar: str | None = None, alias: str | None = None, hint: str | None = None) -> Any:
    """How an option looks in the help text; ``hint`` stands in for tyro's note on the default."""
    return tyro.conf.arg(
        metavar=metavar, aliases=(alias,) if alias else None, help_behavior_hint=hint
    )


@dataclasses.dataclass(kw_only=True)
class Stylize:
    """Paint photos in a style."""

    photos: Annotated[tuple[str, ...], tyro.conf.Positional, _arg("PHOTO...", hint="")]
    """Files, folders (the photos in them) and patterns such as 'trip/**/*.jpg'."""

    style: Annotated[str, _arg("STYLE", "-s", hint="(required)")]
    """A bundled style (`stylekernels info` lists them) or a file of weights."""

    output: Annotated[str, _arg("PATH", "-o")] = "stylized"
    """A file for one photo, in the format of its extension; a folder for many, under their names.
    Colour profile, EXIF and transparency are kept, with 8 bits for each channel.
    Files there are replaced, but never a photo that is read."""

    size: Annotated[int | None, _arg("PIXELS", hint="(default: the photo's own)")] = None
    """Scale photos down to this length of the longer side. They are never enlarged."""

    strength: Annotated[float, _arg("0..1")] = 1.0
    """How much of the style is mixed into the photo, from 0 (the photo) to 1 (all style)."""

    preserve_colors: Annotated[bool, _arg(hint="")] = False
    """Keep the photo's colours, and take only light and dark from the style."""

    tile: Annotated[int | None, _arg("PIXELS", hint="(default: all at once)")] = None
    """Paint larger photos in tiles of this size, 1024 say, in bounded memory.
    Files of more than 178 megapixels are read with this option only."""

    tile_mode: Annotated[Literal["exact", "thumbnail"], _arg()] = "exact"
    """`exact` makes the same picture as without tiles, to rounding; small tiles take longer.
    `thumbnail` is faster, with contrasts as in a small copy of the photo.
    """

    device: Annotated[str | None, _arg("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """Where the network runs, `cpu` or `cuda`."""

    def run(self) -> int:
        if not self.photos:
            raise Refused("PHOTO: expected at least one file, folder or pattern, got none")
        if self.size is not None and self.size < 16:
            raise Refused(f"--size: expected at least 16 pixels, got {self.size}")
        if not 0 <= self.strength <= 1:
            raise Refused(f"--strength: expected a number from 0 to 1, got {self.strength}")
        if self.tile is not None and self.tile < 64:
            raise Refused(f"--tile: expected at least 64 pixels, got {self.tile}; try 1024")
        if self.tile is None and self.tile_mode != "exact":
            raise Refused(f"--tile-mode {self.tile_mode}: expected --tile with it; try --tile 1024")
        weights = _find_style(self.style)
        from stylekernels.media import (
            PhotoError,
            TooManyPixels,
            check_format,
            read_photo,
            write_photo,
        )  # fmt: skip
        from stylekernels.media.outputs import check_inputs_are_kept
        from stylekernels.media.paths import find_photos, plan_outputs

        photos, problems = find_photos(self.photos)
        for problem in problems:
            complain(problem)
        if not photos:
            return _REFUSED
        with refusing("--output: "):
            outputs = plan_outputs(photos, self.output)
            check_inputs_are_kept(outputs, [weights])
        stylizer = _open_style(weights, self.device, tile=self.tile, tile_mode=self.tile_mode)

        started = time.perf_counter()
        written = []
        with progress(len(photos), shown=len(photos) > 1 or self.tile is not None) as bar:
            for index, (path, output) in enumerate(zip(photos, outputs, strict=True)):
                done = functools.partial(advance, bar, index)
                try:
                    photo = read_photo(path, self.size, any_size=self.tile is not None)
                    check_format(output, photo)  # what can't be written need not be painted
                    rgb = self.paint(stylizer, photo, path, done)
                    write_photo(output, dataclasses.replace(photo, rgb=rgb))
                    written.append(output)
                except PhotoError as error:
                    tiles = ", or paint it in tiles with --tile 1024"
                    problems.append(f"{error}{tiles if isinstance(error, TooManyPixels) else ''}")
                    complain(problems[-1])
                done()
        if written:
            place = written[0] if len(photos) == 1 else os.path.join(written[0].parent, "")
            count = (
                "" if len(photos) == 1 else f"{len(written)} {plural('photo', len(written))} in "
            )
            refused = f", {len(problems)} refused" if problems else ""
            say(f"{count}{place}{refused}  {time.perf_counter() - started:.1f} s")
        return _REFUSED if problems else _DONE

    def paint(
        self,
        stylizer: "Stylizer",
        photo: "Photo",
        path: Path,
        progress: Callable[[int, int], None],
    ) -> "np.ndarray":
        """The photo's pixels in the style, as strong as asked for, in the photo's own colours."""
        from stylekernels.hardware import memory_ran_out
        from stylekernels.inference import blend
        from stylekernels.media import PhotoError

        try:
            stylized = photo.from_srgb(stylizer(photo.to_srgb(), progress=progress))
            return blend(
                photo.rgb,
                stylized,
                strength=self.strength,
                preserve_colors=self.preserve_colors,
            )
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            height, width = photo.rgb.shape[:2]
            tiles = "paint in tiles with --tile 1024, or " if self.tile is None else ""
            raise PhotoError(
                f"{path}: {width}x{height} pixels need more memory than there is; "
                f"{tiles}scale down with --size"
            ) from error


@dataclasses.dataclass
class Demo:
    """Paint a well-known photo in the bundled styles, on one before-and-after sheet."""

    style: Annotated[str | None, _arg("STYLE", "-s", hint="(default: every bundled style)")] = None
    """A bundled style, or a file of weights."""

    output: Annotated[str, _arg("PATH", "-o")] = _DEMO_SHEET
    """The picture to write, or a folder for it."""

    device: Annotated[str | None, _arg("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """Where the network runs, `cpu` or `cuda`."""

    def run(self) -> int:
        styles = [self.style] if self.style else bundled_styles()
        if not styles:
            raise Refused("--style: no style is bundled here; give a file of weights")
        weights = [_find_style(style) for style in styles]
        from stylekernels.media import Photo, write_photo
        from stylekernels.media.outputs import check_inputs_are_kept
        from stylekernels.media.paths import place
        from stylekernels.media.sheet import make_sheet

        with refusing("--output: "):
            (output,) = place([_DEMO_SHEET], self.output)
            check_inputs_are_kept([output], weights)
        photo = _demo_photo()
        pictures = [("photo", photo)]
        for path in weights:
            stylizer = _open_style(path, self.device)
            pictures.append((path.stem.replace("_", " "), stylizer(photo)))
        with refusing():
            write_photo(output, Photo(make_sheet(pictures)))
        say(f"{output}: the photo and {len(styles)} {plural('style', len(styles))}")
        return _DONE


@dataclasses.dataclass
class Info:
    """Show versions, hardware, the implementation of every op and why, and bundled styles."""

    def run(self) -> int:
        from stylekernels.info import describe

        say(describe())
        return _DONE


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
        return _DONE
    argv, debug = _take_debug(argv)
    try:
        # SIGTERM and SIGHUP raise KeyboardInterrupt too, so that no half-written file is left.
        with handled(signal.default_int_handler):
            command = _parse(argv)
            _check_environment()
            code = _train(command) if isinstance(command, TrainConfig) else command.run()
            sys.stdout.flush()
            return code
    except Refused as error:
        complain(str(error))
        return _REFUSED
    except KeyboardInterrupt as stop:
        complain(" ".join(("interrupted", *map(str, stop.args))))
        return _INTERRUPTED
    except SystemExit as stop:  # tyro's, after help (0) or an error it has printed (2)
        return stop.code if isinstance(stop.code, int) else _REFUSED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
            # The reader of the output, such as `head` or a terminal, has gone. Python flushes
            # again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _READER_LEFT
        if debug:
            raise
        complain(
            f"an error of the program's own, {type(error).__name__}: {error}; "
            "the option --debug shows where it happened"
        )
        return _FAILED


def _take_debug(argv: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, which every verb takes, and whether it was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [argument for argument in argv[:end] if argument != "--debug"]
    return options + argv[end:], len(options) < end


def _check_environment() -> None:
    """Refuse kernels that there are not, if some were asked for: else PyTorch, which takes seconds,
    needn't be imported yet."""
    if {"STYLEKERNELS_IMPL", "STYLEKERNELS_CPU_CAPABILITY"} & os.environ.keys():
        try:
            import stylekernels.dispatch  # noqa: F401
        except (ValueError, RuntimeError) as error:
            raise Refused(str(error)) from None


def _check_kernels(device: str) -> None:
    """Refuse a device for which the implementation that was asked for has no kernels."""
    from stylekernels.dispatch import implementation

    try:
        implementation(device)
    except RuntimeError as error:
        raise Refused(str(error)) from None


def _parse(argv: Sequence[str]) -> Any:
    verbs = {
        "demo": (Demo, "Paint a well-known photo in the bundled styles, on one sheet."),
        "stylize": (Stylize, "Paint photos in a style."),
        "train": (TrainConfig, "Train a new style from a painting and a folder of photos."),
        "info": (Info, "Show versions, hardware, bundled styles, and which kernels run and why."),
    }
    subcommands = [
        Annotated[verb, tyro.conf.subcommand(name, description=text)]
        for name, (verb, text) in verbs.items()
    ]
    return tyro.cli(
        functools.reduce(operator.or_, subcommands),
        prog="stylekernels",
        description="Fused kernels for neural style networks: paint photos, train new styles.\n"
        "`stylekernels --version` prints the version.\n"
        "`--debug` after a verb shows the traceback of an error of the program's own.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _train(config: TrainConfig) -> int:
    try:
        config.check()
        from stylekernels.hardware import find_device, keep_freed_memory, memory_ran_out
        from stylekernels.training import train

        with refusing("--"):
            device = find_device(config.device)
        _check_kernels(device.type)
        keep_freed_memory()
        result = train(config)
    except (SettingError, DivergedError, OSError) as error:
        raise Refused(_with_options(str(error), config)) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        raise Refused(
            f"--batch-size {config.batch_size} and --crop {config.crop} need more memory than "
            "there is; lower one of them, or --style-size"
        ) from error
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
            f"{result.output}"
        )
        return _INTERRUPTED
    say(
        f"{result.output}: trained {result.steps} steps, {result.seconds / 60:.1f} minutes in all; "
        f"try stylekernels stylize PHOTO --style {result.output}"
    )
    return _DONE


def _with_options(message: str, config: TrainConfig) -> str:
    """A message of the trainer, with its settings named as the options of the command."""
    first, colon, rest = message.partition(": ")
    for name in (field.name for field in dataclasses.fields(config)):
        option = "--" + name.replace("_", "-")
        first = option if first == name else first
        if "_" in name:  # others are words of the language too
            rest = re.sub(rf"\b{name}\b", option, rest)
    return first + colon + rest


def _find_style(style: str) -> Path:
    try:
        return style_file(style)
    except ValueError as error:
        raise Refused("--style: " + str(error).removeprefix("name_or_path: ")) from error


def _open_style(weights: Path, device: str | None, **options: Any) -> "Stylizer":
    import torch

    from stylekernels.hardware import find_device
    from stylekernels.inference import Stylizer
    from stylekernels.models import StyleGenerator

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with refusing("--"):
        _check_kernels(find_device(device).type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about files that are refused anyway
            generator = StyleGenerator.from_pretrained(weights)
    except (ValueError, OSError) as error:
        raise Refused(f"--style: {error}") from error
    try:
        return Stylizer(generator, device=device, **options)
    except ValueError as error:
        raise Refused(f"--{error}") from error
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"--device: cannot use {device!r}: {error}") from error


def _demo_photo() -> "np.ndarray":
    try:
        from skimage import data
    except ImportError as error:
        raise Refused(
            "demo: its photo comes with scikit-image; pip install scikit-image, "
            "or stylize a photo of your own"
        ) from error
    return data.astronaut()
