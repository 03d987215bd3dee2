"""JPEG files of live frames, in memory."""

import io

import numpy as np
from PIL import Image

from stylekernels.media.images import SMALLEST_SIDE

#: A painting has fine strokes in strong colours, which subsampled chroma would blur.
_OPTIONS = {"quality": 90, "subsampling": "4:4:4"}


def decode_jpeg(data: bytes, most_pixels: int) -> np.ndarray:
    """Return the pixels of a JPEG file, (H, W, 3) uint8, RGB.

    Raises:
        ValueError: if it is no JPEG file or damaged, if it has more pixels than allowed, or fewer
            than 16 a side.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise ValueError(
                    f"frame: expected at most {most_pixels} pixels, got {width}x{height}; "
                    "lower the resolution"
                )
            if min(width, height) < SMALLEST_SIDE:
                raise ValueError(
                    f"frame: expected at least {SMALLEST_SIDE} pixels a side, got {width}x{height}"
                )
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"frame: expected a JPEG file, got {len(data)} bytes: {error}") from error


def encode_jpeg(rgb: np.ndarray) -> bytes:
    """Return a JPEG file of pixels (H, W, 3) uint8, RGB."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", **_OPTIONS)
    return file.getvalue()
