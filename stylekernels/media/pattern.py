"""A synthetic moving picture, in place of a camera."""

import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw

from stylekernels.media.frames import Frame

_CYCLE = 10  # seconds until the picture repeats
_SKY, _HORIZON = np.array([70, 120, 200]), np.array([250, 205, 150])
# One row per range of hills: mean height and amplitude as shares of the picture's height, number
# of waves, colour.
_HILLS = (
    (0.62, 0.10, 2, (104, 128, 150)),
    (0.74, 0.09, 3, (70, 110, 90)),
    (0.86, 0.06, 5, (44, 74, 52)),
)


class PatternSource:
    """Yields a landscape that passes by, at a fixed rate.

    Args:
        size: width and height.
        rate: frames a second.

    Attributes:
        problem: always None.
    """

    problem = None

    def __init__(self, size: tuple[int, int], rate: float = 30.0) -> None:
        self._size, self._rate = size, rate
        self._closed = threading.Event()
        self._panorama = _panorama(*size)

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames when their time has come. Those that were missed are left out."""
        width, whole = self._size[0], self._panorama.shape[1] // 2
        began, number = time.monotonic(), 0
        while True:
            if self._closed.wait(max(0, began + number / self._rate - time.monotonic())):
                return
            left = round(number / self._rate / _CYCLE * whole) % whole
            rgb = self._panorama[:, left : left + width].copy()
            yield Frame(rgb, Fraction(number) / Fraction(self._rate), 1 / Fraction(self._rate))
            late = int((time.monotonic() - began) * self._rate)
            number = max(number + 1, late)


def _panorama(width: int, height: int) -> np.ndarray:
    """Draw a landscape three times as wide as a frame, twice side by side: its ends meet."""
    whole = 3 * width
    down = np.linspace(0, 1, height)[:, None, None]
    sky = (_SKY * (1 - down) + _HORIZON * down).repeat(whole, 1)
    image = Image.fromarray(sky.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    random = np.random.default_rng(0)
    x, y, radius = whole / 3, 0.28 * height, 0.13 * height
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 238, 190))
    turn = np.linspace(0, 2 * np.pi, whole)
    for level, swing, waves, color in _HILLS:
        phases = random.uniform(0, 2 * np.pi, 2)
        top = level + swing * np.sin(waves * turn + phases[0]) * 0.6
        top = (top + swing * np.sin((2 * waves + 1) * turn + phases[1]) * 0.4) * height
        draw.polygon([(0, height), *enumerate(top), (whole, height)], color)
        for x in random.integers(0.05 * whole, 0.95 * whole, 4 * waves):  # trees
            tall, foot = 0.35 * swing * height * random.uniform(2, 4), top[x] + 0.02 * height
            shade = tuple(int(part * random.uniform(0.6, 0.9)) for part in color)
            draw.polygon([(x - tall / 4, foot), (x, foot - tall), (x + tall / 4, foot)], shade)
    return np.tile(np.asarray(image), (1, 2, 1))
