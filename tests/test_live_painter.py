"""The painter of live pictures: styles change while it paints."""

import threading
import time

import numpy as np
import pytest

from stylekernels.inference import Stylizer, blend
from stylekernels.inference.live_painter import LivePainter, Look

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
LEVELS = {"mine": 5, "a": 10, "b": 20, "c": 30}


class Plain:
    """A style that paints one level of grey."""

    def __init__(self, level):
        self.level = level
        self.threads = []

    def __call__(self, rgb):
        self.threads.append(threading.get_ident())
        return np.full_like(rgb, self.level)


class Opener:
    """Opens styles when it is told to; knows which were opened."""

    def __init__(self):
        self.go, self.opened, self.styles = threading.Event(), [], {}

    def __call__(self, style):
        if self.opened:
            self.go.wait()
        self.opened.append(style)
        if style not in LEVELS:
            raise ValueError(f"{style}: damaged")
        self.styles[style] = Plain(LEVELS[style])
        return self.styles[style]


@pytest.fixture
def opener():
    opener = Opener()
    yield opener
    opener.go.set()


def level(painter):
    return int(painter(PHOTO)[0, 0, 0])


def until(condition, seconds=20.0, work=lambda: None):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        work()
        time.sleep(0.002)


def paint_until(painter, condition):
    until(condition, work=lambda: painter(PHOTO))


def test_the_old_style_paints_while_the_next_is_opened(opener):
    painter = LivePainter("a", ["a", "b", "c"], opener)
    painter.choose(1)
    assert [level(painter) for _ in range(50)] == [10] * 50
    assert (painter.style, painter.wanted) == ("a", "b")
    opener.go.set()
    paint_until(painter, lambda: painter.style == "b")
    assert level(painter) == 20
    first, *others = opener.styles["b"].threads
    assert first != threading.get_ident()  # the first picture, which takes longest, is not ours
    assert others
    painter.close()


def test_the_newest_wish_wins(opener):
    painter = LivePainter("a", ["a", "b", "c"], opener)
    painter.choose(1)
    time.sleep(0.05)  # b is being opened
    for _ in range(4):
        painter.choose(1)
    assert painter.wanted == "c"
    opener.go.set()
    paint_until(painter, lambda: painter.style == "c")
    assert opener.opened == ["a", "b", "c"]
    painter.choose(1)
    assert painter.wanted == "a"
    painter.choose(-1)
    painter.choose(-1)
    assert painter.wanted == "b"
    painter.close()


def test_a_style_that_cannot_be_opened_is_said(opener):
    opener.go.set()
    painter = LivePainter("mine", ["a", "broken"], opener)
    painter.choose(-1)
    paint_until(painter, lambda: painter.problem is not None)
    assert painter.problem == "broken: damaged"
    paint_until(painter, lambda: painter.wanted == "mine")  # not for ever the one that is broken
    assert (painter.style, level(painter)) == ("mine", 5)
    painter.choose(-1)
    paint_until(painter, lambda: painter.style == "a")
    assert painter.problem is None
    painter.close()


def test_a_style_that_waits_for_its_first_picture_stays_wanted_after_a_broken_one(opener):
    opener.go.set()
    painter = LivePainter("a", ["a", "b", "broken"], opener)
    painter.choose(1)
    until(lambda: opener.opened == ["a", "b"])
    painter.choose(1)
    until(lambda: painter.problem is not None)
    paint_until(painter, lambda: painter.style == "b")
    until(lambda: painter.wanted == "b")
    painter.choose(1)  # the list goes on after the broken one
    paint_until(painter, lambda: (painter.style, painter.wanted) == ("a", "a"))
    painter.close()


@pytest.mark.parametrize(
    "look", [Look(), Look(0.3), Look(preserve_colors=True), Look(0.5, preserve_colors=True)]
)
def test_strength_and_colours(generator, look):
    stylizer = Stylizer(generator)
    painter = LivePainter("mine", [], lambda style: stylizer, look)
    expected = blend(
        PHOTO, stylizer(PHOTO), strength=look.strength, preserve_colors=look.preserve_colors
    )
    np.testing.assert_array_equal(painter(PHOTO), expected)
    assert not np.array_equal(expected, PHOTO)
    painter.close()


def test_without_strength_the_network_rests(opener):
    painter = LivePainter("a", ["a"], opener, Look(0.0))
    np.testing.assert_array_equal(painter(PHOTO), PHOTO)
    assert opener.styles["a"].threads == []
    painter.look = Look()
    assert level(painter) == 10
    painter.close()
