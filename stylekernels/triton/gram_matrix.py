"""Gram matrix, its gradient, and Gram loss.

Bytes: the features once for C <= 128, where one tile holds all products of a piece of pixels;
above, each tile of one triangle reads the two blocks of channels that it multiplies. Operations:
C (C + 1) P useful ones an image; whole tiles on the diagonal make it C (C + 128) P. With 128
operations a byte at C = 128 in half precision, the features' bytes decide up to there on every GPU
so far.

Programs share out tiles and pieces of pixels, since C x C is small and H W large; the pieces'
products are added up in their order by a second kernel, which also mirrors the triangle and
compares it with a target.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.reference.dtypes import wide_dtype
from stylekernels.reference.layouts import dense_like
from stylekernels.triton.instance_norm import exact_mean
from stylekernels.triton.launch import (
    INTERPRETED,
    processors,
    product_precision,
    rounded,
    stages,
    wide_type,
)
from stylekernels.triton.planes import Planes

#: Channels of a tile where C is larger, by bytes of the values that are multiplied (float32 takes
#: three products, and registers for them), and the most pieces of an image.
_BLOCKS = {2: 128, 4: 64, 8: 32}
_PIECES = 256
#: Rows of a tile that one program of the second kernel adds up.
_ROWS = 8


@triton.jit
def _triangle(t):
    """Row and column of the t-th tile of the lower triangle, by rows."""
    row = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > t, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= t, row + 1, row)
    return row, t - row * (row + 1) // 2


@triton.jit
def _centered(value, mean, n, channels, N, C, WIDE: tl.constexpr):
    """``value`` less the mean of its channel, which is (2, N, C) with its rounding error."""
    inside = channels < C
    near = tl.load(mean + n * C + channels, mask=inside, other=0.0)
    error = tl.load(mean + (N + n) * C + channels, mask=inside, other=0.0)
    return (value.to(WIDE) - near[:, None]) - error[:, None]


@triton.jit
def product_kernel(
    x,
    mean,
    partial,
    N,
    C,
    P,
    stride_n: tl.int64,
    stride_c,
    stride_p,
    tiles,
    pieces,
    piece_pixels,
    scale: tl.float64,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ONE_TILE: tl.constexpr,
):
    """One tile of the products of one piece of pixels: partial (N, pieces, tiles, BLOCK, BLOCK).

    The scale is applied to every BLOCK_P pixels, before sums can overflow.
    """
    program = tl.program_id(0)
    piece = program % pieces
    t = program // pieces % tiles
    n = (program // pieces // tiles).to(tl.int64)
    row, column = _triangle(t)
    i = row * BLOCK + tl.arange(0, BLOCK)
    j = column * BLOCK + tl.arange(0, BLOCK)
    first = piece * piece_pixels
    last = tl.minimum(first + piece_pixels, P)
    base = x + n * stride_n
    sums = tl.zeros([BLOCK, BLOCK], WIDE)
    factor = tl.full([1, 1], scale, WIDE)
    for start in range(first, last, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        along = (pixels.to(INDEX) * stride_p)[None, :]
        inside = (pixels < last)[None, :]
        left_inside = inside & (i < C)[:, None]
        left = tl.load(
            base + (i.to(INDEX) * stride_c)[:, None] + along, mask=left_inside, other=0.0
        )
        if mean is not None:
            left = tl.where(left_inside, _centered(left, mean, n, i, N, C, WIDE), 0.0)
        if INTERPRETED:
            left = left.to(WIDE)
        if ONE_TILE:
            right = left
        else:
            right_inside = inside & (j < C)[:, None]
            at = base + (j.to(INDEX) * stride_c)[:, None] + along
            right = tl.load(at, mask=right_inside, other=0.0)
            if mean is not None:
                right = tl.where(right_inside, _centered(right, mean, n, j, N, C, WIDE), 0.0)
            if INTERPRETED:
                right = right.to(WIDE)
        product = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=WIDE)
        sums += product * factor
    to = partial + ((n * pieces + piece) * tiles + t) * (BLOCK * BLOCK)
    local = tl.arange(0, BLOCK)
    tl.store(to + local[:, None] * BLOCK + local[None, :], sums)


@triton.jit
def sum_kernel(
    partial,
    gram,
    target,
    loss,
    C,
    target_stride_n,
    target_stride_i,
    target_stride_j,
    tiles,
    pieces,
    slope: tl.float64,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Some rows of a tile, summed over pieces in float64, to both triangles of ``gram`` (N, C, C).

    With a target (strides in elements, 0 over images for one that all share) what is written is
    ``slope`` times the difference from it, and the sum of its squares goes to ``loss``, a number
    of float64 for each program.
    """
    program = tl.program_id(0)
    part = program % (BLOCK // ROWS)
    t = program // (BLOCK // ROWS) % tiles
    n = (program // (BLOCK // ROWS) // tiles).to(tl.int64)
    row, column = _triangle(t)
    local = part * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at = partial + (n * pieces * tiles + t) * (BLOCK * BLOCK)
    at += local[:, None] * BLOCK + columns[None, :]
    sums = tl.zeros([ROWS, BLOCK], tl.float64)
    for _ in range(pieces):
        sums += tl.load(at).to(tl.float64)
        at += tiles * (BLOCK * BLOCK)
    i = (row * BLOCK + local)[:, None]
    j = (column * BLOCK + columns)[None, :]
    inside = (i < C) & (j < C)
    to = gram + n * C * C
    if target is None:
        value = sums.to(WIDE)
        tl.store(to + i * C + j, value, mask=inside)
        tl.store(to + j * C + i, value, mask=inside & (row != column))
    else:
        wanted = target + n * target_stride_n
        sums = sums.to(WIDE).to(tl.float64)
        below = sums - tl.load(
            wanted + i * target_stride_i + j * target_stride_j, mask=inside, other=0.0
        ).to(tl.float64)
        below = tl.where(inside, below, 0.0)
        mirrored = inside & (row != column)
        above = sums - tl.load(
            wanted + j * target_stride_i + i * target_stride_j, mask=mirrored, other=0.0
        ).to(tl.float64)
        above = tl.where(mirrored, above, 0.0)
        tl.store(to + i * C + j, (below * slope).to(WIDE), mask=inside)
        tl.store(to + j * C + i, (above * slope).to(WIDE), mask=mirrored)
        tl.store(loss + program, tl.sum(below * below + above * above))


@triton.jit
def gradient_kernel(
    grad,
    x,
    mean,
    grad_x,
    N,
    C,
    P,
    grad_stride_n,
    grad_stride_i,
    grad_stride_j,
    x_stride_n: tl.int64,
    x_stride_c,
    x_stride_p,
    to_stride_n: tl.int64,
    to_stride_c,
    to_stride_p,
    scale: tl.float64,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = scale (grad + grad^T) (x - mean): some channels of some pixels.

    The matrix is in float32. SPLIT: its values become the sums of two of bfloat16, each multiplied
    with x as it is stored; else x is widened.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK_C)
    spans = tl.cdiv(P, BLOCK_P)
    i = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = program // blocks % spans * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (program // blocks // spans).to(tl.int64)
    matrix = grad + n * grad_stride_n
    along = (pixels.to(INDEX) * x_stride_p)[None, :]
    factor = tl.full([1, 1], scale, WIDE)
    sums = tl.zeros([BLOCK_C, BLOCK_P], WIDE)
    for start in range(0, C, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (i < C)[:, None] & (k < C)[None, :]
        weights = tl.load(matrix + i[:, None] * grad_stride_i + k[None, :] * grad_stride_j,
                          mask=inside, other=0.0)  # fmt: skip
        weights += tl.load(matrix + k[None, :] * grad_stride_i + i[:, None] * grad_stride_j,
                           mask=inside, other=0.0)  # fmt: skip
        weights = weights * factor
        here = (k < C)[:, None] & (pixels < P)[None, :]
        value = tl.load(x + n * x_stride_n + (k.to(INDEX) * x_stride_c)[:, None] + along,
                        mask=here, other=0.0)  # fmt: skip
        if mean is not None:
            value = tl.where(here, _centered(value, mean, n, k, N, C, WIDE), 0.0)
        if SPLIT:
            high = weights.to(tl.bfloat16)
            low = tl.where(tl.abs(weights) < float("inf"), weights - high.to(WIDE), 0.0)
            low = low.to(tl.bfloat16)
            sums = tl.dot(high, value, sums)
            sums = tl.dot(low, value, sums)
        else:
            sums = tl.dot(weights, value.to(WIDE), sums, input_precision=PRECISION, out_dtype=WIDE)
    to = (
        grad_x + n * to_stride_n + (i.to(INDEX) * to_stride_c)[:, None]
        + (pixels.to(INDEX) * to_stride_p)[None, :]
    )  # fmt: skip
    tl.store(
        to, rounded(sums, grad_x.dtype.element_ty), mask=(i < C)[:, None] & (pixels < P)[None, :]
    )


def _products(planes: Planes, mean: Tensor | None, scale: float) -> Tensor:
    """The products of every piece of every tile: (N, pieces, tiles, block, block)."""
    x, n, c, p = planes.x, planes.n, planes.c, planes.p
    bytes_of_value = max(4 if mean is not None else 0, x.element_size())
    block = max(16, min(triton.next_power_of_2(c), _BLOCKS[bytes_of_value]))
    block_p = {2: 64, 4: 32, 8: 16}[bytes_of_value]
    rows = triton.cdiv(c, block)
    tiles = rows * (rows + 1) // 2
    wanted = triton.cdiv(2 * processors(x.device), n * tiles)
    pieces = max(1, min(wanted, _PIECES, triton.cdiv(p, 4 * block_p)))
    piece = triton.cdiv(triton.cdiv(p, pieces), block_p) * block_p
    pieces = triton.cdiv(p, piece)
    partial = x.new_empty((n, pieces, tiles, block, block), dtype=wide_dtype(x))
    product_kernel[(n * tiles * pieces,)](
        x, mean, partial, n, c, p, *planes.strides, tiles, pieces, piece, scale,
        PRECISION=product_precision(x, torch.backends.cuda.matmul),
        INDEX=planes.index_type, WIDE=wide_type(x), BLOCK=block, BLOCK_P=block_p,
        ONE_TILE=tiles == 1, num_warps=8 if block == 128 else 4,
        num_stages=1 if x.dtype == torch.float64 else stages(),
    )  # fmt: skip
    return partial


def _sum(
    partial: Tensor, x: Tensor, gram: Tensor, target: Tensor | None, loss: Tensor | None
) -> None:
    n, pieces, tiles, block, _ = partial.shape
    strides = (0, 0, 0)
    if target is not None:
        strides = target.expand(n, *gram.shape[1:]).stride()
    sum_kernel[(_sum_programs(partial),)](
        partial, gram, target, loss, gram.shape[1], *strides, tiles, pieces,
        2.0 / gram.numel(), WIDE=wide_type(x), BLOCK=block, ROWS=_ROWS, num_warps=4,
    )  # fmt: skip


def _sum_programs(partial: Tensor) -> int:
    n, _, tiles, block, _ = partial.shape
    return n * tiles * (block // _ROWS)


def _scale_of(planes: Planes, scale: float | None) -> float:
    return 1.0 / (planes.c * planes.p) if scale is None else scale


def gram_matrix(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    mean = exact_mean(planes.x) if center else None
    gram = x.new_empty((planes.n, planes.c, planes.c), dtype=wide_dtype(x))
    partial = _products(planes, mean, _scale_of(planes, scale))
    _sum(partial, x, gram, None, None)
    return gram, gram.new_empty((0,)) if mean is None else mean


def gram_loss(x: Tensor, target: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    grad_gram = x.new_empty((planes.n, planes.c, planes.c), dtype=wide_dtype(x))
    partial = _products(planes, None, _scale_of(planes, scale))
    losses = x.new_empty((_sum_programs(partial),), dtype=torch.float64)
    _sum(partial, x, grad_gram, target, losses)
    return (losses.sum() / grad_gram.numel()).to(grad_gram.dtype), grad_gram


def gram_matrix_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, scale: float | None
) -> Tensor:
    """The op of this name."""
    planes = Planes.of(x)
    grad_x = dense_like(x)
    target = Planes.of(grad_x)
    split = x.dtype == torch.bfloat16 and mean is None and not INTERPRETED.value
    block_c = max(16, min(triton.next_power_of_2(planes.c), 64))
    block_k, block_p = (64, 64) if split else (32, 64)
    if x.dtype == torch.float64:
        block_c, block_k, block_p = min(block_c, 32), 16, 32
    programs = planes.n * triton.cdiv(planes.c, block_c) * triton.cdiv(planes.p, block_p)
    gradient_kernel[(programs,)](
        grad, planes.x, None if mean is None else mean.contiguous(), grad_x, planes.n, planes.c,
        planes.p, *grad.stride(), *planes.strides, *target.strides, _scale_of(planes, scale),
        PRECISION=product_precision(x, torch.backends.cuda.matmul), SPLIT=split,
        INDEX=planes.index_type, WIDE=wide_type(x), BLOCK_C=block_c, BLOCK_K=block_k,
        BLOCK_P=block_p, num_warps=4, num_stages=stages(),
    )  # fmt: skip
    return grad_x
