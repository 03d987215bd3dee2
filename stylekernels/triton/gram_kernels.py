"""Kernels for Gram matrices: products of channels, their sums, and losses.

One launch serves a list of layers of different sizes. Each layer gets some consecutive programs,
and a program runs the code that was compiled for its layer: tiles and memory layouts differ between
layers, and cost nothing only as compile-time constants. A layer is described by a tuple, whose
fields in capitals are such constants.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from stylekernels.triton.launch import INTERPRETED


class ProductLayer(NamedTuple):
    """Features, (N, C, P) by strides in elements, and the division of their products into tiles and
    chunks.

    ``mean`` is (2, N, C), with its rounding error, or None for features that are not centred.
    ``scale`` holds the bits of a float64 in an integer: Triton passes a float in a tuple as
    float32. STAGES is the number of steps in flight.
    """

    x: Tensor
    mean: Tensor | None
    N: int
    C: int
    P: int
    stride_n: int
    stride_c: int
    stride_p: int
    scale: int
    tiles: int
    chunks: int
    chunk_pixels: int
    BLOCK: tl.constexpr
    ONE_TILE: tl.constexpr
    STAGES: tl.constexpr


class SumLayer(NamedTuple):
    """A Gram matrix, (N, C, C), the tiles and chunks of `ProductLayer` that it is the sum of, and
    LOSS, the index of its loss. A program sums ROWS rows of a tile, CHUNKS chunks at once."""

    gram: Tensor
    N: int
    C: int
    tiles: int
    chunks: int
    BLOCK: tl.constexpr
    ROWS: tl.constexpr
    CHUNKS: tl.constexpr
    LOSS: tl.constexpr


class Target(NamedTuple):
    """Target Gram matrices. stride_n is 0 if all images share one."""

    gram: Tensor
    stride_n: int
    stride_i: int
    stride_j: int


@triton.jit
def _triangle(t):
    """Row and column of the t-th tile of the lower triangle, by rows."""
    row = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > t, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= t, row + 1, row)
    return row, t - row * (row + 1) // 2


@triton.jit
def _kept(row, column, i, j):
    """Mask of the elements of a tile that are stored as partial sums.

    Tiles on the diagonal store the lower triangle, rounded up to 8 columns, so that memory
    transactions are whole. All others store everything.
    """
    return (row != column) | (j // 8 <= i // 8)


@triton.jit
def float64_of(bits):
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def centered(value, mean, n, channels, N, C, WIDE: tl.constexpr):
    """``value`` minus the mean of its channel; ``mean`` is (2, N, C), with its rounding error."""
    inside = channels < C
    near = tl.load(mean + n * C + channels, mask=inside, other=0.0)
    error = tl.load(mean + (N + n) * C + channels, mask=inside, other=0.0)
    return (value.to(WIDE) - near[:, None]) - error[:, None]


@triton.jit
def _features(layer, n, channels, pixels, last, INDEX: tl.constexpr, WIDE: tl.constexpr):
    """Load some channels of some pixels, with 0 for pixels from ``last`` on."""
    inside = (channels < layer.C)[:, None] & (pixels < last)[None, :]
    at = layer.x + n * layer.stride_n + (channels.to(INDEX) * layer.stride_c)[:, None]
    value = tl.load(at + (pixels.to(INDEX) * layer.stride_p)[None, :], mask=inside, other=0.0)
    if layer.mean is not None:
        value = centered(value, layer.mean, n, channels, layer.N, layer.C, WIDE)
        value = tl.where(inside, value, 0.0)
    if INTERPRETED:
        value = value.to(WIDE)
    return value


@triton.jit
def _products(
    layer,
    n,
    i,
    j,
    chunk,
    SAME: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Products of channels i and j, summed over a chunk of pixels. SAME: i and j are equal."""
    first = chunk.to(INDEX) * layer.chunk_pixels
    last = tl.minimum(first + layer.chunk_pixels, layer.P)
    factor = tl.full([1, 1], float64_of(layer.scale), WIDE)
    sums = tl.zeros([layer.BLOCK, layer.BLOCK], WIDE)
    for start in tl.range(first, last, BLOCK_P, num_stages=layer.STAGES):
        pixels = start + tl.arange(0, BLOCK_P)
        left = _features(layer, n, i, pixels, last, INDEX, WIDE)
        right = left if SAME else _features(layer, n, j, pixels, last, INDEX, WIDE)
        product = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=WIDE)
        sums += product * factor
    return sums


@triton.jit
def _store(gram, below, above, n, row, column, i, j, C):
    """Store a tile of the lower triangle and its mirror image. Masks split memory transactions only
    in tiles on the diagonal."""
    inside = (i < C) & (j < C)
    lower = gram + n * C * C + i * C + j
    upper = gram + n * C * C + j * C + i
    tl.store(lower, below, mask=inside & (row != column))
    tl.store(upper, above, mask=inside & (row != column))
    tl.store(lower, below, mask=inside & (row == column) & (j <= i))
    tl.store(upper, above, mask=inside & (row == column) & (j < i))


