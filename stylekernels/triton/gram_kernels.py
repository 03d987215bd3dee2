"""The kernels of Gram matrices: products of channels, their sums, losses and gradients.

Each serves a list of layers of different sizes in one launch. Every layer gets so many programs in
a row, and a program runs the code that was compiled for its layer: tiles and memory layouts differ
between layers, and only as constants of the compiler cost they nothing. What a kernel knows of a
layer is a tuple; its fields in capitals are such constants.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from stylekernels.triton.launch import INTERPRETED, rounded


class ProductLayer(NamedTuple):
    """Features, (N, C, P) by strides in elements, and how their products are shared out.

    ``scale`` has the bits of a float64: a float in a tuple arrives as float32.
    """

    x: Tensor
    N: int
    C: int
    P: int
    stride_n: int
    stride_c: int
    stride_p: int
    scale: int
    tiles: int
    pieces: int
    piece_pixels: int
    BLOCK: tl.constexpr
    ONE_TILE: tl.constexpr


class SumLayer(NamedTuple):
    """A Gram matrix, (N, C, C), the shares of `ProductLayer` that it is made of, and the place of
    its loss."""

    gram: Tensor
    N: int
    C: int
    tiles: int
    pieces: int
    BLOCK: tl.constexpr
    PLACE: tl.constexpr


class Target(NamedTuple):
    """Gram matrices to reach; stride_n is 0 for one that all images share."""

    gram: Tensor
    stride_n: int
    stride_i: int
    stride_j: int


class GradientLayer(NamedTuple):
    """The gradient of a Gram matrix, features and their gradient, by strides; ``scale`` as in
    `ProductLayer`, and the place of the loss that the matrix is the slope of."""

    grad: Tensor
    grad_stride_n: int
    grad_stride_i: int
    grad_stride_j: int
    x: Tensor
    x_stride_n: int
    x_stride_c: int
    x_stride_p: int
    grad_x: Tensor
    to_stride_n: int
    to_stride_c: int
    to_stride_p: int
    N: int
    C: int
    P: int
    scale: int
    BLOCK_C: tl.constexpr
    PLACE: tl.constexpr


@triton.jit
def _triangle(t):
    """Row and column of the t-th tile of the lower triangle, by rows."""
    row = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > t, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= t, row + 1, row)
    return row, t - row * (row + 1) // 2


@triton.jit
def _float64(bits):
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _centered(value, mean, n, channels, N, C, WIDE: tl.constexpr):
    """``value`` less the mean of its channel, which is (2, N, C) with its rounding error."""
    inside = channels < C
    near = tl.load(mean + n * C + channels, mask=inside, other=0.0)
    error = tl.load(mean + (N + n) * C + channels, mask=inside, other=0.0)
    return (value.to(WIDE) - near[:, None]) - error[:, None]


@triton.jit
def _product_tile(
    layer,
    mean,
    partial,
    program,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    BLOCK: tl.constexpr = layer.BLOCK
    N, C = layer.N, layer.C
    piece = program % layer.pieces
    t = program // layer.pieces % layer.tiles
    n = (program // layer.pieces // layer.tiles).to(tl.int64)
    row, column = _triangle(t)
    i = row * BLOCK + tl.arange(0, BLOCK)
    j = column * BLOCK + tl.arange(0, BLOCK)
    first = piece * layer.piece_pixels
    last = tl.minimum(first + layer.piece_pixels, layer.P)
    base = layer.x + n * layer.stride_n
    sums = tl.zeros([BLOCK, BLOCK], WIDE)
    factor = tl.full([1, 1], _float64(layer.scale), WIDE)
    for start in range(first, last, BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        along = (pixels.to(INDEX) * layer.stride_p)[None, :]
        inside = (pixels < last)[None, :]
        left_inside = inside & (i < C)[:, None]
        at = base + (i.to(INDEX) * layer.stride_c)[:, None] + along
        left = tl.load(at, mask=left_inside, other=0.0)
        if mean is not None:
            left = tl.where(left_inside, _centered(left, mean, n, i, N, C, WIDE), 0.0)
        if INTERPRETED:
            left = left.to(WIDE)
        if layer.ONE_TILE:
            right = left
        else:
            right_inside = inside & (j < C)[:, None]
            at = base + (j.to(INDEX) * layer.stride_c)[:, None] + along
            right = tl.load(at, mask=right_inside, other=0.0)
            if mean is not None:
                right = tl.where(right_inside, _centered(right, mean, n, j, N, C, WIDE), 0.0)
            if INTERPRETED:
                right = right.to(WIDE)
        product = tl.dot(left, tl.trans(right), input_precision=PRECISION, out_dtype=WIDE)
        sums += product * factor
    to = partial + ((n * layer.pieces + piece) * layer.tiles + t) * (BLOCK * BLOCK)
    local = tl.arange(0, BLOCK)
    tl.store(to + local[:, None] * BLOCK + local[None, :], sums)


@triton.jit
def product_kernel(
    layers,
    mean,
    partial,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One tile of the products of one piece of pixels: partial (N, pieces, tiles, BLOCK, BLOCK) of
    each layer, one after the other. ``mean`` is that of a single layer, or None.

    The scale is applied to every BLOCK_P pixels, before sums can overflow.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        programs = layers[k].N * layers[k].tiles * layers[k].pieces
        if (program >= first) & (program < first + programs):
            _product_tile(
                layers[k], mean, partial, program - first, PRECISION, INDEX, WIDE, BLOCK_P
            )
        first += programs
        partial += tl.cast(programs, tl.int64) * (layers[k].BLOCK * layers[k].BLOCK)


@triton.jit
def _sum_rows(layer, target, partial, squares, program, WIDE: tl.constexpr, ROWS: tl.constexpr):
    BLOCK: tl.constexpr = layer.BLOCK
    C = layer.C
    part = program % (BLOCK // ROWS)
    t = program // (BLOCK // ROWS) % layer.tiles
    n = (program // (BLOCK // ROWS) // layer.tiles).to(tl.int64)
    row, column = _triangle(t)
    local = part * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at = partial + (n * layer.pieces * layer.tiles + t) * (BLOCK * BLOCK)
    at += local[:, None] * BLOCK + columns[None, :]
    sums = tl.zeros([ROWS, BLOCK], tl.float64)
    for _ in range(layer.pieces):
        sums += tl.load(at).to(tl.float64)
        at += layer.tiles * (BLOCK * BLOCK)
    i = (row * BLOCK + local)[:, None]
    j = (column * BLOCK + columns)[None, :]
    inside = (i < C) & (j < C)
    to = layer.gram + n * C * C
    if target is None:
        value = sums.to(WIDE)
        tl.store(to + i * C + j, value, mask=inside)
        tl.store(to + j * C + i, value, mask=inside & (row != column))
    else:
        slope = 2.0 / _elements(layer)
        wanted = target.gram + n * target.stride_n
        sums = sums.to(WIDE).to(tl.float64)
        below = sums - tl.load(
            wanted + i * target.stride_i + j * target.stride_j, mask=inside, other=0.0
        ).to(tl.float64)
        below = tl.where(inside, below, 0.0)
        mirrored = inside & (row != column)
        above = sums - tl.load(
            wanted + j * target.stride_i + i * target.stride_j, mask=mirrored, other=0.0
        ).to(tl.float64)
        above = tl.where(mirrored, above, 0.0)
        tl.store(to + i * C + j, (below * slope).to(WIDE), mask=inside)
        tl.store(to + j * C + i, (above * slope).to(WIDE), mask=mirrored)
        tl.store(squares, tl.sum(below * below + above * above))


@triton.jit
def _elements(layer):
    """Of a layer's Gram matrices, in float64."""
    return tl.cast(layer.N, tl.float64) * layer.C * layer.C


