"""Colours of a picture: ICC profiles, and the colours of transparent pixels."""

import io

import numpy as np
from PIL import Image, ImageCms


def fill_hidden(colors: Image.Image, alpha: Image.Image) -> Image.Image:
    """Give invisible pixels the colours of the nearest visible ones. Their colours in the file,
    mostly black, would influence the statistics of the whole picture."""
    levels = [colors.copy()]
    while True:
        # Visible or not: premultiplied colours of nearly transparent pixels have no precision.
        seen = alpha.point(lambda value: 255 if value else 0)
        levels[-1].putalpha(seen)
        if seen.getextrema()[0] == 255 or max(seen.size) == 1:
            break
        half = tuple((side + 1) // 2 for side in seen.size)
        levels.append(levels[-1].resize(half, Image.Resampling.BOX))  # means of visible pixels
        alpha = levels[-1].getchannel("A")
    filled = levels.pop().convert("RGB")
    for level in reversed(levels):
        filled = filled.resize(level.size, Image.Resampling.BILINEAR)
        filled.paste(level.convert("RGB"), mask=level.getchannel("A"))
    return filled


def in_rgb_profile(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Convert an L, RGB, CMYK or LAB image to RGB. An RGB profile is kept; with any other one the
    result is sRGB."""
    if profile:
        try:
            source = _open_profile(profile)
            space = source.profile.xcolor_space.strip()
            if space == "RGB" and image.mode in ("L", "RGB"):
                _transform(source, _srgb())
                _transform(_srgb(), source)
                return image.convert("RGB"), profile
            if {"GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) == image.mode:
                transform = _transform(source, _srgb(), image.mode)
                return ImageCms.applyTransform(image, transform), None
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken or unusable profile: like viewers, read the file as sRGB
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.applyTransform(image, _transform(lab, _srgb(), "LAB")), None
    return image.convert("RGB"), None


def to_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert pixels from an RGB profile to sRGB, (H, W, 3) uint8."""
    return _converted(rgb, _transform(_open_profile(profile), _srgb()))


def from_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert pixels from sRGB to an RGB profile, (H, W, 3) uint8."""
    return _converted(rgb, _transform(_srgb(), _open_profile(profile)))


def _converted(rgb: np.ndarray, transform: ImageCms.ImageCmsTransform) -> np.ndarray:
    return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), transform))


def _open_profile(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _transform(source, target, mode: str = "RGB") -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        target,
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
