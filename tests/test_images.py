"""Photo files: pixels that are read, metadata that is kept, refusals, and no partial files."""

import os
import stat
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from stylekernels.media import Photo, PhotoError, images, read_photo, write_photo

ORIENTATION = ExifTags.Base.Orientation


def ramp(height=20, width=30, channels=3):
    """Every pixel is unlike its neighbours in every channel."""
    values = np.arange(height * width * channels) * 37 % 251
    return values.reshape(height, width, channels).astype(np.uint8)


def smooth(height=48, width=64):
    """A picture that survives JPEG."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return (np.stack([x, y, 1 - x], -1) * 200 + 20).astype(np.uint8)


def png(path, width, height, bit_depth, color_type, rows, chunks=()):
    """A PNG file written by hand: Pillow can't write 16 bits in colour."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    data = b"".join(b"\0" + row for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*extra) for extra in chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )
    return path


# ---- pixels in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".bmp", ".ppm"])
def test_lossless_files_come_in_exactly_and_go_out_exactly(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(ramp()).save(path, **options)
    photo = read_photo(path)
    assert photo.rgb.dtype == np.uint8
    assert photo.alpha is photo.profile is None
    np.testing.assert_array_equal(photo.rgb, ramp())
    if suffix != ".webp":
        write_photo(tmp_path / f"again{suffix}", photo)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"again{suffix}")), ramp())


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_rounded_to_8_bits_not_clipped(tmp_path, suffix):
    levels = np.linspace(0, 65535, 20 * 30).astype(np.uint16).reshape(20, 30)
    Image.fromarray(levels).save(tmp_path / f"grey{suffix}")
    rgb = read_photo(tmp_path / f"grey{suffix}").rgb
    expected = np.round(levels / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(rgb, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour(tmp_path, color_type, channels):
    levels = (ramp(channels=channels).astype(np.uint16) * 257).astype(">u2")
    rows = [row.tobytes() for row in levels]
    path = png(tmp_path / "deep.png", 30, 20, 16, color_type, rows)
    photo = read_photo(path)
    seen = ramp(channels=channels)[..., -1] > (0 if channels == 4 else -1)
    np.testing.assert_array_equal(photo.rgb[seen], ramp(channels=channels)[seen][..., :3])
    if channels == 4:
        np.testing.assert_array_equal(photo.alpha, ramp(channels=4)[..., 3])


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_look_the_same(tmp_path, mode):
    image = Image.fromarray(smooth()).convert(mode)
    image.save(tmp_path / "photo.tiff")
    photo = read_photo(tmp_path / "photo.tiff")
    assert photo.alpha is None
    np.testing.assert_array_equal(photo.rgb, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_alpha_is_kept_exactly(tmp_path, suffix):
    alpha = ramp(channels=1)[..., 0]
    Image.fromarray(np.dstack([ramp(), alpha])).save(tmp_path / "in.png")
    photo = read_photo(tmp_path / "in.png")
    np.testing.assert_array_equal(photo.rgb[alpha > 0], ramp()[alpha > 0])
    write_photo(tmp_path / f"out{suffix}", photo)
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(out)[..., 3], alpha)


def test_grey_with_alpha_and_transparent_palettes(tmp_path):
    grey = np.dstack([ramp()[..., 0], ramp()[..., 1]])
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    photo = read_photo(tmp_path / "grey.png")
    seen = grey[..., 1] > 0
    np.testing.assert_array_equal(photo.rgb[seen], np.repeat(grey[..., :1], 3, axis=2)[seen])
    np.testing.assert_array_equal(photo.alpha, grey[..., 1])

    palette = Image.fromarray(smooth()).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=3)
    alpha = read_photo(tmp_path / "palette.png").alpha
    np.testing.assert_array_equal(alpha, np.where(np.asarray(palette) == 3, 0, 255))

    Image.fromarray(ramp()).save(tmp_path / "key.png", transparency=tuple(ramp()[2, 5].tolist()))
    assert read_photo(tmp_path / "key.png").alpha[2, 5] == 0


def test_resizing_does_not_bleed_transparent_pixels_into_the_picture(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)  # beside it: transparent black
    Image.fromarray(pixels).save(tmp_path / "half.png")
    photo = read_photo(tmp_path / "half.png", size=24)
    seen = photo.rgb[photo.alpha > 32].astype(int)
    assert np.abs(seen - (200, 100, 50)).max() <= 6


@pytest.mark.parametrize("size", [None, 24])
def test_what_transparent_pixels_hide_does_not_count(tmp_path, size):
    pixels = np.dstack([smooth(64, 48), np.zeros((64, 48), np.uint8)])
    pixels[16:40, 8:30, 3] = 255
    pixels[2, 45, 3] = 1
    visible = pixels[pixels[..., 3] > 0, :3].astype(int)
    photos = []
    for name, color in (("black", (0, 0, 0)), ("red", (255, 0, 0))):
        pixels[pixels[..., 3] == 0, :3] = color
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        photos.append(read_photo(tmp_path / f"{name}.png", size))
    np.testing.assert_array_equal(photos[0].rgb, photos[1].rgb)
    around = photos[0].rgb[photos[0].alpha == 0].astype(int)
    assert (around.min(0) >= visible.min(0) - 9).all()  # it gets the colours around it
    assert (around.max(0) <= visible.max(0) + 9).all()


def test_a_picture_that_is_nowhere_to_be_seen_is_read(tmp_path):
    pixels = np.dstack([ramp(), np.zeros(ramp().shape[:2], np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "none.png")
    photo = read_photo(tmp_path / "none.png")
    assert photo.alpha.max() == 0
    assert photo.rgb.shape == ramp().shape


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_a_channel_are_refused(tmp_path, mode):
    Image.new(mode, (32, 32)).save(tmp_path / "deep.tiff")
    with pytest.raises(PhotoError, match=r"deep.tiff: expected 8 or 16 bits .* got 32"):
        read_photo(tmp_path / "deep.tiff")


# ---- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shape"),
    [(None, (60, 90)), (90, (60, 90)), (500, (60, 90)), (45, (30, 45)), (50, (33, 50))],
)
def test_size_is_the_longer_side_and_never_enlarges(tmp_path, size, shape):
    for name, pixels in (("wide.png", ramp(60, 90)), ("tall.png", ramp(90, 60))):
        Image.fromarray(pixels).save(tmp_path / name)
    assert read_photo(tmp_path / "wide.png", size).rgb.shape[:2] == shape
    assert read_photo(tmp_path / "tall.png", size).rgb.shape[:2] == shape[::-1]


@pytest.mark.parametrize(
    ("shape", "size", "text"),
    [((15, 40), None, "got 40x15$"), ((40, 80), 20, "got 20x10 at size 20$")],
)
def test_under_16_pixels_is_refused(tmp_path, shape, size, text):
    Image.fromarray(ramp(*shape)).save(tmp_path / "tiny.png")
    with pytest.raises(PhotoError, match=r"tiny.png: expected at least 16 pixels .*" + text):
        read_photo(tmp_path / "tiny.png", size)


# ---- orientation and EXIF -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset(tmp_path, suffix, orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(smooth())
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[ExifTags.Base.Make] = "Camera maker"
    stored.save(tmp_path / f"in{suffix}", exif=exif)

    photo = read_photo(tmp_path / f"in{suffix}")
    difference = np.abs(photo.rgb.astype(int) - np.asarray(upright))
    assert difference.max() <= (12 if suffix == ".jpg" else 0)
    write_photo(tmp_path / f"out{suffix}", photo)
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.size == upright.size
        assert out.getexif().get(ORIENTATION, 1) == 1
        assert out.getexif()[ExifTags.Base.Make] == "Camera maker"


def test_exif_is_kept_but_for_what_described_the_old_file(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = "Me"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2026:01:02 03:04:05",
        ExifTags.Base.ExifImageWidth: 64,
        ExifTags.Base.ExifImageHeight: 48,
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    Image.fromarray(smooth()).save(tmp_path / "in.jpg", exif=exif)
    write_photo(tmp_path / "out.jpg", read_photo(tmp_path / "in.jpg", size=32))
    with Image.open(tmp_path / "out.jpg") as out:
        kept = out.getexif()
    assert kept[ExifTags.Base.Copyright] == "Me"
    details = kept.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.DateTimeOriginal] == "2026:01:02 03:04:05"
    assert details[ExifTags.Base.ExifImageWidth] == 32
    assert details[ExifTags.Base.ExifImageHeight] == 24
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_damaged_exif_does_not_stop_the_photo(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "in.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert read_photo(tmp_path / "in.jpg").rgb.shape == (48, 64, 3)


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".bmp", ".gif", ".jp2"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        PhotoError, match=rf"cut\{suffix}: (cut short: a part|damaged: |not a picture)"
    ):
        read_photo(path)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "note.jpg").write_text("Dear diary")
    (tmp_path / "empty.png").touch()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "folder.png").mkdir()
    for name, text in {
        "note.jpg": "not a picture in a format that can be read$",
        "empty.png": "not a picture in a format that can be read$",
        "phone.heic": "HEIC is not supported, export the photo as JPEG$",
        "missing.jpg": "no such file$",
        "folder.png": "expected a picture, got a folder$",
    }.items():
        with pytest.raises(PhotoError, match=f"{name}: .*{text}"):
            read_photo(tmp_path / name)


