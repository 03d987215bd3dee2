"""Kinds of picture files with known pixels, read by stylizing and training."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from stylekernels.cli.main import main
from stylekernels.inference import Stylizer
from stylekernels.media import PhotoError, read_photo
from stylekernels.media.paths import find_photos_below
from stylekernels.training import objective, train
from stylekernels.training.data import RandomCrops, read_image, readable, resized, to_tensor
from stylekernels.training.style import StyleTask
from tests.test_deep_pictures import grey_tiff

HEIGHT, WIDTH = 18, 32
Y, X = np.mgrid[:HEIGHT, :WIDTH]
COLOR = np.stack([X * 7 + 20, Y * 12 + 10, 240 - X * 4 - Y * 3], -1).astype(np.uint8)
GREY = COLOR[..., 0]
DEEP = (GREY.astype(np.uint16) << 8) + 255 - GREY  # not 257 times GREY: rounding shows
DEEP_COLOR = (COLOR.astype(np.uint16) << 8) + COLOR
ALPHA = np.where(X < 16, 255, 40 + 8 * Y).astype(np.uint8)
FOUR = (GREY >> 4).astype(np.uint8)
BITS = (GREY >> 7).astype(np.uint8)
PALETTE = np.stack([np.arange(16) * 15, 255 - np.arange(16) * 12, np.full(16, 99)], -1).astype("u1")
ROUNDED = np.round(DEEP / 257).astype(np.uint8)


def as_rgb(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def packed(values, bits):
    """Pack rows of samples into bits, each row filled up to whole bytes."""
    planes = [values >> (bits - 1 - i) & 1 for i in range(bits)]
    return np.packbits(np.stack(planes, -1).reshape(len(values), -1), axis=1)


def png(samples, bits, color_type, *chunks):
    """A PNG file written by hand: Pillow writes few of its kinds."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    if bits < 8:
        samples = packed(samples, bits)
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pillows(pixels, name, mode=None, **options):
    """A file that Pillow writes."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, name, **options)
    return file.getvalue()


def palette_image():
    image = Image.fromarray(FOUR)
    image.putpalette(PALETTE.tobytes())
    return image


def plain(magic, samples, white=None):
    """A PBM, PGM or PPM file in decimal digits."""
    numbers = "\n".join(" ".join(map(str, row.ravel())) for row in samples)
    return f"{magic} {WIDTH} {HEIGHT} {white or ''}\n{numbers}\n".encode()


def raw(magic, samples, white):
    data = samples.astype(">u2" if white > 255 else "u1").tobytes()
    return f"{magic} {WIDTH} {HEIGHT} {white}\n".encode() + data


def turned(orientation, name, **options):
    """The file of a camera held in one of eight ways. Upright it shows COLOR."""
    stored = {
        1: COLOR,
        2: COLOR[:, ::-1],
        3: COLOR[::-1, ::-1],
        4: COLOR[::-1],
        5: COLOR.swapaxes(0, 1),
        6: np.rot90(COLOR),
        7: COLOR[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(COLOR, -1),
    }
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return pillows(np.ascontiguousarray(stored[orientation]), name, exif=exif, **options)


def cmyk():
    """Without black: the complement of COLOR."""
    return Image.fromarray(np.dstack([255 - COLOR, np.zeros_like(GREY)]), "CMYK")


def tifffiles(pixels, **options):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def by_hand(samples, bits, photometric):
    """Return a function of a path that calls `grey_tiff`."""
    return lambda path: grey_tiff(path, samples, bits, photometric)


PLANES = {"photometric": "rgb", "planarconfig": "separate"}
JPEG = {"quality": 100, "subsampling": 0}
TRANSPARENT = (b"tRNS", bytes([0, 128] + [255] * 14))
PLTE = (b"PLTE", PALETTE.tobytes())
# name: (the file's bytes or its writer, the pixels, the largest error of lossy formats)
FILES = {
    "grey-1.png": (png(BITS, 1, 0), as_rgb(BITS * 255), 0),
    "grey-2.png": (png(FOUR >> 2, 2, 0), as_rgb((FOUR >> 2) * 85), 0),
    "grey-4.png": (png(FOUR, 4, 0), as_rgb(FOUR * 17), 0),
    "grey-8.png": (png(GREY, 8, 0), as_rgb(GREY), 0),
    "grey-16.png": (png(DEEP, 16, 0), as_rgb(ROUNDED), 0),
    "grey-alpha-8.png": (png(np.dstack([GREY, ALPHA]), 8, 4), as_rgb(GREY), 0),
    "grey-alpha-16.png": (png(np.dstack([GREY, ALPHA]).astype("u2") * 257, 16, 4), as_rgb(GREY), 0),
    "rgb-8.png": (png(COLOR, 8, 2), COLOR, 0),
    "rgb-16.png": (png(DEEP_COLOR, 16, 2), COLOR, 0),
    "rgba-8.png": (png(np.dstack([COLOR, ALPHA]), 8, 6), COLOR, 0),
    "rgba-16.png": (png(np.dstack([DEEP_COLOR, ALPHA.astype("u2") * 257]), 16, 6), COLOR, 0),
    "palette-1.png": (png(BITS, 1, 3, PLTE), PALETTE[BITS], 0),
    "palette-4.png": (png(FOUR, 4, 3, PLTE), PALETTE[FOUR], 0),
    "palette-8.png": (png(FOUR, 8, 3, PLTE), PALETTE[FOUR], 0),
    "palette-transparent.png": (png(FOUR, 8, 3, PLTE, TRANSPARENT), PALETTE[FOUR], 0),
    **{f"{i}.jpg": (turned(i, "JPEG", **JPEG), COLOR, 3) for i in range(1, 9)},
    **{f"{i}.png": (turned(i, "PNG"), COLOR, 0) for i in range(2, 9)},
    **{f"{i}.webp": (turned(i, "WEBP", lossless=True), COLOR, 0) for i in range(2, 9)},
    **{f"{i}.tif": (turned(i, "TIFF"), COLOR, 0) for i in range(2, 9)},
    "grey.jpg": (pillows(GREY, "JPEG", quality=100), as_rgb(GREY), 2),
    "progressive.jpg": (pillows(COLOR, "JPEG", progressive=True, **JPEG), COLOR, 3),
    "cmyk.jpg": (pillows(cmyk(), "JPEG", quality=100), COLOR, 3),
    "phone.mpo.jpg": (
        pillows(COLOR, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], **JPEG),
        COLOR,
        3,
    ),
    "rgb.tif": (pillows(COLOR, "TIFF"), COLOR, 0),
    "lzw.tif": (pillows(COLOR, "TIFF", compression="tiff_lzw"), COLOR, 0),
    "deflate.tif": (pillows(COLOR, "TIFF", compression="tiff_deflate"), COLOR, 0),
    "fax.tif": (pillows(BITS * 255, "TIFF", "1", compression="group4"), as_rgb(BITS * 255), 0),
    "palette.tif": (pillows(palette_image(), "TIFF"), PALETTE[FOUR], 0),
    "cmyk.tif": (pillows(cmyk(), "TIFF"), COLOR, 0),
    "grey-16.tif": (by_hand(DEEP, 16, 1), as_rgb(ROUNDED), 0),
    "white-is-zero-8.tif": (by_hand(255 - GREY, 8, 0), as_rgb(GREY), 0),
    "white-is-zero-16.tif": (by_hand(65535 - DEEP, 16, 0), as_rgb(ROUNDED), 0),
    "grey-12.tif": (by_hand(DEEP >> 4, 12, 1), as_rgb(np.round((DEEP >> 4) / 4095 * 255)), 0),
    "tiled.tif": (lambda: tifffiles(COLOR, tile=(16, 16)), COLOR, 0),
    "planar-8.tif": (lambda: tifffiles(np.moveaxis(COLOR, 2, 0), **PLANES), COLOR, 0),
    "planar-16-deflate.tif": (
        lambda: tifffiles(np.moveaxis(DEEP_COLOR, 2, 0), compression="zlib", **PLANES),
        COLOR,
        0,
    ),
    "rgba-16.tif": (
        lambda: tifffiles(
            np.dstack([DEEP_COLOR, ALPHA.astype("u2") * 257]),
            photometric="rgb",
            extrasamples=["unassalpha"],
        ),
        COLOR,
        0,
    ),
    "plain.pbm": (plain("P1", 1 - BITS), as_rgb(BITS * 255), 0),
    "raw.pbm": (
        f"P4 {WIDTH} {HEIGHT}\n".encode() + packed(1 - BITS, 1).tobytes(),
        as_rgb(BITS * 255),
        0,
    ),
    "plain.pgm": (plain("P2", GREY, 255), as_rgb(GREY), 0),
    "plain-16.pgm": (plain("P2", DEEP, 65535), as_rgb(ROUNDED), 0),
    "raw.pgm": (raw("P5", GREY, 255), as_rgb(GREY), 0),
    "raw-16.pgm": (raw("P5", DEEP, 65535), as_rgb(ROUNDED), 0),
    "plain.ppm": (plain("P3", COLOR, 255), COLOR, 0),
    "raw.ppm": (raw("P6", COLOR, 255), COLOR, 0),
    "raw-16.ppm": (raw("P6", DEEP_COLOR, 65535), COLOR, 0),
    "bits.bmp": (pillows(BITS * 255, "BMP", "1"), as_rgb(BITS * 255), 0),
    "palette.bmp": (pillows(palette_image(), "BMP"), PALETTE[FOUR], 0),
    "rgb.bmp": (pillows(COLOR, "BMP"), COLOR, 0),
    "still.gif": (pillows(palette_image(), "GIF"), PALETTE[FOUR], 0),
    "lossless.webp": (pillows(COLOR, "WEBP", lossless=True), COLOR, 0),
    "lossy.webp": (pillows(COLOR, "WEBP", quality=100), COLOR, 12),
    "alpha.webp": (pillows(np.dstack([COLOR, ALPHA]), "WEBP", lossless=True), COLOR, 0),
    "icon.ico": (pillows(COLOR, "ICO", sizes=[(WIDTH, HEIGHT)]), COLOR, 0),
    "reversible.jp2": (pillows(COLOR, "JPEG2000", irreversible=False), COLOR, 0),
    "grey-16.jp2": (pillows(DEEP, "JPEG2000", irreversible=False), as_rgb(ROUNDED), 0),
    "rgb.tga": (pillows(COLOR, "TGA"), COLOR, 0),
}


def write(path, content):
    """Write a file of the table; returns its path."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.__code__.co_argcount:
        content(path)
    else:
        path.write_bytes(content())
    return path


