"""Less flicker of videos, without ghosts of what moves."""

import itertools

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from stylekernels.media.smoothing import Smoother  # noqa: E402

SIZE = (96, 128)


class Flickering:
    """Paints a frame as it is, with brightness that changes at random from frame to frame."""

    def __init__(self):
        self.random = np.random.default_rng(0)
        self.seen = []

    def __call__(self, frame):
        noise = self.random.integers(-30, 31, (12, 16, 1)).repeat(8, 0).repeat(8, 1)
        self.seen.append(np.clip(frame.astype(int) + noise, 0, 255).astype(np.uint8))
        return self.seen[-1]


def textured(seed=1, shift=0):
    """A picture of soft blotches, moved to the right by a number of pixels."""
    noise = np.random.default_rng(seed).integers(60, 196, (*SIZE, 3), np.uint8)
    noise = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 60, 195, cv2.NORM_MINMAX)
    return np.roll(noise, shift, 1)


def flicker(pictures, shift=0):
    """Mean change from a picture to the next one, along the motion and away from the borders."""
    steps = [
        np.abs(np.roll(before, shift, 1).astype(int) - after)[16:-16, 16:-16].mean()
        for before, after in itertools.pairwise(pictures)
    ]
    return np.mean(steps)


@pytest.mark.parametrize("smooth", ["still", "motion"])
def test_what_stands_still_flickers_less(smooth):
    random, painter = np.random.default_rng(2), Flickering()
    smoother = Smoother(painter, smooth)
    frame = textured().astype(int)
    frames = [np.clip(frame + random.integers(-9, 10, frame.shape), 0, 255) for _ in range(12)]
    made = [smoother(frame.astype(np.uint8)) for frame in frames]
    assert flicker(made) < 0.4 * flicker(painter.seen)
    assert np.array_equal(made[0], painter.seen[0])
    assert np.abs(np.mean(made[4:], 0) - frame).mean() < 8  # brightness and colours stay


def test_flow_follows_what_moves():
    painter = Flickering()
    smoother = Smoother(painter, "motion")
    made = [smoother(textured(shift=3 * i)) for i in range(10)]
    assert flicker(made, 3) < 0.6 * flicker(painter.seen, 3)


def moving_block(step):
    """A light block that moves to the right by a number of pixels from frame to frame."""
    for i in range(84 // step):
        frame = np.full((*SIZE, 3), 40, np.uint8)
        frame[30:60, 10 + step * i : 34 + step * i] = 220
        yield frame


@pytest.mark.parametrize("step", [2, 12])
def test_nothing_stays_behind_what_moves(step):
    smoother = Smoother(lambda frame: 255 - frame, "still")
    for frame in moving_block(step):
        assert np.abs(smoother(frame).astype(int) - (255 - frame)).max() <= 2


@pytest.mark.parametrize("step", [2, 12])
def test_strokes_beside_what_moves_leave_no_ghosts(step):
    def paint(frame):  # a stroke six pixels beside the thing, where the frame itself is flat
        outline = cv2.dilate(frame, np.ones((13, 13))) != cv2.dilate(frame, np.ones((11, 11)))
        return np.where(outline, 0, 200).astype(np.uint8)

    smoother = Smoother(paint, "still")
    for frame in moving_block(step):
        ghosts = np.abs(smoother(frame).astype(int) - paint(frame))
        assert (ghosts > 60).mean() < 0.01


def test_flow_leaves_what_is_uncovered_to_the_new_picture():
    smoother, ground, thing = (
        Smoother(lambda frame: 255 - frame, "motion"),
        textured(1),
        textured(2),
    )
    for i in range(20):
        frame = ground // 2
        frame[30:60, 10 + 4 * i : 34 + 4 * i] = thing[:30, :24]
        error = np.abs(smoother(frame).astype(int) - (255 - frame))
        assert error.mean() < 3
        assert np.quantile(error, 0.999) < 40


def test_flow_leaves_what_comes_into_the_picture_to_the_new_picture():
    smoother = Smoother(lambda frame: 255 - frame, "motion")
    for i in range(10):
        frame = textured(shift=3 * i) // 6
        assert np.abs(smoother(frame).astype(int) - (255 - frame)).max() < 40


@pytest.mark.parametrize("smooth", ["still", "motion"])
def test_a_cut_begins_anew(smooth):
    smoother = Smoother(Flickering(), smooth)
    for _ in range(3):
        smoother(textured(1))
    after = textured(7) // 3
    after[:20] = textured(1)[:20]  # a bar that both scenes have
    assert np.array_equal(smoother(after), smoother._paint.seen[-1])


def test_frames_whose_memory_is_used_again_and_other_sizes():
    smoother, buffer = Smoother(Flickering(), "still"), textured(1)
    smoother(buffer)
    buffer[:] = textured(9)
    assert np.array_equal(smoother(buffer), smoother._paint.seen[-1])
    small = np.full((31, 40, 3), 90, np.uint8)
    assert Smoother(lambda frame: frame, "motion")(small).shape == small.shape
    smoother = Smoother(lambda frame: frame, "motion")
    for shape in ((16, 300, 3), (32, 32, 3), (33, 57, 3)):
        frame = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        for _ in range(3):
            assert smoother(frame).shape == shape
