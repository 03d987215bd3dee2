"""Conversion of samples with more than 8 bits to 8 bits, which Pillow leaves to its users."""

import numpy as np
from PIL import Image, TiffImagePlugin

_WHITE_IS_ZERO = 0
_UNCOMPRESSED = 1
_SEPARATE_PLANES = 2
# Sample formats of TIFF.
_OTHER_NUMBERS = {2: " with a sign", 3: " in floating point"}


def as_8_bits(image: Image.Image) -> Image.Image:
    """Convert an image to at most 8 bits for each channel, rounded. Grey of 12 or 16 bits becomes
    L, or LA if one of its levels is transparent.

    Raises:
        ValueError: if samples have 32 bits, a sign or floating point, where white has no fixed
            value; or for 16-bit TIFF files with separate planes, which Pillow reads as bytes.
    """
    if image.format == "TIFF" and _is_mistaken_for_8_bits(image):
        raise ValueError(
            "expected a 16-bit TIFF file with interleaved channels, got a separate plane for each; "
            "save it with interleaved channels, or compressed"
        )
    deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    kind = _OTHER_NUMBERS.get(_tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT, None), "")
    white = _white(image) if deep and not kind else None
    if kind or (deep and white is None):
        bits = _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE, 32)
        raise ValueError(
            f"expected 8 or 16 bits for each channel, got {bits}{kind}, where white has no fixed "
            "value; save it with 8 or 16"
        )
    if white is None:
        return image
    samples = np.asarray(image).astype(np.uint32)
    levels = (samples * 255 + white // 2) // white
    # Pillow inverts samples of up to 8 bits itself, but not those with more.
    if _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, None) == _WHITE_IS_ZERO:
        levels = 255 - levels
    grey = Image.fromarray(levels.astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(alpha)))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey


def _is_mistaken_for_8_bits(image: Image.Image) -> bool:
    """Return whether a TIFF file has 16-bit channels in separate, uncompressed planes."""
    tag = TiffImagePlugin
    return (
        _tiff_tag(image, tag.PLANAR_CONFIGURATION, 1) == _SEPARATE_PLANES
        and _tiff_tag(image, tag.COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
        and _tiff_tag(image, tag.BITSPERSAMPLE, 1) > 8
        and len(image.getbands()) > 1
    )


def _white(image: Image.Image) -> int | None:
    """Return the value of white in an image of more than 8 bits, or None if it is unknown."""
    if image.mode.startswith("I;16"):
        return (1 << _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE, 16)) - 1
    # Pillow scales PGM files to 16 bits, whatever their own maximum is.
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _tiff_tag(image: Image.Image, tag: int, default):
    """Return the first value of a TIFF file's tag; the default for other files or a missing tag."""
    if image.format != "TIFF":
        return default
    value = image.tag_v2.get(tag, default)
    return value[0] if isinstance(value, tuple) else value
