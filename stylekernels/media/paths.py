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
        The files in order, of which some may not exist, and a message for each input that names
        none.
    """
    photos: dict[str, Path] = {}
    problems = []
    for text in inputs:
        found, problem = _expand(Path(text).expanduser())
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
    if path.exists() or not glob.has_magic(str(path)):
        return [path], None
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [match for match in matches if match.is_file()]
    return found, None if found else f"{path}: no file matches this pattern"


def plan_outputs(photos: Sequence[Path], output: str) -> list[Path]:
    """Where each photo's result goes.

    Args:
        photos: the inputs.
        output: a file, if there is one photo and the name has an extension; else a folder, where
            each photo keeps its name (but gets ``.png`` for the extension of a format that can
            be read and not written well, as GIF). It need not exist; a name that ends in a
            slash is a folder.

    Raises:
        ValueError: if a result would replace a photo or another result, or if ``output`` can't be
            what it has to be.
    """
    place = Path(output).expanduser()
    is_folder = place.is_dir() or output.endswith(("/", os.sep)) or not place.suffix
    if not is_folder and len(photos) == 1:
        output_format(place)
        outputs = [place]
    elif place.exists() and not place.is_dir():
        raise ValueError(f"{place}: expected a folder for the results, got a file")
    elif not is_folder and place.suffix.lower() in FORMATS:
        raise ValueError(
            f"{place}: expected a folder for {len(photos)} results, got the name of one file"
        )
    else:
        outputs = [place / _result_name(photo) for photo in photos]
    _check_writable(outputs)
    _check_nothing_lost(photos, outputs)
    return outputs


def _result_name(photo: Path) -> str:
    try:
        output_format(photo)
    except PhotoError:
        return photo.stem + ".png"
    return photo.name


def _check_writable(outputs: Sequence[Path]) -> None:
    for folder in {output.parent for output in outputs}:
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise ValueError(f"{folder}: this cannot be a folder, because {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"{folder}: no permission to write in {there}")


def _check_nothing_lost(photos: Sequence[Path], outputs: Sequence[Path]) -> None:
    read = {os.path.realpath(photo) for photo in photos}
    written: dict[str, Path] = {}
    for photo, output in zip(photos, outputs, strict=True):
        place = os.path.normcase(os.path.realpath(output))
        if place in read:
            raise ValueError(
                f"{output}: the result would replace this photo, which is one of those to read; "
                "choose another --output"
            )
        if output.is_dir():
            raise ValueError(f"{output}: expected to write a file here, found a folder")
        if place in written:
            raise ValueError(
                f"{written[place]} and {photo} would both become {output}; "
                "stylize them into different folders"
            )
        written[place] = photo
