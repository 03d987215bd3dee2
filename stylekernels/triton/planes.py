"""Images as planes of pixels, in tiles of pixels by channels, and the moments of planes.

One kernel serves both memory layouts: an image is addressed as ``n * stride_n + c * stride_c +
pixel * stride_p``, one of the last two strides is 1, and Triton compiles a kernel for which.

Moments are four numbers of a chunk of a plane: the number of its pixels, their mean as the sum of
two numbers (a value near the mean, and the distance of the mean from it), and the sum of their
squared deviations. They are stored in one tensor (4, N, chunks, C). They are merged in float64 in
the order of the chunks (Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
1983): the result is exact for large means too, and the same in every run.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.tensors import wide_dtype
from stylekernels.triton.launch import column_sums, processors, wide_type

#: The most chunks whose moments one program merges. More are merged in several passes, of
#: _MERGED_FIRST chunks a program in all but the last. _CHANNELS: the fewest channels of a program.
MERGED = 1024
_MERGED_FIRST = 256
_CHANNELS = 4
#: Elements of a tile (16 for each thread of 4 warps), and the most (32 for each of 16 warps).
_TILE = 2048
_LARGEST_TILE = 16384
#: Programs for each processor, as many as registers allow at once: with a tile of planes; with a
#: tile of whole pixels, which is twice as large since a thread holds 8 channels; with two tiles.
_PROGRAMS, _PROGRAMS_OF_PIXELS, _PROGRAMS_OF_TWO = 8, 4, 6


@dataclass(frozen=True)
class Planes:
    """The planes of a tensor (N, C, H, W) or (N, C, L) as kernels address them.

    Attributes:
        x: contiguous or channels_last.
        n, c, p: images, channels, pixels.
        stride_n, stride_c, stride_p: strides of ``x``, in elements.
    """

    x: Tensor
    n: int
    c: int
    p: int
    stride_n: int
    stride_c: int
    stride_p: int

    @classmethod
    def of(cls, x: Tensor) -> "Planes":
        """A view with gaps is copied first."""
        n, c = x.shape[:2]
        p = x.shape[2] * (x.shape[3] if x.dim() == 4 else 1)
        if not x.is_contiguous():
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
                return cls(x, n, c, p, c * p, 1, c)
            x = x.contiguous()
        return cls(x, n, c, p, c * p, p, 1)

    @classmethod
    def into(cls, y: Tensor) -> "Planes":
        """Return the planes of a tensor that a kernel writes, which must be dense."""
        planes = cls.of(y)
        if planes.x is not y:
            raise ValueError(
                f"y: expected a contiguous or channels_last tensor, got strides {y.stride()} for "
                f"{tuple(y.shape)}"
            )
        return planes

    @property
    def strides(self) -> tuple[int, int, int]:
        return self.stride_n, self.stride_c, self.stride_p

    @property
    def index_type(self) -> tl.dtype:
        """The type of offsets within an image."""
        return tl.int64 if self.c * self.p >= 2**31 else tl.int32


@dataclass(frozen=True)
class Tiling:
    """The division of planes among programs: each takes some channels of one image and one chunk.

    Attributes:
        block_p, block_c: pixels and channels of a tile, powers of two.
        chunks: number of chunks of a plane.
        chunk: pixels of a chunk, a multiple of ``block_p`` unless there is but one.
        programs: number of programs of a launch.
        num_warps: number of warps of a program.
    """

    block_p: int
    block_c: int
    chunks: int
    chunk: int
    programs: int
    num_warps: int

    @property
    def one_tile(self) -> bool:
        """Return whether a tile is a whole plane: then statistics need no pass of their own."""
        return self.chunks == 1 and self.block_p >= self.chunk


def tiling_of(planes: Planes, tensors: int = 1) -> Tiling:
    """Choose tiles along the direction that is dense in memory.

    A tile is a whole plane where the plane fits and there are enough planes to fill the device.
    Otherwise planes are split into as many chunks as fill it.

    Args:
        planes: planes of the input.
        tensors: number of tensors of this size of which a program holds a tile.
    """
    n, c, p = planes.n, planes.c, planes.p
    device, wide = planes.x.device, 2 if planes.x.dtype == torch.float64 else 1
    tile, largest = _TILE // wide, _LARGEST_TILE // wide // tensors
    dense_channels = planes.stride_c == 1 and c > 1
    pixels = triton.next_power_of_2(p)
    if dense_channels:
        block_c = min(triton.next_power_of_2(c), 64)
        fits = pixels * 16 <= largest  # 16 channels are one or two cache lines
        if fits and n * triton.cdiv(c, 16) >= processors(device):
            block_c = min(block_c, max(16, largest // pixels))
    else:
        block_c = min(triton.next_power_of_2(c), max(1, tile // 4 // pixels))
        fits = pixels <= largest
    blocks = n * triton.cdiv(c, block_c)
    small = pixels * block_c <= tile
    if small or (fits and pixels * block_c <= largest and blocks >= processors(device)):
        warps = min(16, max(1, pixels * block_c * wide * tensors // 1024))
        return Tiling(pixels, block_c, 1, p, blocks, warps)
    if tensors > 1:
        programs = _PROGRAMS_OF_TWO
    elif dense_channels:
        tile, programs = 2 * tile, _PROGRAMS_OF_PIXELS
    else:
        programs = _PROGRAMS
    block_p = min(tile // block_c, pixels)
    wanted = triton.cdiv(programs * processors(device), max(blocks, 1))
    chunks = max(1, min(wanted, MERGED, triton.cdiv(p, block_p)))
    chunk = triton.cdiv(triton.cdiv(p, chunks), block_p) * block_p
    chunks = triton.cdiv(p, chunk)
    return Tiling(block_p, block_c, chunks, chunk, blocks * chunks, 4)


@triton.jit
def inverse_deviation(var, eps):
    """1 / sqrt(var + eps), or 0 where that is infinite."""
    square = var + eps
    return tl.where(square == 0, 0.0, 1.0 / tl.sqrt(square))


@triton.jit
def assigned(C, chunks, BLOCK_C: tl.constexpr):
    """The image, chunk and channels that this program works on."""
    program = tl.program_id(0)
    chunk = program % chunks
    blocks = tl.cdiv(C, BLOCK_C)
    block = program // chunks % blocks
    n = program // chunks // blocks
    return n.to(tl.int64), chunk, block * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def load_columns(at, in_channels, EVEN: tl.constexpr):
    """Load a tile of whole pixels. EVEN: C is a multiple of its channels, so no mask is needed."""
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=in_channels, other=0.0)


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
    first = chunk * chunk_pixels
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
