"""The files that a command reads and writes, determined before any work begins."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from stylekernels.media.images import FORMATS, PhotoError, output_format
from stylekernels.media.outputs import (
    check_folder,
    check_inputs_are_kept,
    check_replaceable,
    looked_up,
)

# HEIC cannot be read, but a message is better than leaving out a phone's photo silently.
_PHOTO_SUFFIXES = {*FORMATS, ".gif", ".heic", ".heif", ".pbm", ".pgm", ".pnm", ".psd", ".tga"}


def find_photos(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Find the files that inputs name.

    Args:
        inputs: files, folders (the photos directly inside) and glob patterns (``**`` for any
            depth), as typed. A file that is named twice counts once.

    Returns:
        The files in order, and a message for each input that names no file.
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


def find_photos_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Find the photos in a folder and in all folders below it.

    Links are followed. A folder or photo that is reached twice counts once, so that loops end.
    Folders whose names start with a dot are skipped.

    Returns:
        The files in order, and messages: for each folder that cannot be read, and for each file
        that is named like a photo but is not one (hidden files, which other systems leave beside
        photos; broken links; devices).
    """
    photos: dict[str, Path] = {}
    problems, seen, waiting = [], set(), [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(f"{here}: cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = here / entry.name
            hidden = entry.name.startswith(".")
            try:
                is_folder = path.is_dir()
            except OSError as error:  # a link to a name that is too long, for example
                problems.append(f"{path}: cannot be looked up: {error.strerror}")
                continue
            if is_folder:
                if not hidden:
                    waiting.append(path)
            elif path.suffix.lower() in _PHOTO_SUFFIXES:
                if hidden:
                    problems.append(f"{path}: a hidden file")
                elif not path.is_file():
                    problems.append(f"{path}: no file, and no link to one")
                else:
                    at = os.path.realpath(path) if entry.is_symlink() else f"{real}/{entry.name}"
                    photos.setdefault(at, path)
    return sorted(photos.values()), problems


def plan_outputs(photos: Sequence[Path], output: str) -> list[Path]:
    """Determine the path of each photo's result, with the photo's name if ``output`` is a folder.

    Formats that cannot be written well, such as GIF, become PNG.

    Args:
        photos: the inputs.
        output: as for :func:`output_paths`.

    Raises:
        ValueError: if a result would replace a photo or another result, or as `output_paths`.
    """
    outputs = output_paths([_result_name(photo) for photo in photos], output)
    check_inputs_are_kept(outputs, photos)
    written: dict[str, Path] = {}
    for photo, path in zip(photos, outputs, strict=True):
        key = os.path.normcase(os.path.realpath(path))
        if key in written:
            raise ValueError(
                f"{written[key]} and {photo} would both become {path}; "
                "stylize them into different folders"
            )
        written[key] = photo
    return outputs


def output_paths(names: Sequence[str], output: str) -> list[Path]:
    """Determine the paths of results with these names.

    Args:
        names: the names of the results in a folder.
        output: as typed. A file, if there is one name and ``output`` has an extension and no slash
            at its end; else a folder. It need not exist.

    Raises:
        ValueError: if ``output`` is a file but must be a folder, or cannot be written to.
    """
    path = looked_up(Path(os.path.expanduser(output)))
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
        check_replaceable(file)
    check_folder(paths[0].parent)
    return paths


def _result_name(photo: Path) -> str:
    try:
        output_format(photo)
    except PhotoError:
        return photo.stem + ".png"
    return photo.name
