"""Moments of planes, from which their statistics are computed.

Moments are four numbers of a chunk of a plane: the number of its pixels, their mean as the sum of
two numbers (a value near the mean, and the distance of the mean from it), and the sum of their
squared deviations. They are stored in one tensor (4, N, chunks, C). They are merged in float64 in
the order of the chunks (Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
1983): the result is exact for large means too, and the same in every run.
"""

import triton
import triton.language as tl
from torch import Tensor

from stylekernels.tensors import wide_dtype
from stylekernels.triton.launch import column_sums, wide_type
from stylekernels.triton.planes import MERGED, Planes, Tiling, assigned, load_columns

#: Chunks that a program merges where there are more than `MERGED`: these are merged in several
#: passes.
_MERGED_FIRST = 256
#: The fewest channels of a program that merges.
_CHANNELS = 4


@triton.jit
def inverse_deviation(var, eps):
    """1 / sqrt(var + eps), or 0 where that is infinite."""
    square = var + eps
    return tl.where(square == 0, 0.0, 1.0 / tl.sqrt(square))


@triton.jit
def store_moments(
    moments, n, chunk, channels, inside, N, chunks, C, count, near, distance, squares
):
    """Store the moments of some channels, [BLOCK_C] each; ``count`` may be a scalar, and ``chunk``
    a vector of one chunk for each of them."""
    plane = tl.cast(N, tl.int64) * chunks * C
    to = moments + (n * chunks + chunk) * C + channels
    tl.store(to, tl.where(inside, count, 0), mask=inside)
    tl.store(to + plane, near, mask=inside)
    tl.store(to + 2 * plane, distance, mask=inside)
    tl.store(to + 3 * plane, squares, mask=inside)


@triton.jit
def merge_moments(moments, n, channels, N, chunks, C, first, last, ROWS: tl.constexpr):
    """Count, mean and sum of squared deviations of the chunks ``first`` to ``last``, at most ROWS:
    [BLOCK_C] of float64 each."""
    plane = tl.cast(N, tl.int64) * chunks * C
    rows = first + tl.arange(0, ROWS)
    at = moments + (n * chunks + rows[:, None]) * C + channels[None, :]
    inside = (rows < last)[:, None] & (channels < C)[None, :]
    count = tl.load(at, mask=inside, other=0.0).to(tl.float64)
    near = tl.load(at + plane, mask=inside, other=0.0).to(tl.float64)
    distance = tl.load(at + 2 * plane, mask=inside, other=0.0).to(tl.float64)
    squares = tl.load(at + 3 * plane, mask=inside, other=0.0).to(tl.float64)
    # Distances are taken from the first chunk's mean, so that one pass over the chunks is enough.
    at = moments + plane + (n * chunks + first) * C + channels
    center = tl.load(at, mask=channels < C, other=0.0).to(tl.float64)
    center = tl.where(tl.abs(center) < float("inf"), center, 0.0)
    away = tl.where(inside, (near - center[None, :]) + distance, 0.0)
    total = tl.maximum(tl.sum(count, 0), 1.0)
    sum = tl.sum(count * away, 0)
    distance = sum / total
    squares = tl.sum(squares + count * away * away, 0) - sum * distance
    return total, center + distance, tl.where(squares < 0, 0.0, squares)


