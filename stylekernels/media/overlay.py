"""Text over a picture: lines in the corners, a notice, and a table of keys."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _SOFT, _RED = (255, 255, 255, 255), (225, 229, 236, 255), (255, 77, 77, 255)
_PAPER = (12, 14, 20, 195)
_LEAST, _PER_HEIGHT = 14, 27  # pixels of the font: the least, and pictures' height over it


@dataclass(frozen=True)
class Overlay:
    """Text to write over a picture.

    Attributes:
        left: a line in the upper left corner.
        right: a line in the upper right corner.
        recording: a line with a red dot below the upper right one; empty for none.
        notice: a line at the bottom; empty for none.
        keys: a table of keys and their meanings in the middle; empty for none.
    """

    left: str = ""
    right: str = ""
    recording: str = ""
    notice: str = ""
    keys: Sequence[tuple[str, str]] = ()


def draw_overlay(rgb: np.ndarray, overlay: Overlay) -> None:
    """Write over pixels (H, W, 3) uint8, in place, in a size that suits their height.

    In a narrow picture the right line comes below the left one.
    """
    height, width = rgb.shape[:2]
    size = max(_LEAST, height // _PER_HEIGHT)
    edge = size // 2
    inner = width - 2 * edge
    top, taken = edge, 0
    if overlay.left:
        panel = _line(overlay.left, size, inner)
        _put(rgb, panel, edge, edge)
        taken = panel.shape[1] + edge
    if overlay.right:
        panel = _line(overlay.right, size, inner)
        if taken + panel.shape[1] > inner:
            top += panel.shape[0] + edge
        _put(rgb, panel, width - panel.shape[1] - edge, top)
    if overlay.recording:
        panel = _line(overlay.recording, size, inner, dot=True)
        _put(rgb, panel, width - panel.shape[1] - edge, top + panel.shape[0] + edge)
    if overlay.notice:
        panel = _line(overlay.notice, size, inner)
        _put(rgb, panel, (width - panel.shape[1]) // 2, height - panel.shape[0] - edge)
    if overlay.keys:
        panel = _table(tuple(overlay.keys), size)
        _put(rgb, panel, (width - panel.shape[1]) // 2, (height - panel.shape[0]) // 2)


@functools.lru_cache(maxsize=32)
def _line(text: str, size: int, widest: int, dot: bool = False) -> np.ndarray:
    """Return a panel with a text, wrapped at ``widest`` pixels, as (H, W, 4) premultiplied."""
    font = ImageFont.load_default(size)
    pad = size // 2
    indent = size if dot else 0
    lines = _wrapped(text, font, widest - 2 * pad - indent)
    step = round(1.3 * size)
    width = round(max(font.getlength(line) for line in lines)) + 2 * pad + indent
    image, draw = _panel(width, step * len(lines) + pad)
    if dot:
        middle, radius = pad // 2 + step / 2, 0.3 * size
        left = pad + radius
        draw.ellipse((left - radius, middle - radius, left + radius, middle + radius), _RED)
    for number, line in enumerate(lines):
        middle = pad // 2 + step * number + step / 2
        draw.text((pad + indent, middle), line, _INK, font, anchor="lm")
    return _premultiplied(image)


@functools.lru_cache(maxsize=2)
def _table(rows: tuple[tuple[str, str], ...], size: int) -> np.ndarray:
    """Return a panel with two columns, as (H, W, 4) premultiplied."""
    font = ImageFont.load_default(size)
    pad, step = size, round(1.45 * size)
    first = round(max(font.getlength(key) for key, _ in rows))
    second = round(max(font.getlength(meaning) for _, meaning in rows))
    image, draw = _panel(first + second + 3 * pad, step * len(rows) + pad)
    for number, (key, meaning) in enumerate(rows):
        middle = pad / 2 + step * number + step / 2
        draw.text((pad + first, middle), key, _INK, font, anchor="rm")
        draw.text((2 * pad + first, middle), meaning, _SOFT, font, anchor="lm")
    return _premultiplied(image)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, widest: float) -> list[str]:
    """Break a text at spaces into lines that are not too wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > widest:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _panel(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a dark, rounded and half transparent panel, and the way to draw on it."""
    image = Image.new("RGBA", (width, height), (*_PAPER[:3], 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), min(8, height // 4), _PAPER)
    return image, draw


def _premultiplied(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(np.uint16)
    pixels[..., :3] = pixels[..., :3] * pixels[..., 3:] // 255
    return pixels


def _put(rgb: np.ndarray, panel: np.ndarray, left: int, top: int) -> None:
    """Lay a panel over pixels; what is outside of the picture is cut off."""
    left, top = max(0, left), max(0, top)
    there = rgb[top : top + panel.shape[0], left : left + panel.shape[1]]
    panel = panel[: there.shape[0], : there.shape[1]]
    there[:] = panel[..., :3] + there * (255 - panel[..., 3:]) // 255
