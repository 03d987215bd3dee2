"""Text over a picture, and the window that shows it."""
# ruff: noqa: N802  # names of OpenCV

import numpy as np
import pytest

from stylekernels.cli.live_view import KEYS
from stylekernels.media import opencv, window
from stylekernels.media.opencv import OpenCvError
from stylekernels.media.overlay import Overlay, draw_overlay
from stylekernels.media.window import Window


def drawn(overlay, height=480, width=640, level=128):
    """Return the box of what an overlay changes, as top, bottom, left, right, and its pixels."""
    rgb = np.full((height, width, 3), level, np.uint8)
    draw_overlay(rgb, overlay)
    changed = (rgb != level).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not rows.size:
        return None, rgb
    return (rows[0], rows[-1], columns[0], columns[-1]), rgb


def test_nothing_is_written_by_default():
    assert drawn(Overlay())[0] is None


def test_places():
    top, bottom, left, right = drawn(Overlay(left="wave"))[0]
    assert top < 20
    assert bottom < 60
    assert left < 20
    assert right < 120
    top, bottom, left, right = drawn(Overlay(right="24 fps"))[0]
    assert top < 20
    assert left > 500
    assert right > 620
    wide = Overlay(left="starry night", right="11.9 fps, latency 26 ms")
    assert drawn(wide, 640, 360)[0][1] > drawn(wide)[0][1] + 15  # one below the other
    top, bottom, left, right = drawn(Overlay(recording="0:12"))[0]
    assert top > 35  # below the line above
    assert right > 620
    top, bottom, left, right = drawn(Overlay(notice="saved"))[0]
    assert bottom > 460
    assert abs((left + right) / 2 - 320) < 3


@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (480, 480)])
def test_the_help_fits(size):
    (top, bottom, left, right), _ = drawn(Overlay(keys=KEYS), *size)
    assert 0 < top < bottom < size[0] - 1
    assert 0 < left < right < size[1] - 1


@pytest.mark.parametrize("level", [0, 128, 255])
def test_text_can_be_read_on_any_picture(level):
    """White on a panel that is darker than half: contrast of more than 4.5, as for web pages."""
    (top, bottom, left, right), rgb = drawn(Overlay(left="starry night"), level=level)
    panel = rgb[top : bottom + 1, left : right + 1].mean(-1)
    light, dark = panel.max(), np.median(panel)
    assert light > 240
    linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in (light, dark)]
    assert (linear[0] + 0.05) / (linear[1] + 0.05) > 4.5


def test_a_long_notice_is_wrapped():
    notice = "camera 0: it gives no pictures any more; was it unplugged, or is another one? " * 2
    (top, bottom, left, right), _ = drawn(Overlay(notice=notice))
    assert left > 0
    assert right < 639
    assert bottom - top > 50


def test_text_grows_with_the_picture():
    small = drawn(Overlay(left="wave"), 480, 640)[0]
    large = drawn(Overlay(left="wave"), 1080, 1920)[0]
    assert large[1] - large[0] > 2 * (small[1] - small[0])


# ---- the window ---------------------------------------------------------------------------------


class FakeCv2:
    """OpenCV, as far as a window needs it. The window has the size of ``rect``."""

    error = type("error", (Exception,), {})
    framework, keys, gone = "QT", (), False

    def __init__(self):
        import cv2

        self._cv2 = cv2
        self.shown, self.sizes, self.properties, self.rect = [], [], [], (640, 480)

    def __getattr__(self, name):
        return getattr(self._cv2, name)

    def currentUIFramework(self):
        return self.framework

    def namedWindow(self, title, flags):
        self.rect = (640, 480)

    def resizeWindow(self, title, width, height):
        self.sizes.append((width, height))
        self.rect = (width, height)

    def getWindowImageRect(self, title):
        return (0, 0, *self.rect)

    def imshow(self, title, bgr):
        self.shown.append(bgr)

    def waitKeyEx(self, milliseconds):
        return self.keys.pop(0) if self.keys else -1

    def setWindowProperty(self, title, name, value):
        self.properties.append(value)

    def getWindowProperty(self, title, name):
        if self.gone:
            raise self.error("NULL guiReceiver")
        return 1.0


@pytest.fixture
def cv2(monkeypatch):
    pytest.importorskip("cv2")
    fake = FakeCv2()
    for module in (opencv, window):
        monkeypatch.setattr(module, "opencv", lambda: fake)
    monkeypatch.setenv("DISPLAY", ":0")
    return fake


def test_the_window_shows_pictures_in_their_size_and_colours(cv2):
    shown = Window("title")
    rgb = np.zeros((30, 40, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = 200, 50
    for _ in range(3):
        shown.show(rgb)
    assert cv2.sizes == [(40, 30)]
    np.testing.assert_array_equal(cv2.shown[-1], rgb[..., ::-1])


@pytest.mark.parametrize(("rect", "shape"), [((80, 30), (30, 80, 3)), ((40, 90), (90, 40, 3))])
def test_a_window_of_another_shape_has_black_bars(cv2, rect, shape):
    shown = Window("title")
    shown.show(np.full((30, 40, 3), 255, np.uint8))
    cv2.rect = rect
    shown.show(np.full((30, 40, 3), 255, np.uint8))
    assert cv2.shown[-1].shape == shape
    assert (cv2.shown[-1] == 255).sum() == 30 * 40 * 3
    assert cv2.shown[-1][shape[0] // 2, shape[1] // 2, 0] == 255


def test_keys_and_ends_of_a_window(cv2):
    shown = Window("title")
    cv2.keys = [ord("n"), 0x100000 | ord("q"), 27]
    assert [shown.key() for _ in range(4)] == ["n", "q", "\x1b", ""]
    assert shown.is_open
    cv2.gone = True
    assert not shown.is_open


def test_arrows_are_no_letters(cv2):
    """The last bytes of an arrow are a letter, of up R and of right S, or NUL on Windows."""
    shown = Window("title")
    cv2.keys = [0xFF52, 0xFF53, 0x100000 | 0xFF52, 0xF700, 0x260000, 0xE9]
    assert [shown.key() for _ in range(6)] == [""] * 6


def test_full_screen_and_back(cv2):
    shown = Window("title")
    shown.toggle_full_screen()
    shown.toggle_full_screen()
    assert cv2.properties == [cv2.WINDOW_FULLSCREEN, cv2.WINDOW_NORMAL]


def test_an_opencv_without_windows_is_refused(cv2):
    cv2.framework = ""
    with pytest.raises(OpenCvError, match="pip uninstall -y opencv-python-headless and then pip"):
        Window("title")


def test_without_a_display_there_is_no_window(cv2, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setenv("DISPLAY", "")
    with pytest.raises(OpenCvError, match="there is no display for a window"):
        Window("title")
    monkeypatch.delenv("DISPLAY")
    with pytest.raises(OpenCvError, match="there is no display for a window"):
        Window("title")
