"""Grey pictures of more than 8 bits, whose samples Pillow does not convert."""

import struct

import numpy as np
import pytest
from PIL import Image

from stylekernels.media import PhotoError, read_photo

LEVELS = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
AS_8_BITS = np.round(LEVELS / 65535 * 255).astype(np.uint8)


def grey_tiff(path, samples, bits, photometric, sample_format=1, order="<"):
    """Write an uncompressed TIFF file of one strip by hand, since Pillow cannot write this kind."""
    height, width = samples.shape
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(int)
        high, low = pairs[:, 0], pairs[:, 1]
        packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    values = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: 1,
        278: height,
        279: len(data),
        339: sample_format,
    }
    values[273] = 8 + 2 + 12 * len(values) + 4
    tags = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in values.items())
    start = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(values))
    path.write_bytes(start + tags + b"\0\0\0\0" + data)
    return path


@pytest.mark.parametrize(("photometric", "order"), [(0, "<"), (1, "<"), (1, ">")])
def test_16_bit_tiff_with_white_at_either_end(tmp_path, photometric, order):
    samples = LEVELS if photometric else 65535 - LEVELS
    rgb = read_photo(grey_tiff(tmp_path / "a.tif", samples, 16, photometric, order=order)).rgb
    np.testing.assert_array_equal(rgb, np.repeat(AS_8_BITS[..., None], 3, axis=2))


def test_8_bit_tiff_with_white_at_zero(tmp_path):
    path = grey_tiff(tmp_path / "a.tif", 255 - AS_8_BITS, 8, 0)
    np.testing.assert_array_equal(read_photo(path).rgb[..., 0], AS_8_BITS)


def test_12_bit_tiff_is_as_light_as_it_looks(tmp_path):
    samples = LEVELS >> 4
    rgb = read_photo(grey_tiff(tmp_path / "a.tif", samples, 12, 1)).rgb
    np.testing.assert_array_equal(rgb[..., 0], np.round(samples / 4095 * 255))


@pytest.mark.parametrize(
    ("dtype", "sample_format", "got"),
    [
        ("i1", 2, "8 with a sign"),
        ("i2", 2, "16 with a sign"),
        ("u4", 1, "32"),
        ("i4", 2, "32 with a sign"),
        ("f4", 3, "32 in floating point"),
    ],
)
def test_samples_without_a_fixed_white_are_refused(tmp_path, dtype, sample_format, got):
    samples = (LEVELS >> 9).astype(dtype)
    grey_tiff(tmp_path / "a.tif", samples, 8 * samples.itemsize, 1, sample_format)
    with pytest.raises(PhotoError, match=rf"a.tif: expected 8 or 16 bits .*, got {got}, where"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("white", [65535, 1023, 256, 255, 100])
@pytest.mark.parametrize("magic", ["P5", "P2"])
def test_pgm_of_any_white(tmp_path, magic, white):
    samples = np.round(LEVELS / 65535 * white).astype(int)
    if magic == "P2":
        data = " ".join(map(str, samples.ravel())).encode()
    else:
        data = samples.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"{magic} 30 20 {white}\n".encode() + data)
    rgb = read_photo(tmp_path / "a.pgm").rgb
    expected = np.repeat((samples / white * 255)[..., None], 3, axis=2)
    assert np.abs(rgb - expected).max() <= 0.51  # Pillow rounds to 16 bits on the way


def test_a_level_of_16_bits_that_is_transparent(tmp_path):
    image = Image.fromarray(LEVELS)
    image.save(tmp_path / "a.png", transparency=int(LEVELS[3, 4]))
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.alpha, np.where(LEVELS[3, 4] == LEVELS, 0, 255))
    seen = photo.alpha > 0
    np.testing.assert_array_equal(photo.rgb[seen][:, 0], AS_8_BITS[seen])
