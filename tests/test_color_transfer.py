"""Colour transfer: the colours of a photo afterwards, and the properties that it keeps."""

import pytest
import torch

from stylekernels.training.color_transfer import ColorTransfer


def picture(seed, height=48, width=64, mean=(0.5, 0.5, 0.5), spread=0.1):
    """Random colours inside [0, 1] with correlated channels."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.eye(3) + 0.6 * torch.randn(3, 3, generator=random)
    colors = turn @ torch.rand(3, height * width, generator=random).sub(0.5)
    colors = torch.tensor(mean)[:, None] + spread * colors
    return colors.clamp(0, 1).view(3, height, width)


def moments(image):
    """Mean (3) and covariance (3, 3) of its colours."""
    colors = image.double().flatten(1)
    return colors.mean(1), torch.cov(colors)


PAINTING = picture(1, 70, 90, mean=(0.25, 0.4, 0.7), spread=0.25)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_photos_get_the_moments_of_the_painting(seed):
    photo = picture(seed, mean=(0.6, 0.5, 0.3))
    mean, covariance = moments(PAINTING)
    scale = covariance.abs().max()
    assert (moments(photo)[0] - mean).abs().max() > 0.3
    assert (moments(photo)[1] - covariance).abs().max() > 0.6 * scale
    (got,) = ColorTransfer(PAINTING)(photo[None])
    torch.testing.assert_close(moments(got)[0], mean, rtol=0, atol=0.01)
    torch.testing.assert_close(moments(got)[1], covariance, rtol=0, atol=0.2 * scale.item())


def test_a_strength_between_mixes_the_colors():
    photo = picture(2, mean=(0.6, 0.5, 0.3))[None]
    full, none = (ColorTransfer(PAINTING, strength)(photo) for strength in (1.0, 0.0))
    assert torch.equal(none, photo)
    mixed = ColorTransfer(PAINTING, 0.25)(photo)
    torch.testing.assert_close(mixed, photo + 0.25 * (full - photo), rtol=0, atol=1e-6)


def test_each_photo_has_a_map_of_its_own():
    photos = torch.stack([picture(2), picture(3, mean=(0.2, 0.8, 0.5))])
    transfer = ColorTransfer(PAINTING)
    torch.testing.assert_close(transfer(photos)[1:], transfer(photos[1:]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [None, 6])
def test_a_photo_with_the_colours_of_the_painting_stays(levels):
    """Even with so few colours that many quantiles are equal; to a level or so of 255, because
    colours are interpolated."""
    painting = PAINTING if levels is None else (PAINTING * levels).round() / levels
    shuffled = painting.flatten(1)[:, torch.randperm(6300, generator=torch.Generator())]
    photo = shuffled.view(1, 3, 63, 100)
    torch.testing.assert_close(ColorTransfer(painting)(photo), photo, rtol=0, atol=6e-3)


def test_equal_colors_stay_equal_and_order_does_not_matter():
    few = (picture(5) * 4).round() / 4
    (got,) = ColorTransfer(PAINTING)(few[None])
    old, column = torch.unique(few.flatten(1), dim=1, return_inverse=True)
    new = got.flatten(1)
    for color in range(old.shape[1]):
        same = new[:, column == color]
        assert (same - same[:, :1]).abs().max() < 1e-5


def test_a_grey_photo_takes_no_side():
    """Its colours vary in one direction only; in the others it gets the painting's mean."""
    grey = torch.linspace(0.1, 0.9, 4096).view(1, 1, 64, 64).expand(1, 3, 64, 64)
    (got,) = ColorTransfer(PAINTING)(grey)
    torch.testing.assert_close(moments(got)[0], moments(PAINTING)[0], rtol=0, atol=0.02)
    light, theirs = got.mean(0).flatten(), PAINTING.mean(0).flatten().sort().values
    assert light.diff().min() > -1e-3
    assert light[-64:].mean() - light[:64].mean() > 0.7 * (theirs[-64:].mean() - theirs[:64].mean())


@pytest.mark.parametrize("level", [0.0, 0.37, 1.0])
def test_a_photo_of_one_color_becomes_the_mean_of_the_painting(level):
    (got,) = ColorTransfer(PAINTING)(torch.full((1, 3, 40, 40), level))
    assert (got - got[:, :1, :1]).abs().max() < 1e-5
    torch.testing.assert_close(moments(got)[0], moments(PAINTING)[0], rtol=0, atol=0.02)


def test_a_painting_of_one_color_leaves_no_other():
    color = torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    (got,) = ColorTransfer(color.expand(3, 32, 32))(picture(2)[None])
    torch.testing.assert_close(got, color.expand_as(got), rtol=0, atol=1e-5)


def test_result_stays_in_range_and_keeps_the_dtype():
    """The painting's colours reach the corners of the cube, the photo's too."""
    painting = picture(6, spread=2.0)
    photo = picture(7, spread=2.0)[None].half()
    got = ColorTransfer(painting)(photo)
    assert got.dtype == torch.float16
    assert got.shape == photo.shape
    assert got.min() >= 0
    assert got.max() <= 1


def test_autocast_and_gradients_stay_outside():
    transfer = ColorTransfer(PAINTING)
    photo = picture(2)[None].requires_grad_()
    expected = transfer(photo)
    assert not expected.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transfer(photo), expected)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"painting: expected an image \(3, H, W\), got \(1, 3, 8"):
        ColorTransfer(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"photos: expected images \(N, 3, H, W\), got \(3, 8, 8"):
        ColorTransfer(PAINTING)(torch.rand(3, 8, 8))
