"""Colours and orientation of video frames: between YUV as it is stored and upright RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

# Numbers of FFmpeg: AVColorSpace, AVColorRange and swscale's flags.
_BT709, _UNSPECIFIED, _SMPTE170M = 1, 2, 6
_LIMITED, _FULL = 1, 2
# Bilinear, rounded to nearest, chroma interpolated. Without the flags pictures become darker.
_EXACT = 0x2 | 0x40000 | 0x2000 | 0x4000

# The matrices that swscale knows, by AVColorSpace.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}


@dataclass(frozen=True)
class VideoColors:
    """How RGB is stored as YUV, in the numbers of FFmpeg and of ISO/IEC 23091-2.

    Attributes:
        matrix: the matrix between RGB and YUV, such as 1 for BT.709 and 6 for BT.601.
        full: whether levels are 0..255, and not 16..235.
        primaries: the colours of R, G and B; 2 if the file does not say.
        transfer: the curve of brightness; 2 if the file does not say.
    """

    matrix: int
    full: bool = False
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED


def colors_of(frame: av.VideoFrame, context: av.VideoCodecContext) -> VideoColors:
    """Return the colours of a decoded frame and its decoder.

    A matrix that is not named is guessed as players do: BT.709 for high definition, else BT.601. A
    range that is not named is limited. RGB, as in GIF, will be stored as YUV of limited range.
    """
    matrix = frame.colorspace
    if matrix not in _MATRICES:
        matrix = _BT709 if max(frame.width / 16, frame.height / 9) >= 80 else _SMPTE170M
    is_rgb = frame.format.is_rgb or frame.format.has_palette
    full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    return VideoColors(matrix, full and not is_rgb, context.color_primaries, context.color_trc)


def to_rgb(frame: av.VideoFrame, colors: VideoColors, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a decoded frame, (H, W, 3) uint8, as stored and not yet upright.

    Args:
        frame: in any format.
        colors: as `colors_of`.
        size: width and height to scale to.
    """
    width, height = size
    rgb = frame.reformat(
        width,
        height,
        "rgb24",
        src_colorspace=_MATRICES[colors.matrix],
        src_color_range=_FULL if colors.full else _LIMITED,
        dst_color_range=_FULL,
        interpolation=_EXACT,
    )
    return rgb.to_ndarray()


def from_rgb(rgb: np.ndarray, colors: VideoColors, pixels: str) -> av.VideoFrame:
    """Return a frame for an encoder.

    Args:
        rgb: (H, W, 3) uint8.
        colors: how to store it.
        pixels: FFmpeg's name of the pixel format.
    """
    import av

    # A copy, in rows that FFmpeg pads: swscale reads beyond the end of a narrower buffer.
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    return frame.reformat(
        format=pixels,
        dst_colorspace=_MATRICES[colors.matrix],
        src_color_range=_FULL,
        dst_color_range=_FULL if colors.full else _LIMITED,
        interpolation=_EXACT,
    )


def tag(context: av.VideoCodecContext, colors: VideoColors) -> None:
    """Write the colours into the header of an encoder's stream."""
    context.colorspace = colors.matrix
    context.color_range = _FULL if colors.full else _LIMITED
    context.color_primaries = colors.primaries
    context.color_trc = colors.transfer


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become upright: columns and rows exchanged first, then mirrored.

    Attributes:
        transposed: whether columns become rows.
        rows_mirrored: whether the picture is upside down after that.
        columns_mirrored: whether left and right are exchanged after that.
    """

    transposed: bool = False
    rows_mirrored: bool = False
    columns_mirrored: bool = False

    def upright(self, rgb: np.ndarray) -> np.ndarray:
        """Return the pixels (H, W, 3) upright."""
        if self.transposed:
            rgb = rgb.swapaxes(0, 1)
        rows = slice(None, None, -1 if self.rows_mirrored else 1)
        columns = slice(None, None, -1 if self.columns_mirrored else 1)
        return np.ascontiguousarray(rgb[rows, columns])


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the orientation that the file's display matrix asks for, to multiples of 90 degrees.

    The matrix maps the column p and the row q of a stored pixel to a p + c q and b p + d q.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, d < 0, a < 0)
    return Orientation(True, b < 0, c < 0)
