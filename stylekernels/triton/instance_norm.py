"""Instance norm, forward and backward.

Bytes: forward reads x (and the residual) and writes y. Backward reads grad and x and writes grad_x.
One kernel moves no more than that where a plane fits into the registers of a program: statistics
are computed from the tile that is loaded already. Larger planes are read twice, once for statistics
or sums of chunks and once to write. The second read hits the L2 cache for images up to some 50 MB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels import reference
from stylekernels.tensors import dense_like, wide_dtype
from stylekernels.triton.activations import activate, activation_gradient
from stylekernels.triton.launch import column_sums, rounded, wide_type
from stylekernels.triton.planes import (
    Planes,
    assigned,
    inverse_deviation,
    moments_of,
    tiling_of,
    write_statistics,
)


@triton.jit
def _per_channel(parameter, n, stride_n, channels, C, WIDE: tl.constexpr):
    """Load [1, BLOCK_C] of a (C,) or (N, C) parameter, whose stride over images is 0 or C."""
    inside = channels < C
    return tl.load(parameter + n * stride_n + channels, mask=inside, other=0.0).to(WIDE)[None, :]


@triton.jit
def _statistics(mean, error, rstd, plane, in_channels):
    """Load mean, its rounding error and inverse deviation, [1, BLOCK_C] each."""
    at = plane[None, :]
    center = tl.load(mean + at, mask=in_channels, other=0.0)
    center_error = tl.load(error + at, mask=in_channels, other=0.0)
    return center, center_error, tl.load(rstd + at, mask=in_channels, other=0.0)


@triton.jit
def _scale_and_shift(center_error, inverse, gain, offset):
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
    OWN_STATISTICS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL_FIRST: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """activation((x - mean) * rstd * weight + bias) + residual for a chunk of some channels.

    With OWN_STATISTICS the tile is the whole plane: mean and rstd are computed and stored.
    Otherwise they are loaded.
    """
    n, chunk, channels = assigned(C, chunks, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    first = chunk * chunk_pixels
    last = tl.minimum(first + chunk_pixels, P)
    in_channels = (channels < C)[None, :]
    from_x = x + n * x_stride_n + (channels.to(INDEX) * x_stride_c)[None, :]
    to_y = y + n * y_stride_n + (channels.to(INDEX) * y_stride_c)[None, :]
    plane = n * C + channels
    gain = None
    if weight is not None:
        gain = _per_channel(weight, n, weight_stride_n, channels, C, WIDE)
    offset = None
    if bias is not None:
        offset = _per_channel(bias, n, bias_stride_n, channels, C, WIDE)
    if OWN_STATISTICS:
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
        center, center_error, inverse = _statistics(mean, error, rstd, plane, in_channels)
    scale, shift = _scale_and_shift(center_error, inverse, gain, offset)
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
def gradient_kernel(
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
    OWN_STATISTICS grad_x = weight * rstd * g.
    """
    n, chunk, channels = assigned(C, chunks, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    first = chunk * chunk_pixels
    last = tl.minimum(first + chunk_pixels, P)
    in_channels = (channels < C)[None, :]
    plane = n * C + channels
    gain = None
    if weight is not None:
        gain = _per_channel(weight, n, weight_stride_n, channels, C, WIDE)
    offset = None
    if bias is not None:
        offset = _per_channel(bias, n, bias_stride_n, channels, C, WIDE)
    center, center_error, inverse = _statistics(mean, error, rstd, plane, in_channels)
    scale, shift = _scale_and_shift(center_error, inverse, gain, offset)
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
            slope, level = _slope_and_level(total_g, total_gz, center_error, inverse, scale, P)
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


def _over_images(parameter: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a (C,) or (N, C) parameter, made dense, and its stride over images."""
    if parameter is None:
        return None, 0
    parameter = parameter.contiguous()
    return parameter, parameter.shape[1] if parameter.dim() == 2 else 0


def exact_mean(x: Tensor) -> Tensor:
    """Mean of every plane of (N, C, H, W) or (N, C, L) and its rounding error: (2, N, C)."""
    planes = Planes.of(x)
    mean = x.new_empty((2, planes.n, planes.c), dtype=wide_dtype(x))
    write_statistics(moments_of(planes, tiling_of(planes)), mean=mean[0], error=mean[1])
    return mean


def instance_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    mean = x.new_empty((planes.n, planes.c), dtype=wide_dtype(x))
    var = torch.empty_like(mean)
    write_statistics(moments_of(planes, tiling_of(planes)), mean=mean, var=var)
    return mean, var


def instance_norm(
    x, weight, bias, residual, mean, var, activation, negative_slope, residual_first, eps, own_stats
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name. ``own_stats`` is for the gradient."""
    planes = Planes.of(x)
    y = dense_like(x)
    tiling = tiling_of(planes)
    means = x.new_empty((2, planes.n, planes.c), dtype=wide_dtype(x))
    rstd = x.new_empty((planes.n, planes.c), dtype=wide_dtype(x))
    if mean is not None:
        means[0], means[1] = mean, 0
        # In float64, by PyTorch: kernels compute in float32.
        rstd.copy_(reference.inverse_deviation(var.double(), eps))
    elif not tiling.one_tile:
        write_statistics(
            moments_of(planes, tiling), mean=means[0], error=means[1], rstd=rstd, eps=eps
        )
    target = Planes.of(y)
    other = planes if residual is None else Planes.of(residual)
    weight, weight_stride = _over_images(weight)
    bias, bias_stride = _over_images(bias)
    normalize_kernel[(tiling.programs,)](
        planes.x,
        y,
        None if residual is None else other.x,
        weight,
        bias,
        means[0],
        means[1],
        rstd,
        planes.c,
        planes.p,
        *planes.strides,
        *target.strides,
        *other.strides,
        weight_stride,
        bias_stride,
        tiling.chunks,
        tiling.chunk,
        negative_slope,
        eps,
        OWN_STATISTICS=mean is None and tiling.one_tile,
        ACTIVATION=activation,
        RESIDUAL_FIRST=residual_first,
        INDEX=planes.index_type,
        WIDE=wide_type(x),
        BLOCK_P=tiling.block_p,
        BLOCK_C=tiling.block_c,
        num_warps=tiling.num_warps,
    )
    return y, means, rstd


def instance_norm_backward(
    grad,
    x,
    weight,
    bias,
    residual,
    mean,
    rstd,
    activation,
    negative_slope,
    own_stats,
    want_residual,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of this name. ``grad`` may have another layout than ``x``."""
    planes, gradient = Planes.of(x), Planes.of(grad)
    other = planes if residual is None else Planes.of(residual)
    grad_x = dense_like(x)
    grad_residual = dense_like(x) if want_residual else None
    target = Planes.of(grad_x)
    tiling = tiling_of(planes, tensors=2)
    sums = x.new_empty((2, planes.n, tiling.chunks, planes.c), dtype=wide_dtype(x))
    weight, weight_stride = _over_images(weight)
    bias, bias_stride = _over_images(bias)
    mean, rstd = mean.contiguous(), rstd.contiguous()

    def launch(sums: Tensor, sum: bool, write: bool) -> None:
        gradient_kernel[(tiling.programs,)](
            gradient.x,
            planes.x,
            None if residual is None else other.x,
            weight,
            bias,
            mean[0],
            mean[1],
            rstd,
            sums,
            grad_x,
            grad_residual,
            planes.n,
            planes.c,
            planes.p,
            *gradient.strides,
            *planes.strides,
            *other.strides,
            *target.strides,
            weight_stride,
            bias_stride,
            tiling.chunks,
            tiling.chunk,
            negative_slope,
            SUM=sum,
            WRITE=write,
            OWN_STATISTICS=own_stats,
            ACTIVATION=activation,
            INDEX=planes.index_type,
            WIDE=wide_type(x),
            BLOCK_P=tiling.block_p,
            BLOCK_C=tiling.block_c,
            num_warps=tiling.num_warps,
        )

    launch(sums, sum=True, write=tiling.one_tile)
    sums = sums.sum(2, dtype=torch.float64).to(sums.dtype)
    if not tiling.one_tile:
        launch(sums, sum=False, write=True)
    # A clone, since the results of an op may not share memory.
    return (
        grad_x,
        x.new_empty((0,)) if grad_residual is None else grad_residual,
        sums[0],
        sums[1].clone(),
    )
