"""Kernels for the gradient of Gram matrices: one launch serves a list of layers, as in
gram_kernels.py."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from stylekernels.triton.gram_kernels import centered, float64_of
from stylekernels.triton.launch import INTERPRETED, rounded


class SymmetricLayer(NamedTuple):
    """The gradient of a Gram matrix, (N, C, C) by strides.

    ``scale`` is as in `ProductLayer`. LOSS is the index of the loss that the matrix is the gradient
    of. COLUMNS is at least C.
    """

    grad: Tensor
    stride_n: int
    stride_i: int
    stride_j: int
    N: int
    C: int
    scale: int
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr
    LOSS: tl.constexpr


class GradientLayer(NamedTuple):
    """Features and their gradient, (N, C, P) by strides. ``mean`` is as in `ProductLayer`.

    The rows of the product are pixels with PIXEL_ROWS, else channels. Its columns are the dimension
    that is dense in memory, so that neighbouring threads write neighbouring addresses.
    """

    x: Tensor
    mean: Tensor | None
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
    BLOCK_C: tl.constexpr
    BLOCK_P: tl.constexpr
    STAGES: tl.constexpr
    PIXEL_ROWS: tl.constexpr


@triton.jit
def _symmetric_rows(layer, grad_losses, weights, powers, program, WIDE: tl.constexpr):
    C = layer.C
    blocks = tl.cdiv(C, layer.ROWS)
    n = (program // blocks).to(tl.int64)
    i = program % blocks * layer.ROWS + tl.arange(0, layer.ROWS)
    k = tl.arange(0, layer.COLUMNS)
    inside = (i < C)[:, None] & (k < C)[None, :]
    grad = layer.grad + n * layer.stride_n
    at = grad + i[:, None] * layer.stride_i + k[None, :] * layer.stride_j
    values = tl.load(at, mask=inside, other=0.0)
    at = grad + k[None, :] * layer.stride_i + i[:, None] * layer.stride_j
    values += tl.load(at, mask=inside, other=0.0)
    factor = float64_of(layer.scale)
    if grad_losses is not None:
        factor *= tl.load(grad_losses + layer.LOSS).to(tl.float64)
    values = values * tl.full([1, 1], factor, WIDE)
    if powers is not None:
        size = tl.abs(values)
        largest = tl.max(tl.where(size < float("inf"), size, 0.0), 1)
        bits = largest.to(tl.int32, bitcast=True) & 0x7F800000  # the exponent's bits
        bits = tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23)
        values = values * ((254 << 23) - bits).to(tl.float32, bitcast=True)[:, None]
        tl.store(powers + n * C + i, bits.to(tl.float32, bitcast=True), mask=i < C)
    to = weights + (n * C + i[:, None]) * C + k[None, :]
    tl.store(to, rounded(values, weights.dtype.element_ty), mask=inside)


@triton.jit
def symmetric_kernel(layers, grad_losses, weights, powers, WIDE: tl.constexpr):
    """Compute some rows of S = scale (grad + grad^T), times the gradient of the layer's loss if
    there is one. ``weights`` holds the (N, C, C) of all layers, one after the other.

    With ``powers``, (N, C) of each layer, each row is divided by a power of two, which is stored
    there: its largest value becomes 1 to 4, for float16 has a small range of exponents.
    """
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        programs = layers[k].N * tl.cdiv(layers[k].C, layers[k].ROWS)
        if (program >= first) & (program < first + programs):
            _symmetric_rows(layers[k], grad_losses, weights, powers, program - first, WIDE)
        first += programs
        rows = tl.cast(layers[k].N, tl.int64) * layers[k].C
        weights += rows * layers[k].C
        if powers is not None:
            powers += rows


@triton.jit
def _spans(layer):
    """The number of spans of BLOCK_P pixels. ``tl.cdiv`` would exceed int32 for P near 2^31."""
    return (layer.P - 1) // layer.BLOCK_P + 1


@triton.jit
def _gradient_tile(
    layer,
    weights,
    powers,
    program,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    N, C, P = layer.N, layer.C, layer.P
    blocks = tl.cdiv(C, layer.BLOCK_C)
    spans = _spans(layer)
    i = program % blocks * layer.BLOCK_C + tl.arange(0, layer.BLOCK_C)
    pixels = (program // blocks % spans).to(INDEX) * layer.BLOCK_P + tl.arange(0, layer.BLOCK_P)
    n = (program // blocks // spans).to(tl.int64)
    rows = weights + (n * C + i)[:, None] * C
    along = layer.x + n * layer.x_stride_n + (pixels * layer.x_stride_p)[None, :]
    if layer.PIXEL_ROWS:
        sums = tl.zeros([layer.BLOCK_P, layer.BLOCK_C], WIDE)
    else:
        sums = tl.zeros([layer.BLOCK_C, layer.BLOCK_P], WIDE)
    for start in tl.range(0, C, BLOCK_K, num_stages=layer.STAGES):
        k = start + tl.arange(0, BLOCK_K)
        weight = tl.load(rows + k[None, :], mask=(i < C)[:, None] & (k < C)[None, :], other=0.0)
        here = (k < C)[:, None] & (pixels < P)[None, :]
        value = tl.load(along + (k.to(INDEX) * layer.x_stride_c)[:, None], mask=here, other=0.0)
        if layer.mean is not None:
            value = tl.where(here, centered(value, layer.mean, n, k, N, C, WIDE), 0.0)
        if INTERPRETED:
            weight, value = weight.to(WIDE), value.to(WIDE)
        if layer.PIXEL_ROWS:
            left, right = tl.trans(value), tl.trans(weight)
        else:
            left, right = weight, value
        sums = tl.dot(left, right, sums, input_precision=PRECISION, out_dtype=WIDE)
    if layer.PIXEL_ROWS:
        sums = tl.trans(sums)
    if powers is not None:
        sums *= tl.load(powers + n * C + i, mask=i < C, other=0.0)[:, None]
    to = (
        layer.grad_x
        + n * layer.to_stride_n
        + (i.to(INDEX) * layer.to_stride_c)[:, None]
        + (pixels * layer.to_stride_p)[None, :]
    )
    tl.store(to, rounded(sums, to.dtype.element_ty), mask=(i < C)[:, None] & (pixels < P)[None, :])


@triton.jit
def gradient_kernel(
    layers,
    weights,
    powers,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute a tile of grad_x = S (x - mean), with S from `symmetric_kernel`."""
    program = tl.program_id(0)
    first = 0
    for k in tl.static_range(len(layers)):
        blocks = tl.cdiv(layers[k].C, layers[k].BLOCK_C)
        programs = layers[k].N * blocks * _spans(layers[k])
        if (program >= first) & (program < first + programs):
            _gradient_tile(
                layers[k], weights, powers, program - first, PRECISION, INDEX, WIDE, BLOCK_K
            )
        first += programs
        rows = tl.cast(layers[k].N, tl.int64) * layers[k].C
        weights += rows * layers[k].C
        if powers is not None:
            powers += rows
