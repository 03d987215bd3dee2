"""Gram matrix, its gradient, and Gram loss, of one layer or of several in the same launches.

Bytes: the features once for C <= 128, where one tile holds all products of a piece of pixels;
above, each tile of one triangle reads the two blocks of channels that it multiplies. Operations:
C (C + 1) P useful ones an image; whole tiles on the diagonal make it C (C + 128) P. With 128
operations a byte at C = 128 in half precision, the features' bytes decide up to there on every GPU
so far.

Programs share out tiles and pieces of pixels, since C x C is small and H W large; the pieces'
products are added up in their order by a second kernel, which also mirrors the triangle and
compares it with a target. The deep layers of a style loss are too small to fill a GPU alone: all
layers share one launch of each kernel, in which each has programs in proportion to what it reads.
"""

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.reference.dtypes import wide_dtype
from stylekernels.reference.layouts import dense_like
from stylekernels.triton.gram_kernels import (
    GradientLayer,
    ProductLayer,
    SumLayer,
    Target,
    gradient_kernel,
    loss_kernel,
    product_kernel,
    sum_kernel,
)
from stylekernels.triton.instance_norm import exact_mean
from stylekernels.triton.launch import (
    INTERPRETED,
    processors,
    product_precision,
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

#: Makes a constant of the compiler; the same object each time, by which Triton finds its kernel
#: without comparing values. Typed, for True is not 1 there.
_constant = functools.lru_cache(typed=True)(tl.constexpr)


@dataclass(frozen=True)
class _Share:
    """How the products of a layer are shared out.

    Attributes:
        block: rows and columns of a tile.
        tiles: of one triangle.
        pieces: of an image.
        piece: pixels of a piece.
        read: elements that all programs read together.
    """

    block: int
    tiles: int
    pieces: int
    piece: int
    read: int


@functools.lru_cache
def _share_out(
    sizes: tuple[tuple[int, int, int], ...], bytes_of_value: int, programs: int
) -> tuple[_Share, ...]:
    """Shares of layers of so many images, channels and pixels: ``programs`` in all, or one for each
    tile where that is more."""
    block_p = _pixels(bytes_of_value)
    blocks = [max(16, min(triton.next_power_of_2(c), _BLOCKS[bytes_of_value])) for _, c, _ in sizes]
    rows = [triton.cdiv(c, block) for (_, c, _), block in zip(sizes, blocks, strict=True)]
    tiles = [row * (row + 1) // 2 for row in rows]
    reads = [
        n * t * p * block * min(t, 2)  # a single tile is multiplied with itself
        for (n, _, p), t, block in zip(sizes, tiles, blocks, strict=True)
    ]
    shares = []
    for (n, _, p), block, t, read in zip(sizes, blocks, tiles, reads, strict=True):
        wanted = triton.cdiv(programs * read, n * t * sum(reads))
        pieces = max(1, min(wanted, _PIECES, triton.cdiv(p, 4 * block_p)))
        piece = triton.cdiv(triton.cdiv(p, pieces), block_p) * block_p
        shares.append(_Share(block, t, triton.cdiv(p, piece), piece, read))
    return tuple(shares)


def _pixels(bytes_of_value: int) -> int:
    """Of a step over products."""
    return {2: 64, 4: 32, 8: 16}[bytes_of_value]


def _bits(scale: float) -> int:
    """Of a float64; odd, for Triton compiles once more for numbers that 16 divides."""
    return struct.unpack("q", struct.pack("d", scale))[0] | 1


def _scales(layers: Sequence[Planes], scales: Sequence[float] | None) -> Sequence[float]:
    return [1.0 / (f.c * f.p) for f in layers] if scales is None else scales


def _stages(x: Tensor) -> int:
    """Loads under way take registers, and float64 spills what it takes beyond one step's."""
    return 1 if x.dtype == torch.float64 else stages()


def _index_type(layers: Sequence[Planes]) -> tl.dtype:
    return tl.int64 if any(f.index_type == tl.int64 for f in layers) else tl.int32


def _grams(
    layers: Sequence[Planes],
    scales: Sequence[float] | None,
    mean: Tensor | None = None,
    targets: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Gram matrices; or with targets the slope of each layer's loss, and the losses, (layers,)."""
    x = layers[0].x
    bytes_of_value = max(4 if mean is not None else 0, x.element_size())
    sizes = tuple([(f.n, f.c, f.p) for f in layers])
    shares = _share_out(sizes, bytes_of_value, 2 * processors(x.device))
    scales = _scales(layers, scales)
    grams = [x.new_empty((f.n, f.c, f.c), dtype=wide_dtype(x)) for f in layers]
    # The last programs to start should not be long ones.
    order = sorted(range(len(layers)), key=lambda k: shares[k].read, reverse=True)
    products, sums, wanted = [], [], []
    programs = sum_programs = elements = 0
    for k in order:
        f, s = layers[k], shares[k]
        block = _constant(s.block)
        products.append(
            ProductLayer(
                f.x, f.n, f.c, f.p, *f.strides, _bits(scales[k]), s.tiles, s.pieces, s.piece,
                block, _constant(s.tiles == 1),
            )
        )  # fmt: skip
        sums.append(SumLayer(grams[k], f.n, f.c, s.tiles, s.pieces, block, _constant(k)))
        if targets is not None:
            target = targets[k].expand(f.n, f.c, f.c)
            wanted.append(Target(targets[k], *target.stride()))
        programs += f.n * s.tiles * s.pieces
        elements += f.n * s.tiles * s.pieces * s.block**2
        sum_programs += f.n * s.tiles * (s.block // _ROWS)
    partial = x.new_empty((elements,), dtype=wide_dtype(x))
    product_kernel[(programs,)](
        tuple(products), mean, partial,
        PRECISION=product_precision(x, torch.backends.cuda.matmul),
        INDEX=_index_type(layers), WIDE=wide_type(x), BLOCK_P=_pixels(bytes_of_value),
        num_warps=8 if any(s.block == 128 for s in shares) else 4,
        num_stages=_stages(x),
    )  # fmt: skip
    squares = losses = None
    if targets is not None:
        squares = x.new_empty((sum_programs,), dtype=torch.float64)
        losses = x.new_empty((len(layers),), dtype=wide_dtype(x))
    sum_kernel[(sum_programs,)](
        tuple(sums), tuple(wanted) or None, partial, squares, WIDE=wide_type(x), ROWS=_ROWS,
        num_warps=4,
    )  # fmt: skip
    if losses is not None:
        loss_kernel[(len(layers),)](
            tuple(sums), squares, losses, ROWS=_ROWS, BLOCK=256, num_warps=4
        )
    return grams, losses


def _gradients(
    grads: Sequence[Tensor],
    features: Sequence[Tensor],
    scales: Sequence[float] | None,
    mean: Tensor | None = None,
    grad_losses: Tensor | None = None,
) -> list[Tensor]:
    """Of features, from those of their Gram matrices, times those of losses if there are any."""
    layers = [Planes.of(x) for x in features]
    scales = _scales(layers, scales)
    grad_features = [dense_like(x) for x in features]
    x = layers[0].x
    split = x.dtype == torch.bfloat16 and mean is None and not INTERPRETED.value
    widest, block_k, block_p = (64, 64, 64) if split else (64, 32, 64)
    if x.dtype == torch.float64:
        widest, block_k, block_p = 32, 16, 16
    arguments, programs = [], 0
    for k in sorted(range(len(layers)), key=lambda k: features[k].numel(), reverse=True):
        f, to = layers[k], Planes.of(grad_features[k])
        block_c = max(16, min(triton.next_power_of_2(f.c), widest))
        arguments.append(
            GradientLayer(
                grads[k], *grads[k].stride(), f.x, *f.strides, to.x, *to.strides, f.n, f.c, f.p,
                _bits(scales[k]), _constant(block_c), _constant(k),
            )
        )  # fmt: skip
        programs += f.n * triton.cdiv(f.c, block_c) * triton.cdiv(f.p, block_p)
    gradient_kernel[(programs,)](
        tuple(arguments), mean, grad_losses,
        PRECISION=product_precision(x, torch.backends.cuda.matmul), SPLIT=split,
        INDEX=_index_type(layers), WIDE=wide_type(x), BLOCK_K=block_k, BLOCK_P=block_p,
        num_warps=4, num_stages=_stages(x),
    )  # fmt: skip
    return grad_features


def gram_matrix(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    mean = exact_mean(planes.x) if center else None
    (gram,), _ = _grams([planes], _of_one(scale), mean)
    return gram, gram.new_empty((0,)) if mean is None else mean


def gram_matrix_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, scale: float | None
) -> Tensor:
    """The op of this name."""
    mean = None if mean is None else mean.contiguous()
    return _gradients([grad], [x], _of_one(scale), mean)[0]


def gram_loss(x: Tensor, target: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    losses, (grad_gram,) = gram_losses([x], [target], _of_one(scale))
    return losses.view(()), grad_gram


def gram_losses(
    features: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float] | None
) -> tuple[Tensor, list[Tensor]]:
    """The op of this name."""
    grad_grams, losses = _grams([Planes.of(x) for x in features], scales, targets=targets)
    return losses, grad_grams


def gram_losses_backward(
    features: Sequence[Tensor],
    grad_grams: Sequence[Tensor],
    grad: Tensor,
    scales: Sequence[float] | None,
) -> list[Tensor]:
    """The op of this name."""
    return _gradients(grad_grams, features, scales, grad_losses=grad.contiguous())


def _of_one(scale: float | None) -> list[float] | None:
    return None if scale is None else [scale]
