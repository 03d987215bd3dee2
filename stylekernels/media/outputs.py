"""Checks before work begins: results can be written, and replace no input."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def check_file(path: Path) -> None:
    """Refuse a path at which no file can be written or replaced.

    Raises:
        ValueError: naming the path, if something other than a file is there, or if `check_folder`
            refuses its folder.
    """
    check_replaceable(path)
    check_folder(path.parent)


def check_replaceable(path: Path) -> None:
    """Refuse a path at which there is something other than a file.

    Raises:
        ValueError: naming the path, if it is a folder or a device, or if its name is too long.
    """
    if looked_up(path).is_dir():
        raise ValueError(f"{path}: expected to write a file here, found a folder; add a file name")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected to write a file here, found a device; choose another")


def check_folder(path: Path) -> None:
    """Refuse a folder in which no file can be written; it need not exist.

    Raises:
        ValueError: naming the path, if it or a folder above it is a file or cannot be written to,
            or if a name is too long.
    """
    there = path
    while not looked_up(path, there).exists() and there != there.parent:
        there = there.parent
    for name in path.parts[len(there.parts) :]:
        looked_up(path, there / name)
    if not there.is_dir():
        raise ValueError(f"{path}: this cannot be a folder, because {there} is a file")
    try:
        # Permissions are not enough: a file system may be read-only, or not allow files at all.
        with tempfile.TemporaryFile(dir=there):
            pass
    except PermissionError as error:
        raise ValueError(f"{path}: no permission to write in {there}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot write in {there}: {error.strerror}") from error


def looked_up(path: Path, part: Path | None = None) -> Path:
    """Return ``part``, by default the whole path, if the system can look it up.

    Raises:
        ValueError: naming the path, if it cannot, for example because a name is too long.
    """
    part = path if part is None else part
    try:
        part.exists()
    except OSError as error:
        raise ValueError(f"{path}: cannot be looked up: {error.strerror}") from error
    return part


def check_inputs_are_kept(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to replace a file that is read.

    Args:
        outputs: files to write.
        inputs: files to read. Device and inode decide whether an input is an output, not the path.

    Raises:
        ValueError: naming the output.
    """
    there = {key: path for path in outputs if (key := _identity(path)) is not None}
    if not there:
        return
    for path in inputs:
        output = there.get(_identity(path))
        if output is not None:
            raise ValueError(
                f"{output}: the result would replace this file, which is one of the inputs; "
                "choose another path"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
