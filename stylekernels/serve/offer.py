"""What the page offers: its files, styles by name and title, and the photo of their previews."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylekernels.models.styles import LITE_BASE

PAGE = Path(__file__).resolve().parent / "page"

#: The part of the sample photo that previews show: left, top, right, bottom, in pixels.
_PREVIEW = 112, 0, 336, 224
_ROMAN = set("ivx")
_SMALL = {"and", "at", "in", "of", "off", "on", "the"}


def offer(first: str, styles: Iterable[str], most_pixels: int) -> dict[str, Any]:
    """Return the content of ``styles.json``.

    Args:
        first: name of the style that the page begins with.
        styles: names of all styles.
        most_pixels: of a frame.
    """
    return {
        "first": first,
        "most_pixels": most_pixels,
        "styles": [{"name": name, "title": _title(name)} for name in styles],
    }


def preview_photo() -> np.ndarray:
    """Return the photo that previews show, (H, W, 3) uint8, RGB."""
    with Image.open(PAGE / "photo.jpg") as photo:
        return np.array(photo.convert("RGB").crop(_PREVIEW))


def _title(name: str) -> str:
    """Return a style's name for people: ``composition_vii`` is Composition VII, ``base_lite:wave``
    Wave, lite. In names of files the colon is a hyphen."""
    base, lite = LITE_BASE, ""
    if name.startswith((f"{base}:", f"{base}-")):
        name, lite = name[len(base) + 1 :], ", lite"
    title = " ".join(map(_in_title, name.split("_")))
    return title[:1].upper() + title[1:] + lite


def _in_title(word: str) -> str:
    """Return a word as it is written inside a title."""
    if set(word) <= _ROMAN:
        return word.upper()
    return word if word in _SMALL else word[:1].upper() + word[1:]
