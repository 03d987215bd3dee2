"""Colours of videos: matrix, range and header are kept; GIF in and out."""

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from tests.clips import assert_near, convert, make_clip, pictures, read_clip  # noqa: E402

# Kr and Kb of the standards, by the number of the matrix.
LUMA = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
SIDE = 16  # of a patch of one colour


def to_yuv(rgb, matrix, full):
    """RGB to YUV as ITU-R BT.601, BT.709 and BT.2020 define it, in 0..255 and not rounded."""
    kr, kb = LUMA[matrix]
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    scales = (1, 1) if full else (219 / 255, 224 / 255)
    return np.stack([y * scales[0] + 16 * (not full), u * scales[1] + 128, v * scales[1] + 128], -1)


def from_yuv(yuv, matrix, full):
    """The inverse of `to_yuv`."""
    axes = to_yuv(np.concatenate([np.zeros((1, 3)), np.eye(3)]), matrix, full)
    return (yuv - axes[0]) @ np.linalg.inv(axes[1:] - axes[0])


def patches(planes):
    """Return the YUV values at the middle of each patch of a 4:2:0 frame."""
    y, u, v = planes
    half = SIDE // 2
    return np.stack(
        [y[half::SIDE, half::SIDE], *(p[half // 2 :: half, half // 2 :: half] for p in (u, v))], -1
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize(
    ("matrix", "full", "primaries", "transfer"),
    [(6, False, 6, 6), (1, True, 1, 1), (1, False, 1, 13), (6, True, 5, 6), (9, False, 9, 14)],
)
def test_colours_are_kept(tmp_path, suffix, matrix, full, primaries, transfer):
    colors = np.random.default_rng(5).integers(10, 246, (4, 6, 3))
    yuv = np.rint(to_yuv(colors, matrix, full)).astype(np.uint8)
    y = yuv[..., 0].repeat(SIDE, 0).repeat(SIDE, 1)
    halves = [yuv[..., i].repeat(SIDE // 2, 0).repeat(SIDE // 2, 1) for i in (1, 2)]
    height, width = y.shape
    stored = np.concatenate([y.ravel(), *(half.ravel() for half in halves)])
    frame = av.VideoFrame.from_ndarray(stored.reshape(height * 3 // 2, width), "yuv420p")
    header = {
        "colorspace": matrix,
        "color_range": 1 + full,
        "color_primaries": primaries,
        "color_trc": transfer,
    }
    path = tmp_path / "in.mkv"
    make_clip(path, size=(width, height), frames=[frame], codec="ffv1", colors=header)
    assert read_clip(path).colors == (matrix, 1 + full, primaries, transfer)
    seen = []
    output = tmp_path / f"out{suffix}"
    convert(path, output, quality=0, paint=lambda rgb: seen.append(rgb) or rgb)
    middles = seen[0][SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].astype(int)
    assert np.abs(middles - colors).max() <= 3
    after = read_clip(output)
    assert after.colors == (matrix, 1 + full, primaries, transfer)
    planes = after.frames[0].to_ndarray()
    quarter = (height // 2, width // 2)
    u, v = planes[height:].reshape(2, *quarter)
    returned = from_yuv(patches((planes[:height], u, v)), matrix, full)
    assert np.abs(returned - colors).max() <= 3
    assert np.abs(returned - colors).mean() <= 1.2


def test_an_unnamed_matrix_is_guessed_and_named(tmp_path):
    path = make_clip(tmp_path / "in.mkv", frames=pictures((64, 48), 1), codec="ffv1")
    assert read_clip(path).colors == (2, 0, 2, 2)
    convert(path, tmp_path / "out.mp4")
    assert read_clip(tmp_path / "out.mp4").colors == (6, 1, 2, 2)


# ---- GIF ----------------------------------------------------------------------------------------


@pytest.fixture
def gif(tmp_path):
    """Twelve pictures of irregular durations in the colours of a fixed palette."""
    times = [0, 10, 20, 25, 60, 70, 80, 100, 110, 120, 130, 180]
    return make_clip(
        tmp_path / "in.gif",
        times=times,
        time_base=Fraction(1, 100),
        codec="gif",
        pixels="rgb8",
    )


def test_gif_to_gif(gif, tmp_path):
    convert(gif, tmp_path / "out.gif")
    before, after = read_clip(gif), read_clip(tmp_path / "out.gif")
    assert after.times == before.times
    assert after.duration == before.duration
    for now, then in zip(after.rgb, before.rgb, strict=True):  # 64 colours: all in the palette
        assert np.abs(now.astype(int) - then).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_gif_to_video(gif, tmp_path, suffix):
    convert(gif, tmp_path / f"out{suffix}")
    before, after = read_clip(gif), read_clip(tmp_path / f"out{suffix}")
    assert after.seconds == before.seconds
    assert after.colors[:2] == (6, 1)
    for now, then in zip(after.rgb, before.rgb, strict=True):
        assert_near(now, then, 18)  # half of the colours' resolution is lost