@pytest.mark.parametrize("name", FILES)
def test_stylizing_and_training_see_the_picture_that_is_there(tmp_path, name):
    content, expected, tolerance = FILES[name]
    path = write(tmp_path / name, content)
    seen = read_photo(path).to_srgb()
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() <= tolerance
    np.testing.assert_array_equal(np.asarray(read_image(path)), seen)


def animation(name):
    frames = [Image.fromarray(COLOR // n) for n in (1, 2, 3)]
    return pillows(frames[0], name, save_all=True, append_images=frames[1:])


REFUSED = {
    "moving.gif": animation("GIF"),
    "pages.tif": animation("TIFF"),
    "moving.webp": animation("WEBP"),
    "float.tif": pillows(DEEP.astype(np.float32), "TIFF"),
    "1x1.png": pillows(COLOR[:1, :1], "PNG"),
    "1xN.png": pillows(COLOR[:1], "PNG"),
    "cut.jpg": pillows(COLOR, "JPEG")[:300],
    "cut.png": pillows(COLOR, "PNG")[:60],
    "cut.tif": pillows(COLOR, "TIFF")[:200],
    "empty.jpg": b"",
    "note.jpg": b"Dear diary",
    "planar-16.tif": lambda: tifffiles(np.moveaxis(DEEP_COLOR, 2, 0), **PLANES),
    "huge.png": pillows(Image.new("1", (20000, 10000)), "PNG"),
}


def test_what_stylizing_refuses_training_skips(tmp_path):
    """Each is reported in a line that names the file and the reason."""
    for name, content in REFUSED.items():
        path = write(tmp_path / name, content)
        for read in (read_photo, read_image):
            with pytest.raises(PhotoError, match=rf"{name}: "):
                read(path)
    good = [write(tmp_path / name, FILES[name][0]) for name in ("6.jpg", "grey-16.png")]
    found, problems = find_photos_below(tmp_path)
    assert {*found} == {*good, *(tmp_path / name for name in REFUSED)}
    assert problems == []
    lines = []
    assert [path for path, _ in readable(found, lines.append)] == good
    assert [line.partition(": ")[0] for line in lines] == [
        str(path) for path in found if path not in good
    ]


@pytest.mark.parametrize("name", ["grey-16.png", "6.jpg", "rgba-8.png", "white-is-zero-16.tif"])
def test_every_verb_reads_alike(training_config, style, tmp_path, monkeypatch, name):
    """Painting, photos and preview in a run of training, and a photo that is stylized."""
    content = FILES[name][0]
    path = write(tmp_path / name, content)
    expected = read_photo(path).to_srgb()
    (tmp_path / "album").mkdir()
    for i in range(2):
        write(tmp_path / "album" / f"{i}{name}", content)
    seen = {}

    class Loss(objective.PerceptualLoss):
        def __init__(self, features, paintings, **weights):
            (seen["painting"],) = paintings
            super().__init__(features, paintings, **weights)

    def stylized(task, photo, style):
        seen["preview"] = photo
        return photo

    monkeypatch.setattr(objective, "PerceptualLoss", Loss)
    monkeypatch.setattr(StyleTask, "stylize", stylized)
    train(
        dataclasses.replace(
            training_config,
            art=path,
            preview=path,
            photos=tmp_path / "album",
            steps=1,
            batch_size=1,
            log_every=1,
            stroke=max(expected.shape) / 512,
            grain="keep",
        )
    )
    image = Image.fromarray(expected)
    np.testing.assert_array_equal(seen["painting"][0], to_tensor(resized(image, WIDTH)))
    np.testing.assert_array_equal(seen["preview"], to_tensor(resized(image, 384)))
    path = tmp_path / "album" / f"0{name}"
    crop, _, problems = RandomCrops([path], HEIGHT, 0)[0]  # as high as the photo, perhaps mirrored
    parts = [
        to_tensor(
            image.resize(
                (HEIGHT, HEIGHT), Image.Resampling.BICUBIC, (left, 0, left + HEIGHT, HEIGHT)
            )
        )
        for left in np.linspace(0, WIDTH - HEIGHT, 200)
    ]
    nearest = min((crop - part).abs().max() for part in [*parts, *(p.flip(2) for p in parts)])
    assert nearest < 0.02
    assert problems == []

    def painted(stylizer, frame, **options):
        seen["stylize"] = frame
        return frame

    monkeypatch.setattr(Stylizer, "__call__", painted)
    assert main(["stylize", str(path), "-s", style, "-o", str(tmp_path / "out.png")]) == 0
    np.testing.assert_array_equal(seen["stylize"], expected)
