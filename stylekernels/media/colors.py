"""Colours of a picture: ICC profiles, and what lies under transparent pixels."""

import io

import numpy as np
from PIL import Image, ImageCms


def fill_hidden(colors: Image.Image, alpha: Image.Image) -> Image.Image:
    """The colours, with those of the nearest visible pixels where nothing is to be seen: what a
    file has there, mostly black, would count in the statistics of the whole picture."""
    levels = [colors.copy()]
    while True:
        # All or nothing: colours that are hardly visible have no precision.
        seen = alpha.point(lambda value: 255 if value else 0)
        levels[-1].putalpha(seen)
        if seen.getextrema()[0] == 255 or max(seen.size) == 1:
            break
        half = tuple((side + 1) // 2 for side in seen.size)
        levels.append(levels[-1].resize(half, Image.Resampling.BOX))  # the mean of what is visible
        alpha = levels[-1].getchannel("A")
    filled = levels.pop().convert("RGB")
    for level in reversed(levels):
        filled = filled.resize(level.size, Image.Resampling.BILINEAR)
        filled.paste(level.convert("RGB"), mask=level.getchannel("A"))
    return filled


def in_rgb_profile(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """An L, RGB, CMYK or LAB image as RGB. An RGB profile is kept, any other leads to sRGB."""
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
            pass  # a broken profile, or one of no use here: viewers read such a file as sRGB too
    if image.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.applyTransform(image, _transform(lab, _srgb(), "LAB")), None
    return image.convert("RGB"), None


def to_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """Pixels in an RGB profile converted to sRGB; (H, W, 3) uint8 both."""
    return _converted(rgb, _transform(_open_profile(profile), _srgb()))


def from_srgb(rgb: np.ndarray, profile: bytes) -> np.ndarray:
    """sRGB pixels converted to an RGB profile; (H, W, 3) uint8 both."""
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
