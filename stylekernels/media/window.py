"""A window that shows pictures and takes keys."""

import numpy as np

from stylekernels.media.opencv import check_windows, opencv


class Window:
    """A window of OpenCV. All calls must come from one thread, on macOS the main one.

    Args:
        title: text in its title bar.
        size: width and height of the pictures at first; it can be enlarged.

    Raises:
        OpenCvError: as `check_windows`.
    """

    def __init__(self, title: str, size: tuple[int, int]) -> None:
        check_windows()
        self._cv2, self._title = opencv(), title
        cv2 = self._cv2
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(title, *size)
        self.full_screen = False

    def show(self, rgb: np.ndarray) -> None:
        """Show pixels (H, W, 3) uint8 at the next call of `key`."""
        self._cv2.imshow(self._title, self._cv2.cvtColor(rgb, self._cv2.COLOR_RGB2BGR))

    def key(self) -> str:
        """Let the window work for a moment, and return the key that was pressed, or ''."""
        code = self._cv2.waitKey(1)
        return chr(code & 0xFF) if code >= 0 else ""

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed it."""
        return self._cv2.getWindowProperty(self._title, self._cv2.WND_PROP_VISIBLE) >= 1

    def toggle_full_screen(self) -> None:
        """Fill the screen, or return to a window."""
        self.full_screen = not self.full_screen
        cv2 = self._cv2
        state = cv2.WINDOW_FULLSCREEN if self.full_screen else cv2.WINDOW_NORMAL
        cv2.setWindowProperty(self._title, cv2.WND_PROP_FULLSCREEN, state)

    def close(self) -> None:
        self._cv2.destroyAllWindows()
