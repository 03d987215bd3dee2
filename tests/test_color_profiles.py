"""Colour: the profile is kept, and the network sees sRGB whatever the profile."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylekernels.media import Photo, read_photo, write_photo


def smooth(height=48, width=64):
    """A picture that survives JPEG."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return (np.stack([x, y, 1 - x], -1) * 200 + 20).astype(np.uint8)


def wide_gamut_profile():
    """Adobe RGB (1998) as a minimal ICC version 2 profile: three primaries and a gamma."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    text = b"wide gamut\0"
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.19921875 * 256)) + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 79,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9505, 1.0, 1.0891),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        b"rTRC": gamma,
        b"gTRC": gamma,
        b"bTRC": gamma,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 128 + len(table) + len(body))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntrRGB XYZ "
    header[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header[36:40] = b"acsp"
    header[68:80] = b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return bytes(header) + table + body


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_an_rgb_profile_is_kept_to_the_byte(tmp_path, suffix):
    profile = wide_gamut_profile()
    Image.fromarray(smooth()).save(tmp_path / "in.png", icc_profile=profile)
    write_photo(tmp_path / f"out{suffix}", read_photo(tmp_path / "in.png"))
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.info["icc_profile"] == profile


def test_the_network_sees_srgb_and_its_answer_returns_to_the_profile(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "in.png", icc_profile=wide_gamut_profile())
    photo = read_photo(tmp_path / "in.png")
    np.testing.assert_array_equal(photo.rgb, smooth())

    linear = (smooth() / 255.0) ** 2.19921875
    to_srgb = [[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]]
    linear = np.clip(linear @ np.transpose(to_srgb), 0, 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    seen = photo.to_srgb()
    assert np.abs(seen - 255 * expected).max() < 3
    assert np.abs(seen.astype(int) - smooth()).max() > 20  # it does matter
    inside = ((expected > 0.02) & (expected < 0.98)).all(-1)
    assert np.abs(photo.from_srgb(seen).astype(int) - photo.rgb)[inside].max() <= 2


def test_without_a_profile_pixels_are_srgb_already():
    photo = Photo(smooth())
    assert photo.to_srgb() is photo.rgb
    assert photo.from_srgb(photo.rgb) is photo.rgb


@pytest.mark.parametrize("profile", [b"not a profile", wide_gamut_profile()[:200]])
def test_a_broken_profile_is_left_out(tmp_path, profile):
    Image.fromarray(smooth()).save(tmp_path / "in.png", icc_profile=profile)
    photo = read_photo(tmp_path / "in.png")
    assert photo.profile is None
    np.testing.assert_array_equal(photo.rgb, smooth())


def test_a_profile_for_other_pixels_is_not_kept(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.fromarray(smooth()).save(tmp_path / "in.png", icc_profile=lab)
    assert read_photo(tmp_path / "in.png").profile is None
