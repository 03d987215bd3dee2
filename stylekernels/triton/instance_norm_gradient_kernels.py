"""Kernel of the gradient of instance norm."""

import triton
import triton.language as tl

from stylekernels.triton.activations import activation_gradient
from stylekernels.triton.instance_norm_kernels import load_statistics, per_channel, scale_and_shift
from stylekernels.triton.launch import column_sums, rounded
from stylekernels.triton.planes import assigned


@triton.jit
def _gradient_tile(
    from_grad,
    from_x,
    from_residual,
    lines,
    inside,
    grad_stride_p,
    x_stride_p,
    residual_stride_p,
    center,
    scale,
    shift,
    negative_slope,
    ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient before the activation (0 outside), and input - mean, at the pixels ``lines``,
    [BLOCK_P, 1]."""
    away = tl.load(from_x + lines * x_stride_p, mask=inside, other=0.0).to(WIDE) - center
    after = tl.load(from_grad + lines * grad_stride_p, mask=inside, other=0.0).to(WIDE)
    if ACTIVATION != "none":
        z = away * scale + shift
        if from_residual is not None:
            at = from_residual + lines * residual_stride_p
            z = z + tl.load(at, mask=inside, other=0.0).to(WIDE)
        after = activation_gradient(after, z, negative_slope, ACTIVATION)
    return after, away


@triton.jit
def _store_sums(to_sums, g, g_away, center_error, inverse, kinds, in_channels):
    """Store the sums of the gradient and of gradient times normalised input, [1, BLOCK_C] each, and
    return them."""
    total_g = column_sums(g)[None, :]
    total_gz = (column_sums(g_away)[None, :] - center_error * total_g) * inverse
    tl.store(to_sums, total_g, mask=in_channels)
    tl.store(to_sums + kinds, total_gz, mask=in_channels)
    return total_g, total_gz


@triton.jit
def _slope_and_level(total_g, total_gz, center_error, inverse, scale, P):
    """Coefficients of ``slope * (input - mean) + level``, which the statistics subtract from each
    gradient of the plane."""
    slope = scale * inverse * (total_gz / P)
    return slope, scale * (total_g / P) - center_error * slope


@triton.jit
def _write_gradients(
    grad_x, grad_residual, at, inside, g, away, factor, slope, level, OWN_STATISTICS: tl.constexpr
):
    """Write grad_x = factor * g - slope * away - level; factor * g without OWN_STATISTICS."""
    if grad_residual is not None:
        tl.store(grad_residual + at, rounded(g, grad_residual.dtype.element_ty), mask=inside)
    g = g * factor
    if OWN_STATISTICS:
        g = g - (away * slope + level)
    tl.store(grad_x + at, rounded(g, grad_x.dtype.element_ty), mask=inside)


@triton.jit
def norm_gradient_kernel(
    grad,
    x,
    residual,
    weight,
    bias,
    mean,
    error,
    rstd,
    sums,
    grad_x,
    grad_residual,
    N,
    C,
    P,
    grad_stride_n: tl.int64,
    grad_stride_c,
    grad_stride_p,
    x_stride_n: tl.int64,
    x_stride_c,
    x_stride_p,
    residual_stride_n: tl.int64,
    residual_stride_c,
    residual_stride_p,
    to_stride_n: tl.int64,
    to_stride_c,
    to_stride_p,
    weight_stride_n,
    bias_stride_n,
    chunks,
    chunk_pixels,
    negative_slope: tl.float64,
    SUM: tl.constexpr,
    WRITE: tl.constexpr,
    OWN_STATISTICS: tl.constexpr,
    OF_GROUPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over planes (SUM), gradients (WRITE), or both where the tile is the whole plane.

    SUM: sums over a chunk of g, the gradient before the activation, and of g times the normalised
    input are stored to ``sums`` (2, N, chunks, C). WRITE: ``sums`` are those of planes, (2, N, C),
    and grad_x = weight * rstd * (g - sums[0] / P - normalised * sums[1] / P). Without
    OWN_STATISTICS grad_x = weight * rstd * g. OF_GROUPS: ``sums`` are multiplied by the weight, and
    means over the planes of a group.
    """
    n, chunk, channels = assigned(C, chunks, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    first = chunk.to(INDEX) * chunk_pixels
    last = tl.minimum(first + chunk_pixels, P)
    in_channels = (channels < C)[None, :]
    plane = n * C + channels
    gain = None
    if weight is not None:
        gain = per_channel(weight, n, weight_stride_n, channels, C, WIDE)
    offset = None
    if bias is not None:
        offset = per_channel(bias, n, bias_stride_n, channels, C, WIDE)
    center, center_error, inverse = load_statistics(mean, error, rstd, plane, in_channels)
    scale, shift = scale_and_shift(center_error, inverse, gain, offset)
    columns = channels.to(INDEX)[None, :]
    from_grad = grad + n * grad_stride_n + columns * grad_stride_c
    from_x = x + n * x_stride_n + columns * x_stride_c
    from_residual = None
    if residual is not None:
        from_residual = residual + n * residual_stride_n + columns * residual_stride_c
    to = n * to_stride_n + columns * to_stride_c
    to_sums = sums + ((n * chunks + chunk) * C + channels)[None, :]
    if SUM and WRITE:
        lines, inside = rows.to(INDEX)[:, None], (rows < P)[:, None] & in_channels
        g, away = _gradient_tile(
            from_grad,
            from_x,
            from_residual,
            lines,
            inside,
            grad_stride_p,
            x_stride_p,
            residual_stride_p,
            center,
            scale,
            shift,
            negative_slope,
            ACTIVATION,
            WIDE,
        )
        total_g, total_gz = _store_sums(
            to_sums, g, g * away, center_error, inverse, N * chunks * C, in_channels
        )
        slope, level = _slope_and_level(total_g, total_gz, center_error, inverse, scale, P)
        _write_gradients(
            grad_x,
            grad_residual,
            to + lines * to_stride_p,
            inside,
            g,
            away,
            scale,
            slope,
            level,
            OWN_STATISTICS,
        )
    else:
        if SUM:
            total_g = tl.zeros([BLOCK_P, BLOCK_C], WIDE)
            total_away = tl.zeros([BLOCK_P, BLOCK_C], WIDE)
        else:
            total_g = tl.load(sums + plane[None, :], mask=in_channels, other=0.0)
            total_gz = tl.load(sums + N * C + plane[None, :], mask=in_channels, other=0.0)
            factor = inverse if OF_GROUPS else scale
            slope, level = _slope_and_level(total_g, total_gz, center_error, inverse, factor, P)
        tiles = tl.cdiv(last - first, BLOCK_P)
        for tile in range(tiles):
            # WRITE goes in reverse order: the pixels read last by SUM may still be in the cache.
            start = first + (tile if SUM else tiles - 1 - tile) * BLOCK_P
            pixels = start + rows
            lines, inside = pixels.to(INDEX)[:, None], (pixels < last)[:, None] & in_channels
            g, away = _gradient_tile(
                from_grad,
                from_x,
                from_residual,
                lines,
                inside,
                grad_stride_p,
                x_stride_p,
                residual_stride_p,
                center,
                scale,
                shift,
                negative_slope,
                ACTIVATION,
                WIDE,
            )
            if SUM:
                total_g += g
                total_away += g * away
            else:
                _write_gradients(
                    grad_x,
                    grad_residual,
                    to + lines * to_stride_p,
                    inside,
                    g,
                    away,
                    scale,
                    slope,
                    level,
                    OWN_STATISTICS,
                )
        if SUM:
            _store_sums(
                to_sums, total_g, total_away, center_error, inverse, N * chunks * C, in_channels
            )
