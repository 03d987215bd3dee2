"""Reading and writing of photo files: pixels for a network, and the metadata of the file.

Everything that Pillow can read but EPS becomes 8-bit RGB, upright: 16-bit, grey, palette, 1-bit and
CMYK pictures are converted. Alpha, the ICC profile and EXIF are kept beside the pixels and written
back.
Pixels stay in the photo's own colour space; ``to_srgb`` and ``from_srgb`` convert them for a
network, which works in sRGB.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stylekernels.files import write_whole
from stylekernels.media import colors
from stylekernels.media.exif import descriptive_exif, exif_bytes, upright
from stylekernels.media.levels import as_8_bits
from stylekernels.media.process_state import SharedChange

SMALLEST_SIDE = 16

#: The formats that are written, by the extension of the file's name.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".bmp": "BMP",
    ".ppm": "PPM",
}

_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "AVIF": {"quality": 90},
}
# The most pixels a side: limits of libjpeg, of the WebP format, and of libavif for reading.
_LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 32768}
_KEEP_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG2000")
_KEEP_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
_KEEP_PROFILE = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000")

# The second picture in these files is a preview, a depth map or a layer, not the next frame.
_FIRST_FRAME_IS_THE_PHOTO = ("MPO", "PSD")


class PhotoError(ValueError):
    """A picture cannot be read or written. The message names the file and the reason."""


class TooManyPixels(PhotoError):
    """A picture has more pixels than Pillow's limit. It can be read with ``any_size``."""


@dataclass(frozen=True)
class Photo:
    """A picture and the metadata of its file.

    Attributes:
        rgb: (H, W, 3) uint8, upright, in the colour space of ``profile``.
        alpha: (H, W) uint8, or None if the file has no transparency.
        profile: the ICC profile of ``rgb``; None means sRGB.
        exif: descriptive tags without orientation and thumbnail; empty if there are none.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    exif: bytes = b""

    def to_srgb(self) -> np.ndarray:
        """Return the pixels converted to sRGB, (H, W, 3) uint8."""
        return self.rgb if self.profile is None else colors.to_srgb(self.rgb, self.profile)

    def from_srgb(self, rgb: np.ndarray) -> np.ndarray:
        """Return sRGB pixels converted to this photo's colour space, (H, W, 3) uint8."""
        return rgb if self.profile is None else colors.from_srgb(rgb, self.profile)


def open_image(path: Path, formats: Collection[str] | None = None) -> Image.Image:
    """Open a picture file with Pillow, which decodes it later.

    Args:
        formats: Pillow's names of those that may be read; by default all but EPS, which is a
            program: Pillow has Ghostscript run it.

    Raises:
        UnidentifiedImageError: for other formats.
    """
    Image.init()
    names = [name for name in Image.OPEN if name != "EPS" and (formats is None or name in formats)]
    return Image.open(path, formats=names)


def read_photo(
    path: str | os.PathLike,
    size: int | None = None,
    *,
    any_size: bool = False,
    formats: Collection[str] | None = None,
) -> Photo:
    """Read a picture file.

    Args:
        path: a still picture that Pillow can read, but no EPS. Its content decides, not its
            extension.
        size: scale the picture down to this length of the longer side, in pixels (Lanczos). A
            smaller picture keeps its size.
        any_size: also read pictures larger than Pillow's limit against decompression bombs, small
            files that unpack to pictures larger than memory.
        formats: as for `open_image`.

    Raises:
        TooManyPixels: if the picture is larger than that limit.
        PhotoError: if the file is missing, damaged, not a picture, animated, or under 16 pixels on
            a side.
    """
    path = Path(path)
    if path.is_dir():
        raise PhotoError(f"{path}: expected a picture, got a folder")
    if path.exists() and not path.is_file():  # reading a pipe could block forever
        raise PhotoError(f"{path}: expected a picture, got a device or a pipe")
    limit = _PIXEL_LIMIT.lifted if any_size else contextlib.nullcontext()
    with limit, _decoding(path), open_image(path, formats) as image:
        # Pillow does not check while another thread has lifted the limit.
        if not any_size and image.width * image.height > _PIXEL_LIMIT.most():
            raise Image.DecompressionBombError
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in _FIRST_FRAME_IS_THE_PHOTO:
            raise PhotoError(
                f"{path}: expected a still picture, got {frames} frames or pages; "
                "save the one you want as a PNG file"
            )
        image.load()
        exif = descriptive_exif(image)
        picture, alpha, profile = _as_rgb(image, path)

    if size is not None and size < max(picture.size):
        factor = size / max(picture.size)
        shape = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
        alpha = None if alpha is None else alpha.resize(shape, Image.Resampling.LANCZOS)
    if min(picture.size) < SMALLEST_SIDE:
        raise PhotoError(
            f"{path}: expected at least {SMALLEST_SIDE} pixels on each side, got "
            f"{picture.width}x{picture.height}" + (f" at size {size}" if size else "")
        )
    with _QUIET:
        written_exif = exif_bytes(exif, picture.size)
    return Photo(
        rgb=np.array(picture),
        alpha=None if alpha is None else np.array(alpha),
        profile=profile,
        exif=written_exif,
    )