@triton.jit
def _sum_programs(layer, ROWS: tl.constexpr):
    return layer.N * layer.tiles * (layer.BLOCK // ROWS)


@triton.jit
def sum_kernel(layers, targets, partial, squares, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Some rows of a tile, summed over pieces in float64, to both triangles of ``gram`` (N, C, C).

    With targets what is written is the slope of the mean squared error, and a program's sum of
    squared differences goes to ``squares``, a number of float64 for each program.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        programs = _sum_programs(layers[k], ROWS)
        if (program >= first) & (program < first + programs):
            if targets is None:
                _sum_rows(layers[k], None, partial, None, program - first, WIDE, ROWS)
            else:
                _sum_rows(
                    layers[k], targets[k], partial, squares + program, program - first, WIDE, ROWS
                )
        first += programs
        products = layers[k].N * layers[k].tiles * layers[k].pieces
        partial += tl.cast(products, tl.int64) * (layers[k].BLOCK * layers[k].BLOCK)


@triton.jit
def loss_kernel(layers, squares, losses, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The loss of each layer from the squares of `sum_kernel`: a program a layer."""
    first = 0
    for k in tl.static_range(len(layers)):
        count = _sum_programs(layers[k], ROWS)
        if tl.program_id(0) == k:
            sums = tl.zeros([BLOCK], tl.float64)
            for start in range(0, count, BLOCK):
                at = start + tl.arange(0, BLOCK)
                sums += tl.load(squares + first + at, mask=at < count, other=0.0)
            tl.store(losses + layers[k].PLACE, tl.sum(sums) / _elements(layers[k]))
        first += count


@triton.jit
def _gradient_tile(
    layer,
    mean,
    grad_losses,
    program,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    BLOCK_C: tl.constexpr = layer.BLOCK_C
    N, C, P = layer.N, layer.C, layer.P
    blocks = tl.cdiv(C, BLOCK_C)
    spans = tl.cdiv(P, BLOCK_P)
    i = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = program // blocks % spans * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (program // blocks // spans).to(tl.int64)
    matrix = layer.grad + n * layer.grad_stride_n
    along = (pixels.to(INDEX) * layer.x_stride_p)[None, :]
    factor = _float64(layer.scale)
    if grad_losses is not None:
        factor *= tl.load(grad_losses + layer.PLACE).to(tl.float64)
    factor = tl.full([1, 1], factor, WIDE)
    sums = tl.zeros([BLOCK_C, BLOCK_P], WIDE)
    for start in range(0, C, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (i < C)[:, None] & (k < C)[None, :]
        at = matrix + i[:, None] * layer.grad_stride_i + k[None, :] * layer.grad_stride_j
        weights = tl.load(at, mask=inside, other=0.0)
        at = matrix + k[None, :] * layer.grad_stride_i + i[:, None] * layer.grad_stride_j
        weights += tl.load(at, mask=inside, other=0.0)
        weights = weights * factor
        here = (k < C)[:, None] & (pixels < P)[None, :]
        at = layer.x + n * layer.x_stride_n + (k.to(INDEX) * layer.x_stride_c)[:, None] + along
        value = tl.load(at, mask=here, other=0.0)
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
        layer.grad_x + n * layer.to_stride_n + (i.to(INDEX) * layer.to_stride_c)[:, None]
        + (pixels.to(INDEX) * layer.to_stride_p)[None, :]
    )  # fmt: skip
    tl.store(to, rounded(sums, to.dtype.element_ty), mask=(i < C)[:, None] & (pixels < P)[None, :])


@triton.jit
def gradient_kernel(
    layers,
    mean,
    grad_losses,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = scale (grad + grad^T) (x - mean): some channels of some pixels, times the gradient
    of the layer's loss if there is one.

    The matrix is in float32. SPLIT: its values become the sums of two of bfloat16, each multiplied
    with x as it is stored; else x is widened.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        blocks = tl.cdiv(layers[k].C, layers[k].BLOCK_C)
        programs = layers[k].N * blocks * tl.cdiv(layers[k].P, BLOCK_P)
        if (program >= first) & (program < first + programs):
            _gradient_tile(
                layers[k], mean, grad_losses, program - first, PRECISION, SPLIT, INDEX, WIDE,
                BLOCK_K, BLOCK_P,
            )  # fmt: skip
        first += programs
