"""Styles of the command line: finding them, and opening them on a device."""

import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylekernels.cli.terminal import Refused, refusing
from stylekernels.models.styles import WEIGHTS, style_file
from stylekernels.models.styles import find_style as find_source

if TYPE_CHECKING:
    from stylekernels.inference import Stylizer
    from stylekernels.models import StyleGenerator


def find_style(style: str, argument: str = "--style") -> Path:
    """Return the file of a style or of a mixture, or refuse what does not exist, by the name of the
    argument."""
    try:
        return style_file(style)
    except ValueError as error:
        raise Refused(f"{argument}: " + str(error).removeprefix("name_or_path: ")) from error


def open_generator(style: str, argument: str = "--style") -> "StyleGenerator":
    """Open a style on the CPU, or refuse the file.

    Args:
        style: as for ``StyleGenerator.from_pretrained``.
        argument: that names it in the command.
    """
    from stylekernels.models import StyleGenerator

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about files that are refused anyway
            return StyleGenerator.from_pretrained(style)
    except (ValueError, OSError) as error:
        raise Refused(f"{argument}: {error}") from error


@functools.cache
def style_name(style: str) -> str:
    """Return the name of a style: of a file its own, without folder and extension, with the styles
    that are mixed from it. What is no style, or none any more, is returned as it is."""
    try:
        found = find_source(style)
    except ValueError:
        return style
    if found.path.parent == WEIGHTS:
        return style
    shares = [name if share == 1 else f"{name}:{share:g}" for name, share in found.shares.items()]
    return ":".join([found.path.stem, *([",".join(shares)] if shares else [])])


def style_title(style: str) -> str:
    """Return the name of a style as people write it."""
    return style_name(style).replace("_", " ")


def open_style(style: str, device: str | None, **options: Any) -> "Stylizer":
    """Open a style on a device, or refuse the device or the file.

    Args:
        style: as for ``StyleGenerator.from_pretrained``.
        device: name of the device; None means a GPU if there is one, else the CPU.
        options: options of the Stylizer.
    """
    import torch

    from stylekernels.hardware import find_device
    from stylekernels.inference import Stylizer

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with refusing("--"):
        check_kernels(find_device(device).type)
    generator = open_generator(style)
    try:
        return Stylizer(generator, device=device, **options)
    except ValueError as error:
        raise Refused(f"--{error}") from error
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"--device: cannot use {device!r}: {error}") from error


def check_kernels(device: str) -> None:
    """Refuse a type of device for which the forced implementation has no kernels."""
    from stylekernels.ops.dispatch import OPS, choose

    try:
        for op in OPS:
            choose(op, device)
    except RuntimeError as error:
        raise Refused(str(error)) from None
