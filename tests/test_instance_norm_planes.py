"""Planes of few levels, as drawings and dark borders have them: sums must not lose digits."""

import pytest
import torch
from torch.nn import functional as F

from stylekernels import instance_norm, instance_norm_stats
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
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_variance_of_constant_planes_is_not_negative(layout) -> None:
    """Without eps, the root of a negative variance would be NaN instead of 0."""
    for height in range(1, 41):
        x = random(1, 5, 1, 1, seed=height).expand(1, 5, height, 40)
        x = laid_out(x, layout)
        mean, var = instance_norm_stats(x)
        assert (var >= 0).all(), f"{height} x 40 pixels: {var.min():.3g}"
        y = instance_norm(x, stats=(mean, var), eps=0.0)
        assert torch.equal(y, torch.zeros_like(x))
