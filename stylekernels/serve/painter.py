"""The painter: every picture of the server is made here, one after the other, in one thread."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from stylekernels.inference import Stylizer, blend
from stylekernels.models import StyleGenerator
from stylekernels.serve.messages import Look
from stylekernels.serve.threads import run_in

Result = TypeVar("Result")

#: Pixels of all frame sizes that stay prepared: about 100 bytes of memory each.
_PREPARED_PIXELS = 8_000_000


class Painter:
    """Paints frames in the styles on offer.

    Args:
        styles: for each name on offer, what ``StyleGenerator.from_pretrained`` opens.
        device: the device that the networks run on.
    """

    def __init__(self, styles: Mapping[str, str], device: torch.device | str = "cpu") -> None:
        self.styles = dict(styles)
        self._device = device
        self._generators: dict[str, StyleGenerator] = {}
        self._stylizers: OrderedDict[tuple[str, int, int], Stylizer] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "painter")

    async def run(self, work: Callable[[], Result], seconds: float) -> Result:
        """Run a function in the painter's thread, as `run_in`."""
        return await run_in(self._thread, work, seconds)

    def paint(self, rgb: np.ndarray, look: Look) -> np.ndarray:
        """Paint a frame, (H, W, 3) uint8. Call it only in the painter's thread."""
        stylized = self._stylizer(look.style, *rgb.shape[:2])(rgb)
        return blend(rgb, stylized, strength=look.strength, preserve_colors=look.preserve_colors)

    def close(self) -> None:
        """End the thread, after the picture that it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _stylizer(self, style: str, height: int, width: int) -> Stylizer:
        """Return a Stylizer for a style and a size of frames.

        A Stylizer prepares for one size. Clients of several sizes and styles take turns here, so
        each combination has its own, as long as memory allows.
        """
        key = style, height, width
        if key not in self._stylizers:
            if style not in self._generators:
                self._generators[style] = StyleGenerator.from_pretrained(self.styles[style])
            self._stylizers[key] = Stylizer(self._generators[style], device=self._device)
        self._stylizers.move_to_end(key)
        while len(self._stylizers) > 1 and self._prepared_pixels() > _PREPARED_PIXELS:
            self._stylizers.popitem(last=False)
        return self._stylizers[key]

    def _prepared_pixels(self) -> int:
        return sum(height * width for _, height, width in self._stylizers)
