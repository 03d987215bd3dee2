"""A window that shows pictures and takes keys."""

import numpy as np

from stylekernels.media.opencv import check_windows, opencv


class Window:
    """A window of OpenCV. All calls must come from one thread, on macOS the main one.

    Args:
        title: text in its title bar.

    Raises:
        OpenCvError: as `check_windows`.
    """

    def __init__(self, title: str) -> None:
        check_windows()
        self._cv2, self._title = opencv(), title
        cv2 = self._cv2
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        self.full_screen = False
        self._shape: tuple[int, ...] | None = None

    def show(self, rgb: np.ndarray) -> None:
        """Show pixels (H, W, 3) uint8 at the next call of `key`.

        The window takes their size when that is new. The user may change it.
        """
        if rgb.shape != self._shape and not self.full_screen:
            self._cv2.resizeWindow(self._title, *rgb.shape[1::-1])
            self._shape = rgb.shape
        bgr = self._cv2.cvtColor(self._on_black(rgb), self._cv2.COLOR_RGB2BGR)
        self._cv2.imshow(self._title, bgr)

    def _on_black(self, rgb: np.ndarray) -> np.ndarray:
        """Add black bars up to the shape of the window, so that pictures keep theirs. The bars of
        OpenCV are white."""
        *_, wide, high = self._cv2.getWindowImageRect(self._title)
        height, width = rgb.shape[:2]
        if min(wide, high) <= 0:  # not on the screen yet
            return rgb
        x = max(0, height * wide // high - width) // 2
        y = max(0, width * high // wide - height) // 2
        return self._cv2.copyMakeBorder(rgb, y, y, x, x, self._cv2.BORDER_CONSTANT)

    def key(self) -> str:
        """Let the window work for a moment, and return the character that was typed, or ''."""
        # Bits above the lowest 16 are modifiers such as Num Lock in GTK, and arrows on Windows.
        # Arrows of other systems are codes above ASCII.
        code = self._cv2.waitKeyEx(1)
        key = code & 0xFFFF
        return chr(key) if code >= 0 and 0 < key < 0x80 else ""

    @property
    def is_open(self) -> bool:
        """Return True until the user closes the window."""
        try:
            return self._cv2.getWindowProperty(self._title, self._cv2.WND_PROP_VISIBLE) >= 1
        except self._cv2.error:  # Qt ends with its last window
            return False

    def toggle_full_screen(self) -> None:
        """Fill the screen, or return to a window."""
        self.full_screen = not self.full_screen
        cv2 = self._cv2
        state = cv2.WINDOW_FULLSCREEN if self.full_screen else cv2.WINDOW_NORMAL
        cv2.setWindowProperty(self._title, cv2.WND_PROP_FULLSCREEN, state)

    def close(self) -> None:
        self._cv2.destroyAllWindows()
