"""Pictures side by side on one sheet."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

_PAPER, _INK = (250, 249, 246), (88, 86, 82)
_MARGIN, _GUTTER, _CAPTION = 40, 24, 44
_GAP = 2  # in a grid of small pictures


def make_sheet(pictures: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Lay pictures of one size out in a grid, a caption under each.

    Args:
        pictures: captions, and (H, W, 3) uint8 RGB of one shape.

    Returns:
        The sheet, (H, W, 3) uint8.
    """
    columns = _columns(len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0][1].shape[:2]
    # Without FreeType, Pillow's own font is too coarse for captions.
    caption = _CAPTION if features.check("freetype2") else 0
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * width + (columns - 1) * _GUTTER,
            2 * _MARGIN + rows * (height + caption) + (rows - 1) * _GUTTER - caption // 2,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for index, (text, picture) in enumerate(pictures):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (width + _GUTTER)
        top = _MARGIN + row * (height + caption + _GUTTER)
        sheet.paste(Image.fromarray(picture), (left, top))
        if caption:
            center = (left + width // 2, top + height + caption // 2)
            draw.text(center, text, _INK, ImageFont.load_default(22), anchor="mm")
    return np.asarray(sheet)


def make_grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lay small pictures out in rows, without captions.

    Args:
        pictures: (N, H, W, 3) uint8 RGB.
        columns: pictures in a row.

    Returns:
        The sheet, (H', W', 3) uint8.
    """
    rows = -(-len(pictures) // columns)
    height, width = (side + _GAP for side in pictures.shape[1:3])
    sheet = np.empty((rows * height + _GAP, columns * width + _GAP, 3), np.uint8)
    sheet[:] = _PAPER
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top, left = row * height + _GAP, column * width + _GAP
        sheet[top : top + height - _GAP, left : left + width - _GAP] = picture
    return sheet


def _columns(count: int) -> int:
    """Return the number of columns: one row for up to three pictures, else the fullest grid."""
    if count <= 3:
        return count
    return min(range(2, 5), key=lambda columns: (-count % columns, -columns))
