"""Kernel of instance norm, and what the kernel of its gradient shares with it."""

import triton
import triton.language as tl

from stylekernels.triton.activations import activate
from stylekernels.triton.launch import column_sums, rounded
from stylekernels.triton.moments import inverse_deviation
from stylekernels.triton.planes import assigned


@triton.jit
def per_channel(parameter, n, stride_n, channels, C, WIDE: tl.constexpr):
    """Load [1, BLOCK_C] of a (C,) or (N, C) parameter, whose stride over images is 0 or C."""
    inside = channels < C
    return tl.load(parameter + n * stride_n + channels, mask=inside, other=0.0).to(WIDE)[None, :]


@triton.jit
def load_statistics(mean, error, rstd, plane, in_channels):
    """Load mean, its rounding error and inverse deviation, [1, BLOCK_C] each."""
    at = plane[None, :]
    center = tl.load(mean + at, mask=in_channels, other=0.0)
    center_error = tl.load(error + at, mask=in_channels, other=0.0)
    return center, center_error, tl.load(rstd + at, mask=in_channels, other=0.0)


@triton.jit
def scale_and_shift(center_error, inverse, gain, offset):
    """Scale and shift of (input - mean). The shift corrects the rounding error of the mean."""
    scale = inverse
    if gain is not None:
        scale = inverse * gain
    shift = -center_error * scale
    if offset is not None:
        shift = offset + shift
    return scale, shift


@triton.jit
def normalize_kernel(
    x,
    y,
    residual,
    weight,
    bias,
    mean,
    error,
    rstd,
    C,
    P,
    x_stride_n: tl.int64,
    x_stride_c,
    x_stride_p,
    y_stride_n: tl.int64,
    y_stride_c,
    y_stride_p,
    residual_stride_n: tl.int64,
    residual_stride_c,
    residual_stride_p,
    weight_stride_n,
    bias_stride_n,
    chunks,
    chunk_pixels,
    negative_slope: tl.float64,
    eps: tl.float64,
    ONE_TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """activation((x - mean) * rstd * weight + bias) + residual for a chunk of some channels.

    With ONE_TILE the tile is the whole plane: mean and rstd are computed and stored.
    Otherwise they are loaded.
    """
    n, chunk, channels = assigned(C, chunks, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    first = chunk.to(INDEX) * chunk_pixels
    last = tl.minimum(first + chunk_pixels, P)
    in_channels = (channels < C)[None, :]
    from_x = x + n * x_stride_n + (channels.to(INDEX) * x_stride_c)[None, :]
    to_y = y + n * y_stride_n + (channels.to(INDEX) * y_stride_c)[None, :]
    plane = n * C + channels
    gain = None
    if weight is not None:
        gain = per_channel(weight, n, weight_stride_n, channels, C, WIDE)
    offset = None
    if bias is not None:
        offset = per_channel(bias, n, bias_stride_n, channels, C, WIDE)
    if ONE_TILE:
        # Sums are of distances from the plane's first pixel: a large mean costs no precision.
        near = tl.load(from_x, mask=in_channels, other=0.0).to(WIDE)
        near = tl.where(tl.abs(near) < float("inf"), near, 0.0)
        whole = (rows < P)[:, None] & in_channels
        plane_values = tl.load(
            from_x + (rows.to(INDEX) * x_stride_p)[:, None], mask=whole, other=0.0
        ).to(WIDE)
        away = tl.where(whole, plane_values - near, 0.0)
        distance = column_sums(away)[None, :] / P
        away = tl.where(whole, away - distance, 0.0)
        var = column_sums(away * away)[None, :].to(tl.float64) / P
        exact = near.to(tl.float64) + distance.to(tl.float64)
        center = exact.to(WIDE)
        center_error = (exact - center.to(tl.float64)).to(WIDE)
        inverse = inverse_deviation(var, eps).to(WIDE)
        tl.store(mean + plane[None, :], center, mask=in_channels)
        tl.store(error + plane[None, :], center_error, mask=in_channels)
        tl.store(rstd + plane[None, :], inverse, mask=in_channels)
    else:
        center, center_error, inverse = load_statistics(mean, error, rstd, plane, in_channels)
    scale, shift = scale_and_shift(center_error, inverse, gain, offset)
    # Tiles in reverse order: the pixels read last for the statistics may still be in the cache.
    tiles = tl.cdiv(last - first, BLOCK_P)
    for tile in range(tiles):
        pixels = first + (tiles - 1 - tile) * BLOCK_P + rows
        lines, inside = pixels.to(INDEX)[:, None], (pixels < last)[:, None] & in_channels
        value = tl.load(from_x + lines * x_stride_p, mask=inside, other=0.0).to(WIDE)
        z = (value - center) * scale + shift
        if residual is not None:
            addend = tl.load(
                residual
                + n * residual_stride_n
                + (channels.to(INDEX) * residual_stride_c)[None, :]
                + lines * residual_stride_p,
                mask=inside,
                other=0.0,
            ).to(WIDE)
            if RESIDUAL_FIRST:
                z = z + addend
        z = activate(z, negative_slope, ACTIVATION)
        if residual is not None and not RESIDUAL_FIRST:
            z = z + addend
        tl.store(to_y + lines * y_stride_p, rounded(z, y.dtype.element_ty), mask=inside)
