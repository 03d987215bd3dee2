"""Damaged EXIF never prevents reading the picture. Its orientation counts if that is intact."""

import random
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image

from stylekernels.media import read_photo, write_photo

STORED = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8) // 3 * 2 + 20
TIFF = b"Exif\0\0"


def whole_exif():
    """The EXIF of a rotated photo, and the offset of its entry for the orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera maker"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XResolution] = 72.0
    exif[ExifTags.Base.DateTime] = "2026:01:02 03:04:05"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2026:01:02 03:04:05",
        ExifTags.Base.ExifImageWidth: 30,
        ExifTags.Base.FNumber: 2.8,
        ExifTags.Base.MakerNote: b"abc" * 9,
    }
    exif[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (1.0, 2.0, 3.0),
    }
    data = exif.tobytes().removeprefix(TIFF)
    assert data.startswith(b"MM")
    (count,) = struct.unpack_from(">H", data, 8)
    entries = range(10, 10 + 12 * count, 12)
    tag = struct.pack(">H", ExifTags.Base.Orientation)
    return data, next(entry for entry in entries if data[entry : entry + 2] == tag)


def damaged(data, choose):
    """Replace some bytes, mostly by plausible types, counts and offsets, and perhaps cut the
    end."""
    data, changed = bytearray(data), []
    for _ in range(choose.choice([1, 1, 2, 5, 20])):
        changed.append(choose.randrange(len(data)))
        data[changed[-1]] = choose.choice([*range(13), 255, choose.randrange(256)])
    end = choose.randrange(len(data)) if choose.random() < 0.1 else len(data)
    return bytes(data[:end]), changed, end


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_leaves_the_picture_and_which_way_is_up(tmp_path, suffix):
    data, entry = whole_exif()
    # Byte order, offset and length of the first directory, and the entry itself.
    needed = {*range(10), *range(entry, entry + 12)}
    choose, counted = random.Random(suffix), 0
    path = tmp_path / f"a{suffix}"
    image = Image.fromarray(STORED)
    image.save(path, lossless=True)
    with Image.open(path) as plain:
        stored = np.asarray(plain.convert("RGB"))
    for _ in range(1000):
        exif, changed, end = damaged(data, choose)
        image.save(path, exif=TIFF + exif, lossless=True)
        photo = read_photo(path)
        np.testing.assert_array_equal(np.sort(photo.rgb, axis=None), np.sort(stored, axis=None))
        if not needed.intersection(changed) and end > max(needed):
            np.testing.assert_array_equal(photo.rgb, np.rot90(stored, -1))
            counted += 1
    assert counted > 500


def test_good_tags_beside_a_bad_one_are_kept(tmp_path):
    """A text instead of a number: that tag and the photo's other tags are kept."""
    data, entry = whole_exif()
    assert data[entry + 12 : entry + 14] == struct.pack(">H", ExifTags.Base.XResolution)
    text = struct.pack(">HHI", ExifTags.Base.XResolution, 2, 8)
    broken = data[: entry + 12] + text + data[entry + 20 :]
    Image.fromarray(STORED).save(tmp_path / "in.jpg", exif=TIFF + broken)
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.rgb.shape == (30, 20, 3)
    write_photo(tmp_path / "out.jpg", photo)
    with Image.open(tmp_path / "out.jpg") as out:
        kept = out.getexif()
    assert kept[ExifTags.Base.Make] == "Camera maker"
    assert ExifTags.Base.XResolution not in kept
    details = kept.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.FNumber] == 2.8
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
