"""The paintings that a style is learnt from: reading, grain, crops."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from stylekernels.training.art import Art, grain, without_grain
from stylekernels.training.errors import SettingError
from tests.training_runs import blobs


def flat_painting(level, seed=0):
    """Two flat areas with an edge between them, and noise: (3, 96, 128)."""
    x = torch.full((3, 96, 128), 0.3)
    x[:, :, 64:] = torch.tensor([0.7, 0.6, 0.4])[:, None, None]
    noise = torch.randn(1, 96, 128, generator=torch.Generator().manual_seed(seed))
    return (x + level * noise).clamp(0, 1)


@pytest.mark.parametrize("level", [0.004, 0.02, 0.05])
def test_grain_is_the_deviation_of_fine_noise(level):
    # A 5x5 binomial blur keeps 0.28 of white noise's amplitude, and 0.89 of it is left.
    assert grain(flat_painting(level)) == pytest.approx(0.89 * level, rel=0.1)


def test_grain_goes_and_edges_stay():
    painting = flat_painting(0.02)
    smooth = without_grain(painting, grain(painting))
    assert grain(smooth) < 0.35 * grain(painting)
    step = (smooth[:, :, 66:70].mean((1, 2)) - smooth[:, :, 58:62].mean((1, 2))).abs()
    torch.testing.assert_close(step, torch.tensor([0.4, 0.3, 0.1]), rtol=0.1, atol=0)
    clean = flat_painting(0.0)
    torch.testing.assert_close(without_grain(clean, 0.02), clean, rtol=0, atol=0.03)


def test_only_grain_is_smoothed(tmp_path):
    """A clean scan and rough brushwork are left as they are."""
    for name, level in (("clean", 0.002), ("canvas", 0.02), ("brush", 0.1)):
        pixels = flat_painting(level).mul(255).round().byte().permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.png")
    for name, smoothed in (("clean", 0), ("canvas", 1), ("brush", 0)):
        path, stroke = tmp_path / f"{name}.png", 128 / 512
        art = Art.read(path, stroke, smooth=True, skip=pytest.fail)
        assert art.smoothed == smoothed, name
        as_it_is = Art.read(path, stroke, smooth=False, skip=pytest.fail).paintings[0]
        assert torch.equal(art.paintings[0], as_it_is) == (not smoothed)


def test_a_folder_is_one_artist(tmp_path):
    (tmp_path / "art" / "late").mkdir(parents=True)
    for i, name in enumerate(("a.png", "late/b.png")):
        blobs(i, 200 + 100 * i, 100).save(tmp_path / "art" / name)
    (tmp_path / "art" / "c.jpg").write_text("no picture")
    problems = []
    art = Art.read(tmp_path / "art", 0.25, smooth=False, skip=problems.append)
    assert [tuple(p.shape) for p in art.paintings] == [(3, 64, 128), (3, 43, 128)]
    assert len(problems) == 1
    assert "c.jpg" in problems[0]
    assert art.colors().shape == (3, 1, (64 + 43) * 128)
    alone = Art.read(tmp_path / "art" / "a.png", 0.25, smooth=False, skip=pytest.fail)
    assert alone.digest != art.digest
    digest = art.digest
    (tmp_path / "art" / "a.png").rename(tmp_path / "art" / "z.png")
    assert Art.read(tmp_path / "art", 0.25, smooth=False, skip=problems.append).digest == digest
    (tmp_path / "none").mkdir()
    with pytest.raises(SettingError, match=r"^art: expected paintings in .*none, found none"):
        Art.read(tmp_path / "none", 0.25, smooth=False, skip=pytest.fail)


def test_crops_follow_from_the_seed_and_lie_inside():
    """Crops of a horizontal ramp: a little turned and zoomed, perhaps mirrored."""
    ramp = torch.linspace(0, 1, 256).expand(3, 192, 256)
    art = Art([ramp])
    crops = art.crops(24, 64, "1 2")
    assert crops.shape == (24, 3, 64, 64)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(crops, art.crops(24, 64, "1 2"))
    assert not torch.equal(crops, art.crops(24, 64, "1 3"))
    along = (crops[:, 0, :, -1] - crops[:, 0, :, 0]).mean(1) * 255 / 63  # pixels per pixel
    down = (crops[:, 0, -1, :] - crops[:, 0, 0, :]).mean(1) * 255 / 63
    assert {-1.0, 1.0} == {*along.sign().tolist()}
    zoom = (along.square() + down.square()).sqrt()
    assert 0.8 <= zoom.min() < 0.95 < 1.05 < zoom.max() <= 1.25
    angle = torch.atan2(down, along.abs()).rad2deg()
    assert -10.1 < angle.min() < -3
    assert 3 < angle.max() < 10.1


def test_a_painting_smaller_than_the_crop_is_reflected():
    painting = torch.rand(3, 40, 300, generator=torch.Generator().manual_seed(0))
    crops = Art([painting]).crops(4, 96, "0")
    assert crops.min() > 0
    assert crops.max() <= 1
    rows = F.avg_pool2d(crops, (1, 96))[..., 0]
    assert rows.std(2).min() > 0.01  # no row is a stretched border


def test_several_paintings_give_crops_alike():
    dark, bright = torch.full((3, 80, 80), 0.1), torch.full((3, 80, 80), 0.9)
    levels = Art([dark, bright]).crops(64, 48, "0").mean((1, 2, 3))
    assert 16 < (levels > 0.5).sum() < 48
    np.testing.assert_allclose(sorted({round(level.item(), 3) for level in levels}), [0.1, 0.9])