def write_photo(path: str | os.PathLike, photo: Photo) -> None:
    """Write a picture file, whole or not at all, in the format of its extension.

    Alpha, ICC profile and EXIF are written if the format supports them. Missing folders are made.

    Raises:
        PhotoError: if `check_format` refuses the photo, or the file cannot be written.
    """
    path = Path(path)
    name = check_format(path, photo)
    pixels = photo.rgb
    if photo.alpha is not None and name in _KEEP_ALPHA:
        pixels = np.dstack([photo.rgb, photo.alpha])
    options = dict(_OPTIONS.get(name, {}))
    if photo.profile and name in _KEEP_PROFILE:
        options["icc_profile"] = photo.profile
    if photo.exif and name in _KEEP_EXIF:
        options["exif"] = photo.exif
    encoded = io.BytesIO()
    try:
        Image.fromarray(pixels).save(encoded, name, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise PhotoError(f"{path}: cannot be written as {name}: {error}") from error
    try:
        write_whole(path, lambda part: part.write_bytes(encoded.getbuffer()))
    except OSError as error:
        raise PhotoError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_format(path: Path, photo: Photo) -> str:
    """Return Pillow's name of the format for a file's extension, if it can store this photo.

    Raises:
        PhotoError: if this Pillow cannot write the format, if the photo is transparent and the
            format has no transparency, or if the photo has too many pixels a side for it.
    """
    name = output_format(path)
    height, width = photo.rgb.shape[:2]
    if max(height, width) > (most := _LONGEST_SIDE.get(name, max(height, width))):
        raise PhotoError(
            f"{path}: {name} has at most {most} pixels a side, the picture is {width}x{height}; "
            "scale it down, or give it a name that ends in .png or .tiff"
        )
    if photo.alpha is not None and name not in _KEEP_ALPHA and photo.alpha.min() < 255:
        raise PhotoError(
            f"{path}: the picture is partly transparent and {name} has no transparency; "
            "give it a name that ends in .png, .webp or .tiff"
        )
    return name


def output_format(path: Path) -> str:
    """Return Pillow's name of the format for a file's extension.

    Raises:
        PhotoError: if the extension is not in FORMATS, or this Pillow was built without it.
    """
    Image.init()
    name = FORMATS.get(path.suffix.lower())
    if name not in Image.SAVE:
        writable = " ".join(suffix for suffix, name in FORMATS.items() if name in Image.SAVE)
        raise PhotoError(
            f"{path}: expected a file name that ends in one of {writable}, "
            f"got {path.suffix or 'no extension'}"
        )
    return name


class _PixelLimit:
    """Pillow's limit against decompression bombs, one for the whole process."""

    def __init__(self) -> None:
        self._kept: int | None = None
        self.lifted = SharedChange(self._lift)

    @contextlib.contextmanager
    def _lift(self) -> Iterator[None]:
        self._kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = self._kept

    def most(self) -> float:
        """Return the most pixels that Pillow reads: twice its limit, even while that is lifted."""
        with self.lifted.lock:
            limit = self._kept if self.lifted.users else Image.MAX_IMAGE_PIXELS
        return float("inf") if limit is None else 2 * limit


_PIXEL_LIMIT = _PixelLimit()


@contextlib.contextmanager
def _without_pillows_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


_QUIET = SharedChange(_without_pillows_warnings)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn the errors of a decoder into PhotoError, and silence its warnings."""
    try:
        with _QUIET:
            yield
    except PhotoError:
        raise
    except FileNotFoundError as error:
        raise PhotoError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        hint = ""
        if path.suffix.lower() in (".heic", ".heif"):
            hint = "; HEIC is not supported, export the photo as JPEG"
        if path.suffix.lower() in (".eps", ".ps"):
            hint = "; EPS is not supported, export the picture as PNG"
        raise PhotoError(f"{path}: not a picture in a format that can be read{hint}") from error
    except Image.DecompressionBombError as error:
        limit = f"{_PIXEL_LIMIT.most() // 1_000_000:.0f} megapixels"
        raise TooManyPixels(
            f"{path}: more than {limit}, the limit against decompression bombs; scale it down first"
        ) from error
    except MemoryError as error:
        raise PhotoError(f"{path}: does not fit into memory") from error
    except OSError as error:
        if error.errno is not None:
            raise PhotoError(f"{path}: cannot be read: {error.strerror}") from error
        if "truncated" in str(error):
            raise PhotoError(f"{path}: cut short: a part of the picture is missing") from error
        raise PhotoError(f"{path}: damaged: {error}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise PhotoError(f"{path}: damaged: {error}") from error


def _as_rgb(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None, bytes | None]:
    """Convert to an upright RGB image; return it with its alpha and the profile of its pixels."""
    try:
        image = upright(as_8_bits(image))
    except ValueError as error:
        raise PhotoError(f"{path}: {error}") from error
    alpha = None
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    if image.mode in ("1", "L", "LA", "La"):
        opaque = image.convert("L")
    elif image.mode in ("CMYK", "LAB"):
        opaque = image
    else:
        opaque = image.convert("RGB")
    rgb, profile = colors.in_rgb_profile(opaque, image.info.get("icc_profile"))
    return rgb if alpha is None else colors.fill_hidden(rgb, alpha), alpha, profile
