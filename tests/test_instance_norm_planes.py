"""Planes of few levels, as drawings and dark borders have them: sums must not lose digits."""

import pytest
import torch
from torch.nn import functional as F

from stylekernels import group_norm, instance_norm, instance_norm_stats
from tests.conftest import assert_accurate, laid_out, random


def barred(size, rows, level, seed) -> torch.Tensor:
    """Planes of three neighbouring 8-bit levels under a bar of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(level - 1, level + 2, (1, 8, size, size), generator=generator) / 255
    x[:, :, :rows] = 0
    return x


@pytest.mark.every_capability
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [8, 16, 32, 34, 64])
def test_planes_under_a_dark_bar(size, rows) -> None:
    for seed, level in enumerate((3, 90, 201, 254)):
        x = barred(size, rows, level, seed)
        assert_accurate(instance_norm(x), F.instance_norm(x), F.instance_norm(x.double()))
        mean, var = instance_norm_stats(x)
        exact = x.double().var((2, 3), correction=0)
        torch.testing.assert_close(var.double(), exact, rtol=1e-6, atol=0)
        torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=1e-6, atol=0)


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_planes_without_eps(layout, dtype) -> None:
    """The root of a negative variance would be NaN. A mean that is not the constant would become 1
    or -1 instead of 0."""
    for pixels in (*range(2, 70), *range(80, 1601, 40)):
        x = random(1, 6, 1, 1, dtype=dtype, seed=pixels)[:, [0, 0, 1, 1, 2, 2]]
        x = laid_out(x.expand(1, 6, 1, pixels), layout)
        mean, var = instance_norm_stats(x)
        assert (var >= 0).all(), f"{pixels} pixels: {var.min():.3g}"
        zeros = torch.zeros_like(x)
        assert torch.equal(instance_norm(x, stats=(mean, var), eps=0.0), zeros), pixels
        assert torch.equal(instance_norm(x, eps=0.0), zeros), pixels
        assert torch.equal(group_norm(x, 3, eps=0.0), zeros), pixels


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_means_far_below_the_deviation(dtype) -> None:
    """If a shift has more bits than the values, their differences from it are all rounded alike."""
    for pixels in (256, 465, 512, 1000):
        x = random(4, 64, 1, pixels, dtype=dtype, scale=1e3, seed=pixels, shift=0.0)
        mean, _ = instance_norm_stats(x)
        error = (mean - x.double().mean((2, 3))).square().mean().sqrt()
        assert error < 1e-8 * 1e3, f"{pixels} pixels: {error:.3g}"