def test_no_interpreter_runs_a_picture(tmp_path, monkeypatch):
    """Pillow would have Ghostscript run an EPS file, whatever its extension."""

    def run(*arguments, **options):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    for name in ("drawing.eps", "photo.jpg"):
        Image.fromarray(ramp()).save(tmp_path / name, "EPS")
    with pytest.raises(
        PhotoError, match=r"photo\.jpg: not a picture in a format that can be read$"
    ):
        read_photo(tmp_path / "photo.jpg")
    with pytest.raises(PhotoError, match=r"EPS is not supported, export the picture as PNG$"):
        read_photo(tmp_path / "drawing.eps")


def test_only_the_formats_asked_for_are_read(tmp_path):
    for form in ("PPM", "PNG"):
        Image.fromarray(ramp()).save(tmp_path / form, form)
    read_photo(tmp_path / "PPM")
    read_photo(tmp_path / "PNG", formats=("PNG",))
    with pytest.raises(PhotoError, match=r"not a picture in a format that can be read$"):
        read_photo(tmp_path / "PPM", formats=("PNG",))


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(ramp() // n) for n in (1, 2, 3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(PhotoError, match="expected a still picture, got 3 frames"):
        read_photo(tmp_path / "moving.gif")


def test_a_phones_file_with_a_preview_is_one_photo(tmp_path):
    photo, preview = Image.fromarray(smooth()), Image.fromarray(smooth(24, 32))
    photo.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_photo(tmp_path / "phone.jpg").rgb.shape == (48, 64, 3)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.fromarray(ramp(64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PhotoError, match=r"bomb.png: more than 0 megapixels, the limit against"):
        read_photo(tmp_path / "bomb.png")


# ---- files out ----------------------------------------------------------------------------------


def test_transparency_is_never_lost_silently(tmp_path):
    see_through = Photo(ramp(), alpha=ramp()[..., 0])
    with pytest.raises(PhotoError, match=r"out.jpg: the picture is partly transparent and JPEG"):
        write_photo(tmp_path / "out.jpg", see_through)
    assert not list(tmp_path.iterdir())
    write_photo(tmp_path / "out.jpg", Photo(ramp(), alpha=np.full((20, 30), 255, np.uint8)))
    assert Image.open(tmp_path / "out.jpg").mode == "RGB"


def test_jpeg_quality_is_95_with_whole_colour_resolution(tmp_path):
    write_photo(tmp_path / "out.jpg", Photo(smooth()))
    Image.fromarray(smooth()).save(tmp_path / "like.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "out.jpg") as out, Image.open(tmp_path / "like.jpg") as like:
        assert out.quantization == like.quantization
        assert out.layer == like.layer


def test_unknown_extensions_are_refused(tmp_path):
    with pytest.raises(PhotoError, match=r"out.doc: expected .* one of .jpg .*, got .doc$"):
        write_photo(tmp_path / "out.doc", Photo(ramp()))
    with pytest.raises(PhotoError, match=r"got no extension$"):
        write_photo(tmp_path / "out", Photo(ramp()))


def test_missing_folders_are_made_and_permissions_are_the_usual(tmp_path):
    path = tmp_path / "a" / "b" / "out.png"
    write_photo(path, Photo(ramp()))
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("culprit", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, culprit, error
):
    path = tmp_path / "out.png"
    path.write_bytes(b"the old file")

    def fail(*arguments):
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file existed
        raise error

    monkeypatch.setattr(os, culprit, fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PhotoError
    with pytest.raises(expected) as caught:
        write_photo(path, Photo(ramp()))
    if expected is PhotoError:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]
    assert path.read_bytes() == b"the old file"


@pytest.mark.parametrize(
    ("suffix", "name", "most"),
    [(".webp", "WEBP", 16383), (".jpg", "JPEG", 65500), (".avif", "AVIF", 32768)],
)
def test_more_pixels_a_side_than_the_format_has_are_refused(tmp_path, suffix, name, most):
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow has no {name}")
    for shape in ((16, most + 1, 3), (most + 1, 16, 3)):
        height, width, _ = shape
        with pytest.raises(PhotoError) as refused:
            write_photo(tmp_path / f"out{suffix}", Photo(np.zeros(shape, np.uint8)))
        assert str(refused.value) == (
            f"{tmp_path}/out{suffix}: {name} has at most {most} pixels a side, the picture is "
            f"{width}x{height}; scale it down, or give it a name that ends in .png or .tiff"
        )
    assert not list(tmp_path.iterdir())
    write_photo(tmp_path / f"out{suffix}", Photo(np.zeros((16, most, 3), np.uint8)))
    with Image.open(tmp_path / f"out{suffix}") as out:
        assert out.size == (most, 16)


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError])
def test_a_failing_encoder_touches_no_file(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error("out of ink")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(PhotoError, match=r"out.webp: cannot be written as WEBP: out of ink$"):
        write_photo(tmp_path / "out.webp", Photo(smooth()))
    assert not list(tmp_path.iterdir())


def test_every_listed_extension_can_be_written(tmp_path):
    Image.init()
    for suffix in (s for s, name in images.FORMATS.items() if name in Image.SAVE):
        write_photo(tmp_path / f"out{suffix}", Photo(smooth(), exif=b"", alpha=None))
        with Image.open(tmp_path / f"out{suffix}") as out:
            assert np.abs(np.asarray(out).astype(int) - smooth()).mean() < 4
