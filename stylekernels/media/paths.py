"""Which files a command reads and which it writes, decided before any work begins."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from stylekernels.media.images import FORMATS, PhotoError, output_format

# HEIC can't be read, but a phone's photo that is silently left out would be worse than a message.
_PHOTO_SUFFIXES = {*FORMATS, ".gif", ".heic", ".heif", ".pgm", ".pnm", ".psd", ".tga"}


def find_photos(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that inputs name.

    Args:
        inputs: files, folders (the photos directly inside) and glob patterns (``**`` for any
            depth), as typed. A file named twice counts once.

    Returns:
        The files in order, and a message for each input that names none.
    """
    photos: dict[str, Path] = {}
    problems = []
    for text in inputs:
        path = Path(os.path.expanduser(text))
        try:
            found, problem = _expand(path)
        except OSError as error:
            found, problem = [], f"{path}: cannot be looked up: {error.strerror}"
        if problem:
            problems.append(problem)
        for path in found:
            photos.setdefault(os.path.realpath(path), path)
    return list(photos.values()), problems


def _expand(path: Path) -> tuple[list[Path], str | None]:
    if path.is_dir():
        found = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in _PHOTO_SUFFIXES
            and not entry.name.startswith(".")
            and entry.is_file()
        )
        return found, None if found else f"{path}: no photos in this folder"
    if path.exists():
        return [path], None
    if not glob.has_magic(str(path)):
        return [], f"{path}: no such file"
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [match for match in matches if match.is_file()]
    return found, None if found else f"{path}: no file matches this pattern"


def plan_outputs(photos: Sequence[Path], output: str) -> list[Path]:
    """Where each photo's result goes, under the photo's own name in a folder.

    A format that can be read and not written well, as GIF, becomes PNG.

    Args:
        photos: the inputs.
        output: see :func:`place`.

    Raises:
        ValueError: if a result would replace a photo or another result, or if ``output`` can't be
            what it has to be.
    """
    outputs = place([_result_name(photo) for photo in photos], output)
    read = {os.path.realpath(photo) for photo in photos}
    written: dict[str, Path] = {}
    for photo, path in zip(photos, outputs, strict=True):
        key = os.path.normcase(os.path.realpath(path))
        if key in read:
            raise ValueError(
                f"{path}: the result would replace this photo, which is one of those to read; "
                "choose another --output"
            )
        if key in written:
            raise ValueError(
                f"{written[key]} and {photo} would both become {path}; "
                "stylize them into different folders"
            )
        written[key] = photo
    return outputs


def place(names: Sequence[str], output: str) -> list[Path]:
    """Where files of these names go.

    Args:
        names: what they are called in a folder.
        output: as typed: a file, if there is one name and this one has an extension; else a
            folder. It need not exist; what ends in a slash is a folder.

    Raises:
        ValueError: if ``output`` is a file and has to be a folder or the other way round, or
            can't be written to.
    """
    path = Path(os.path.expanduser(output))
    is_folder = path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix
    if not is_folder and len(names) == 1:
        output_format(path)
        paths = [path]
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{path}: expected a folder for the results, got a file")
    elif not is_folder and path.suffix.lower() in FORMATS:
        raise ValueError(
            f"{path}: expected a folder for {len(names)} results, got the name of one file"
        )
    else:
        paths = [path / name for name in names]
    for file in paths:
        if file.is_dir():
            raise ValueError(f"{file}: expected to write a file here, found a folder")
    _check_writable(paths[0].parent)
    return paths


def _check_writable(folder: Path) -> None:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{folder}: this cannot be a folder, because {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: no permission to write in {there}")


def _result_name(photo: Path) -> str:
    try:
        output_format(photo)
    except PhotoError:
        return photo.stem + ".png"
    return photo.name
