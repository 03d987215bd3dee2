"""Pictures brought to a size without distortion."""

import numpy as np
from PIL import Image, ImageOps

_SMOOTH = Image.Resampling.BILINEAR


def fill(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale pixels (H, W, 3) to width and height; what is too wide or high is cut off."""
    return _fitted(ImageOps.fit, rgb, size)


def letterbox(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale pixels (H, W, 3) to width and height, between black bars if the shape differs."""
    return _fitted(ImageOps.pad, rgb, size)


def _fitted(method, rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if rgb.shape[1::-1] == size:
        return rgb
    return np.asarray(method(Image.fromarray(rgb), size, method=_SMOOTH))
