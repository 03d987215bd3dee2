"""The bundled styles on real photos, against the generator in float64."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from stylekernels.inference import Stylizer
from stylekernels.inference.layers import layers_of
from stylekernels.inference.plan import Plan, pack
from stylekernels.models import StyleGenerator, bundled_styles

# Whole photos take float64 half a minute each. A part has every layer and every border, too.
PART = (slice(100, 261), slice(150, 343))


def psnr(picture: np.ndarray, exact: np.ndarray, peak: float) -> float:
    """Peak signal-to-noise ratio in dB."""
    return 10 * math.log10(peak**2 / np.square(picture - exact).mean())


@pytest.fixture(params=["kodak_04.png", "kodak_23.png"])
def photo(request, data_dir) -> np.ndarray:
    with Image.open(data_dir / "photos" / "eval" / request.param) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[PART])


@torch.inference_mode()
@pytest.mark.parametrize("style", bundled_styles())
def test_bundled_styles_on_photos(style, photo) -> None:
    generator = StyleGenerator.from_pretrained(style)
    x = torch.from_numpy(photo).permute(2, 0, 1)[None]
    exact = 255 * StyleGenerator.from_pretrained(style).double()(x.double() / 255)
    exact = exact[0].permute(1, 2, 0).numpy()
    assert np.ptp(exact) > 200, "a picture"

    layers = layers_of(generator, torch.float32)
    raw = torch.empty(1, *photo.shape)
    Plan(layers, pack(layers), 1, *photo.shape[:2])(x, raw.permute(0, 3, 1, 2))
    assert psnr(raw[0].clamp(0, 255).double().numpy(), exact, 255) >= 100
    rounded = Stylizer(generator, torch.float32)(photo).astype(int)
    assert np.abs(rounded - np.rint(exact)).max() <= 1

    ours = psnr(Stylizer(generator, torch.bfloat16)(photo).astype(float), exact, 255)
    network = generator.to(torch.bfloat16, memory_format=torch.channels_last)
    half = network((x / 255).bfloat16().contiguous(memory_format=torch.channels_last))
    in_torch = np.rint(255 * half[0].permute(1, 2, 0).double().numpy())
    assert ours >= max(40, psnr(in_torch, exact, 255))


@pytest.mark.parametrize("brightness", [40, 128, 250])
def test_little_contrast_does_not_drown_in_rounding(brightness) -> None:
    """Fog, or a dark room: noise of two levels, in whatever brightness."""
    noise = np.random.default_rng(0).normal(brightness, 2, (96, 128, 3))
    frame = noise.round().clip(0, 255).astype(np.uint8)
    generator = StyleGenerator.from_pretrained("wave")
    exact = Stylizer(generator, torch.float32)(frame).astype(float)
    assert np.ptp(exact) > 100
    assert psnr(Stylizer(generator, torch.bfloat16)(frame).astype(float), exact, 255) >= 50
    tiled = Stylizer(generator, torch.bfloat16, tile=64)(frame)
    assert psnr(tiled.astype(float), exact, 255) >= 50