@triton.jit
def _product_tile(
    layer,
    partial,
    gram,
    program,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    BLOCK: tl.constexpr = layer.BLOCK
    chunk = program % layer.chunks
    t = program // layer.chunks % layer.tiles
    n = (program // layer.chunks // layer.tiles).to(tl.int64)
    row, column = _triangle(t)
    local = tl.arange(0, BLOCK)
    i = row * BLOCK + local
    j = column * BLOCK + local
    if layer.ONE_TILE:  # noqa: SIM114, a branch at compile time
        sums = _products(layer, n, i, i, chunk, True, PRECISION, INDEX, WIDE, BLOCK_P)
    elif row == column:
        sums = _products(layer, n, i, i, chunk, True, PRECISION, INDEX, WIDE, BLOCK_P)
    else:
        sums = _products(layer, n, i, j, chunk, False, PRECISION, INDEX, WIDE, BLOCK_P)
    if gram is None:
        to = partial + ((n * layer.chunks + chunk) * layer.tiles + t) * (BLOCK * BLOCK)
        to += local[:, None] * BLOCK + local[None, :]
        tl.store(to, sums, mask=_kept(row, column, local[:, None], local[None, :]))
    else:
        _store(gram, sums, sums, n, row, column, i[:, None], j[None, :], layer.C)


@triton.jit
def product_kernel(
    layers,
    partial,
    gram,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Compute one tile of the products of one chunk of pixels.

    It is stored to ``partial``, (N, chunks, tiles, BLOCK, BLOCK) of all layers one after the other,
    or to ``gram`` (N, C, C) if there is a single layer of one chunk. The scale is applied in each
    step of BLOCK_P pixels, before sums can overflow.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        programs = layers[k].N * layers[k].tiles * layers[k].chunks
        if (program >= first) & (program < first + programs):
            _product_tile(
                layers[k], partial, gram, program - first, PRECISION, INDEX, WIDE, BLOCK_P
            )
        first += programs
        if gram is None:
            partial += tl.cast(programs, tl.int64) * (layers[k].BLOCK * layers[k].BLOCK)


@triton.jit
def _sum_rows(layer, target, partial, squares, program, WIDE: tl.constexpr):
    BLOCK: tl.constexpr = layer.BLOCK
    ROWS: tl.constexpr = layer.ROWS
    CHUNKS: tl.constexpr = layer.CHUNKS
    C = layer.C
    part = program % (BLOCK // ROWS)
    t = program // (BLOCK // ROWS) % layer.tiles
    n = (program // (BLOCK // ROWS) // layer.tiles).to(tl.int64)
    row, column = _triangle(t)
    local = part * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at = partial + (n * layer.chunks * layer.tiles + t) * (BLOCK * BLOCK)
    at = (at + local[:, None] * BLOCK + columns[None, :])[None, :, :]
    kept = _kept(row, column, local[:, None], columns[None, :])[None, :, :]
    sums = tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, layer.chunks, CHUNKS):
        chunk = (first + tl.arange(0, CHUNKS))[:, None, None]
        away = chunk.to(tl.int64) * (layer.tiles * (BLOCK * BLOCK))
        values = tl.load(at + away, mask=kept & (chunk < layer.chunks), other=0.0)
        sums += tl.sum(values.to(tl.float64), 0)
    i = (row * BLOCK + local)[:, None]
    j = (column * BLOCK + columns)[None, :]
    sums = sums.to(WIDE)
    if target is None:
        _store(layer.gram, sums, sums, n, row, column, i, j, C)
    else:
        slope = 2.0 / _elements(layer)
        wanted = target.gram + n * target.stride_n
        inside = (i < C) & (j < C)
        at = wanted + i * target.stride_i + j * target.stride_j
        below = sums.to(tl.float64) - tl.load(at, mask=inside, other=0.0).to(tl.float64)
        below = tl.where((i < C) & (j <= i), below, 0.0)
        at = wanted + j * target.stride_i + i * target.stride_j
        above = sums.to(tl.float64) - tl.load(at, mask=inside, other=0.0).to(tl.float64)
        above = tl.where((i < C) & (j < i), above, 0.0)
        _store(
            layer.gram, (below * slope).to(WIDE), (above * slope).to(WIDE), n, row, column, i, j, C
        )
        tl.store(squares, tl.sum(below * below + above * above))


@triton.jit
def _elements(layer):
    """The number of elements of a layer's Gram matrices, in float64."""
    return tl.cast(layer.N, tl.float64) * layer.C * layer.C


@triton.jit
def _sum_programs(layer):
    return layer.N * layer.tiles * (layer.BLOCK // layer.ROWS)


@triton.jit
def sum_kernel(layers, targets, partial, squares, WIDE: tl.constexpr):
    """Sum some rows of a tile over chunks in float64, and store them to both triangles of ``gram``
    (N, C, C).

    With targets ``gram`` gets the gradient of the mean squared error instead, and ``squares`` the
    sum of squared differences of each program, in float64.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        programs = _sum_programs(layers[k])
        if (program >= first) & (program < first + programs):
            if targets is None:
                _sum_rows(layers[k], None, partial, None, program - first, WIDE)
            else:
                _sum_rows(layers[k], targets[k], partial, squares + program, program - first, WIDE)
        first += programs
        products = layers[k].N * layers[k].tiles * layers[k].chunks
        partial += tl.cast(products, tl.int64) * (layers[k].BLOCK * layers[k].BLOCK)


@triton.jit
def loss_kernel(layers, squares, losses, BLOCK: tl.constexpr):
    """Compute the loss of each layer from the ``squares`` of `sum_kernel`, a program per layer."""
    first = 0
    for k in tl.static_range(len(layers)):
        count = _sum_programs(layers[k])
        if tl.program_id(0) == k:
            sums = tl.zeros([BLOCK], tl.float64)
            for start in range(0, count, BLOCK):
                at = start + tl.arange(0, BLOCK)
                sums += tl.load(squares + first + at, mask=at < count, other=0.0)
            tl.store(losses + layers[k].LOSS, tl.sum(sums) / _elements(layers[k]))
        first += count
