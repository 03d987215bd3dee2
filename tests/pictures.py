"""Picture files for the tests of the command line, and its output."""

from pathlib import Path

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114])


def picture(height=40, width=56, seed=0):
    """Soft blotches in mild colours."""
    coarse = np.random.default_rng(seed).integers(60, 200, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path, pixels=None, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)
    return path


def load(path):
    with Image.open(path) as image:
        return np.asarray(image)


def written(folder):
    """Return every file in the folder, including hidden ones and leftovers."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def complaints(capsys):
    """Return the lines on stderr. Each must start with the program's name, which is removed."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("stylekernels: ") for line in lines), lines
    return [line.removeprefix("stylekernels: ") for line in lines]
