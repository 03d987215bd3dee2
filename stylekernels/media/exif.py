"""EXIF of a photo: its orientation, and the tags that are kept for the stylised picture.

Cameras and editors write damaged EXIF, which must not prevent reading the picture. A tag that
cannot be read or written is dropped; the others are kept.
"""

import contextlib
import struct

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHORT = 3  # the TIFF type of 16-bit numbers

# The tags that are kept. Other tags of a TIFF directory describe the storage of the old pixels, the
# orientation is applied while reading, and an embedded thumbnail would show the old picture.
_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Rating,
    ExifTags.Base.RatingPercent,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
)


def upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror the image as its EXIF orientation says; without one, return it unchanged."""
    orientation = _first_orientation(image.info.get("exif"))
    if orientation is None:  # it may be in XMP, or stored in a format-specific way
        with contextlib.suppress(Exception):  # Pillow raises nearly anything on damaged EXIF
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _first_orientation(exif: object) -> int | None:
    """Return the orientation in the first directory of EXIF bytes. It is read without the other
    tags, since Pillow stops at the first damaged one."""
    if not isinstance(exif, bytes):
        return None
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == ExifTags.Base.Orientation and kind == _SHORT:
                return value
    except struct.error:  # the directory is truncated
        pass
    return None


def descriptive_exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF tags that describe the photo, without those that describe the old file."""
    kept = Image.Exif()
    try:
        exif = image.getexif()
    except Exception:
        return kept
    for tag in _TAGS:
        with contextlib.suppress(Exception):  # KeyError where there is none
            kept[tag] = exif[tag]
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        with contextlib.suppress(Exception):
            directory = dict(exif.get_ifd(tag))
            directory.pop(ExifTags.IFD.Interop, None)
            if directory:
                kept[tag] = directory
    return kept


def exif_bytes(exif: Image.Exif, size: tuple[int, int]) -> bytes:
    """Encode EXIF for a file with a picture of this width and height; empty without tags."""
    if not len(exif):
        return b""
    directory = exif.get(ExifTags.IFD.Exif, {})
    for tag, length in zip(
        (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True
    ):
        if tag in directory:
            directory[tag] = length
    written = _written(dict(exif))
    return written if written is not None else _written(_writable(dict(exif))) or b""


def _written(tags: dict) -> bytes | None:
    """Return the EXIF bytes of these tags, or None if one of them cannot be written."""
    exif = Image.Exif()
    try:
        exif.update(tags)
        return exif.tobytes()
    except Exception:  # Pillow reads some tags that it cannot write
        return None


def _writable(tags: dict) -> dict:
    """Return the tags that can be written, and of directories the entries that can."""
    kept = {}
    for tag, value in tags.items():
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if _written({tag: {k: v}}) is not None}
            if value:
                kept[tag] = value
        elif _written({tag: value}) is not None:
            kept[tag] = value
    return kept
