"""Styles of the command line: finding them, and opening them on a device."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylekernels.cli.terminal import Refused, refusing
from stylekernels.models.styles import style_file

if TYPE_CHECKING:
    from stylekernels.inference import Stylizer


def find_style(style: str) -> Path:
    """Return the file of a style or of a mixture, or refuse what does not exist."""
    try:
        return style_file(style)
    except ValueError as error:
        raise Refused("--style: " + str(error).removeprefix("name_or_path: ")) from error


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
    from stylekernels.models import StyleGenerator

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with refusing("--"):
        check_kernels(find_device(device).type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about files that are refused anyway
            generator = StyleGenerator.from_pretrained(style)
    except (ValueError, OSError) as error:
        raise Refused(f"--style: {error}") from error
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
