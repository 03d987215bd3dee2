"""A painter of live pictures, whose style and strength change while it paints."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stylekernels.inference.blend import blend
from stylekernels.inference.stylizer import Stylizer
from stylekernels.media.stages import Latest


@dataclass(frozen=True)
class Look:
    """How a style is mixed with the photo, as in `blend`."""

    strength: float = 1.0
    preserve_colors: bool = False


class LivePainter:
    """Paints pixels in the style and with the look of the moment.

    A style is opened in a thread of its own, which also paints a first picture in it, so that its
    weights are packed and its memory is there. Until then pictures are painted in the style before.

    Args:
        style: the first style, as for ``open_style``.
        styles: those that `choose` goes through.
        open_style: opens a style; called for the first one now, for others in another thread.

    Attributes:
        look: strength and colours; replace it at any time.
        style: the style of the pictures.
        wanted: the style that was chosen last, if it can be opened. It differs from ``style`` while
            it is opened.
        problem: why the style that was chosen last could not be opened; None if it could.

    Raises:
        Exception: the error of ``open_style`` for the first style.
    """

    def __init__(
        self,
        style: str,
        styles: Sequence[str],
        open_style: Callable[[str], Stylizer],
        look: Look | None = None,
    ) -> None:
        self.look = look or Look()
        self.style = self.wanted = style
        self.problem: str | None = None
        self._styles = list(styles) if style in styles else [style, *styles]
        self._place = self._styles.index(style)
        self._wishing = threading.Lock()
        self._open = open_style
        self._stylizer = open_style(style)
        self._shape: tuple[int, ...] | None = None
        self._wishes, self._opened = Latest(), Latest()
        threading.Thread(target=self._open_wishes, daemon=True).start()

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Paint pixels (H, W, 3) uint8. Calls must not overlap."""
        opened = self._opened.take(timeout=0)
        if opened is not None:
            self.style, self._stylizer = opened
        self._shape = rgb.shape
        look = self.look
        if look.strength == 0:
            return rgb
        picture = self._stylizer(rgb)
        if look == Look():
            return picture
        return blend(rgb, picture, strength=look.strength, preserve_colors=look.preserve_colors)

    def choose(self, step: int) -> None:
        """Choose the style that is ``step`` places further in the list than the last choice, even
        if that could not be opened."""
        with self._wishing:
            self._place = (self._place + step) % len(self._styles)
            self.wanted = self._styles[self._place]
            self.problem = None
            self._wishes.put(self.wanted)

    def close(self) -> None:
        """Open no more styles."""
        self._wishes.close()

    def _open_wishes(self) -> None:
        opened = self.style  # last: the next picture is painted in it
        for style in self._wishes:
            try:
                stylizer = self._open(style)
                if self._shape is not None:
                    stylizer(np.zeros(self._shape, np.uint8))
                self._opened.put((style, stylizer))
                opened = style
            except Exception as error:  # whatever it is, painting goes on in the style before
                with self._wishing:
                    self.problem = str(error)
                    if self.wanted == style:
                        self.wanted = opened