@triton.jit
def moments_kernel(
    x,
    moments,
    N,
    C,
    P,
    stride_n: tl.int64,
    stride_c,
    stride_p,
    chunks,
    chunk_pixels,
    EVEN: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Moments of every chunk of every plane. Each pixel is read once, by the program of its chunk.

    Each element of the accumulator tile sums distances from a reference value, and their squares.
    The reference is the mean of the chunk's first tile. It lies within the range of the values, so
    the cancellation in the squares is bounded by the number of tiles. Threads exchange sums only
    after the loop.
    """
    n, chunk, channels = assigned(C, chunks, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    first = chunk.to(INDEX) * chunk_pixels
    last = tl.minimum(first + chunk_pixels, P)
    whole = first + (last - first) // BLOCK_P * BLOCK_P
    in_channels = (channels < C)[None, :]
    base = x + n * stride_n + (channels.to(INDEX) * stride_c)[None, :]
    inside = (first + rows < last)[:, None] & in_channels
    at = base + ((first + rows).to(INDEX) * stride_p)[:, None]
    value = tl.load(at, mask=inside, other=0.0).to(WIDE)
    near = column_sums(value)[None, :] / tl.minimum(last - first, BLOCK_P).to(WIDE)
    near = tl.where(tl.abs(near) < float("inf"), near, 0.0)
    sums = tl.zeros([BLOCK_P, BLOCK_C], WIDE)
    squares = tl.zeros([BLOCK_P, BLOCK_C], WIDE)
    for start in range(first, whole, BLOCK_P):
        at = base + ((start + rows).to(INDEX) * stride_p)[:, None]
        away = load_columns(at, in_channels, EVEN).to(WIDE) - near
        sums += away
        squares += away * away
    if whole < last:
        inside = (whole + rows < last)[:, None] & in_channels
        at = base + ((whole + rows).to(INDEX) * stride_p)[:, None]
        away = tl.where(inside, tl.load(at, mask=inside, other=0.0).to(WIDE) - near, 0.0)
        sums += away
        squares += away * away
    total = (last - first).to(tl.float64)
    sum = column_sums(sums).to(tl.float64)
    distance = sum / total
    squares = column_sums(squares).to(tl.float64) - sum * distance
    squares = tl.where(squares < 0, 0.0, squares)
    store_moments(
        moments,
        n,
        chunk,
        channels,
        channels < C,
        N,
        chunks,
        C,
        total,
        tl.sum(near, 0),
        distance,
        squares,
    )


@triton.jit
def merge_kernel(
    moments,
    merged,
    N,
    C,
    chunks,
    merged_chunks,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merge the moments of every ROWS consecutive chunks."""
    n, chunk, channels = assigned(C, merged_chunks, BLOCK_C)
    first = chunk * ROWS
    last = tl.minimum(first + ROWS, chunks)
    total, mean, squares = merge_moments(moments, n, channels, N, chunks, C, first, last, ROWS)
    near = mean.to(moments.dtype.element_ty)
    store_moments(
        merged,
        n,
        chunk,
        channels,
        channels < C,
        N,
        merged_chunks,
        C,
        total,
        near,
        mean - near.to(tl.float64),
        squares,
    )


@triton.jit
def statistics_kernel(
    moments,
    mean_out,
    error_out,
    var_out,
    rstd_out,
    scale_shift_out,
    weight,
    bias,
    N,
    C,
    chunks,
    eps: tl.float64,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write those statistics of every plane whose output is not None: mean, its rounding error,
    biased variance, inverse deviation, and scale and shift of instance norm with ``weight`` and
    ``bias``, (C,). The shift is computed from the rounded scale: see `norm_scale_shift`."""
    n, _, channels = assigned(C, 1, BLOCK_C)
    total, mean, squares = merge_moments(moments, n, channels, N, chunks, C, 0, chunks, ROWS)
    inside = channels < C
    to = n * C + channels
    if mean_out is not None:
        stored = mean.to(mean_out.dtype.element_ty)
        tl.store(mean_out + to, stored, mask=inside)
        if error_out is not None:
            tl.store(error_out + to, mean - stored.to(tl.float64), mask=inside)
    var = squares / total
    if var_out is not None:
        tl.store(var_out + to, var, mask=inside)
    if rstd_out is not None:
        tl.store(rstd_out + to, inverse_deviation(var, eps), mask=inside)
    if scale_shift_out is not None:
        scale = inverse_deviation(var, eps)
        if weight is not None:
            scale *= tl.load(weight + channels, mask=inside, other=0.0).to(tl.float64)
        scale = scale.to(scale_shift_out.dtype.element_ty)
        shift = -mean * scale.to(tl.float64)
        if bias is not None:
            shift += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float64)
        tl.store(scale_shift_out + 2 * to, scale, mask=inside)
        tl.store(scale_shift_out + 2 * to + 1, shift, mask=inside)


def moments_of(planes: Planes, tiling: Tiling) -> Tensor:
    """Compute the moments of the chunks of a tiling."""
    x = planes.x
    moments = x.new_empty((4, planes.n, tiling.chunks, planes.c), dtype=wide_dtype(x))
    moments_kernel[(tiling.programs,)](
        x,
        moments,
        planes.n,
        planes.c,
        planes.p,
        *planes.strides,
        tiling.chunks,
        tiling.chunk,
        EVEN=planes.c % tiling.block_c == 0,
        INDEX=planes.index_type,
        WIDE=wide_type(x),
        BLOCK_P=tiling.block_p,
        BLOCK_C=tiling.block_c,
        num_warps=tiling.num_warps,
    )
    return moments


def write_statistics(
    moments: Tensor,
    *,
    mean: Tensor | None = None,
    error: Tensor | None = None,
    var: Tensor | None = None,
    rstd: Tensor | None = None,
    scale_shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Merge moments and write the statistics that have an output tensor: (N, C), or (N, C, 2) for
    ``scale_shift``."""
    _, n, chunks, c = moments.shape
    while chunks > MERGED:
        fewer = triton.cdiv(chunks, _MERGED_FIRST)
        few = moments.new_empty((4, n, fewer, c))
        block = min(triton.next_power_of_2(c), 4 * _CHANNELS)
        merge_kernel[(n * fewer * triton.cdiv(c, block),)](
            moments, few, n, c, chunks, fewer, BLOCK_C=block, ROWS=_MERGED_FIRST, num_warps=8
        )
        moments, chunks = few, fewer
    rows = triton.next_power_of_2(chunks)
    block = min(triton.next_power_of_2(c), max(_CHANNELS, MERGED // rows), 64)
    statistics_kernel[(n * triton.cdiv(c, block),)](
        moments,
        mean,
        error,
        var,
        rstd,
        scale_shift,
        weight,
        bias,
        n,
        c,
        chunks,
        eps,
        BLOCK_C=block,
        ROWS=rows,
        num_warps=max(4, min(16, rows * block // 256)),
    )
