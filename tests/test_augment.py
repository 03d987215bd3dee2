"""Random changes of pictures: the formulas, picture by picture, and their gradients."""

import pytest
import torch

from stylekernels.training.augment import augment

NOTHING = {"color": 0.0, "translation": 0.0, "cutout": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, height=16, width=24, dtype=torch.float64):
    return torch.rand(count, 3, height, width, dtype=dtype, generator=seeded(9)) * 0.8 + 0.1


def numbers(count, dtype=torch.float64):
    """The random numbers that ``augment`` draws, (7, count)."""
    return torch.rand(7, count, 1, 1, 1, dtype=dtype, generator=seeded())[..., 0, 0, 0]


def test_strengths_of_zero_change_nothing():
    x = pictures()
    assert torch.equal(augment(x, **NOTHING), x)


@pytest.mark.parametrize("color", [1.0, 0.3])
def test_colors(color):
    """Brightness, then saturation about the pixel's grey, then contrast about the mean."""
    x = pictures()
    y = augment(x, **NOTHING | {"color": color}, generator=seeded())
    assert (y - x).flatten(1).abs().amax(1).min() > 0.01
    for i, (brightness, saturation, contrast) in enumerate((2 * numbers(6)[:3] - 1).T.tolist()):
        one = x[i] + 0.25 * color * brightness
        grey = one.sum(0) / 3
        one = torch.stack([grey + (plane - grey) * (1 + color * saturation) for plane in one])
        one = one.mean() + (one - one.mean()) * (1 + color * contrast / 2)
        torch.testing.assert_close(y[i], one, rtol=1e-12, atol=1e-12)


def test_shifts_are_whole_pixels_with_grey_behind():
    x = pictures(40)
    y = augment(x, **NOTHING | {"translation": 0.25}, generator=seeded())
    seen = set()
    for i, (down, right) in enumerate((2 * numbers(40)[3:5] - 1).T.tolist()):
        down, right = round(0.25 * 16 * down), round(0.25 * 24 * right)
        expected = torch.full_like(x[i], 0.5)
        for row in range(16):
            for column in range(24):
                if 0 <= row - down < 16 and 0 <= column - right < 24:
                    expected[:, row, column] = x[i, :, row - down, column - right]
        assert torch.equal(y[i], expected), i
        seen.add((down, right))
    assert len(seen) > 30  # every picture has its own
    assert {abs(down) for down, _ in seen} >= {0, 1, 2, 3}


def test_a_square_is_covered():
    x = pictures(60, 32, 32)
    y = augment(x, **NOTHING | {"cutout": 0.5}, generator=seeded())
    changed = (y != x).any(1)
    assert (y == torch.where(changed[:, None], 0.5, x)).all()
    corners = set()
    for mask in changed:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask.sum() == len(rows) * len(columns)  # a rectangle without gaps
        for side in (rows, columns):
            assert len(side) == side[-1] - side[0] + 1
            inside = side[0] > 0 and side[-1] < 31
            assert len(side) in ((16,) if inside else range(7, 17))
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 30


def test_the_global_generator_decides():
    x, strengths = pictures(dtype=torch.float32), {"color": 1.0, "translation": 0.2, "cutout": 0.4}
    torch.manual_seed(3)
    first = augment(x, **strengths)
    second = augment(x, **strengths)
    torch.manual_seed(3)
    assert torch.equal(augment(x, **strengths), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.float32


def test_a_strength_does_not_change_the_numbers_of_another():
    x = pictures()
    shifted = augment(x, **NOTHING | {"translation": 0.2}, generator=seeded())
    both = augment(x, color=0.0, translation=0.2, cutout=0.3, generator=seeded())
    assert (both == shifted).float().mean() > 0.7


def test_gradients_of_both_orders():
    x = pictures(2, 6, 6).requires_grad_()

    def changed(x):
        return augment(x, color=1.0, translation=0.3, cutout=0.4, generator=seeded())

    assert torch.autograd.gradcheck(changed, x)
    assert torch.autograd.gradgradcheck(lambda x: changed(x).square(), x)


def test_channels_last_stays():
    x = pictures().contiguous(memory_format=torch.channels_last)
    y = augment(x, color=1.0, translation=0.1, cutout=0.5)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "strengths", "message"),
    [
        ((2, 4, 8, 8), {}, r"^x: expected RGB pictures \(N, 3, H, W\), got \(2, 4, 8, 8\)$"),
        ((3, 8, 8), {}, r"^x: expected RGB pictures \(N, 3, H, W\), got \(3, 8, 8\)$"),
        ((2, 3, 8, 8), {"color": 1.5}, r"^color: expected a number from 0 to 1, got 1\.5$"),
        ((2, 3, 8, 8), {"translation": -1}, r"^translation: expected a number from 0 to 1, got -1"),
        ((2, 3, 8, 8), {"cutout": float("nan")}, r"^cutout: expected a number from 0 to 1, got n"),
    ],
)
def test_refusals(shape, strengths, message):
    with pytest.raises(ValueError, match=message):
        augment(torch.rand(shape), **NOTHING | strengths)
