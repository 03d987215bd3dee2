"""Gram matrix, its gradient, and Gram loss, of one layer or of several in the same launches.

Bytes: the features are read once for C <= 128, where one tile holds all products of a chunk of
pixels. For larger C each tile of one triangle reads the two blocks of channels that it multiplies,
mostly from the L2 cache. Operations: an image takes C (C + 1) P useful ones, and C (C + 128) P with
those of whole tiles on the diagonal. At C = 128 in half precision that is 128 operations a byte, so
up to there memory bandwidth is the limit on all GPUs so far.

C x C is small and H W large, so work is divided among programs by tiles and by chunks of pixels. A
second kernel sums the products of chunks in order, mirrors the triangle and compares it with a
target. A single Gram matrix whose tiles fill the GPU is not split and needs no second kernel. The
deep layers of a style loss are too small to fill a GPU: all layers share one launch of each kernel,
and the number of a layer's programs is proportional to what it reads.

The gradient is S x with S = scale (grad + grad^T), 2 C^2 P operations an image. A first kernel
writes S: C^2 numbers in x's dtype, rounded as PyTorch rounds the gradient of a bmm. A second kernel
multiplies. It reads x once for C <= 128 and C / 128 times above, and writes as many bytes as x has.

Features are centred as they are read: in float32, or float64, and multiplied as such. Their means
take one more pass over memory, and launches of their own for each layer.
"""

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.tensors import dense_like, wide_dtype
from stylekernels.triton.gram_gradient_kernels import (
    GradientLayer,
    SymmetricLayer,
    gradient_kernel,
    symmetric_kernel,
)
from stylekernels.triton.gram_kernels import (
    ProductLayer,
    SumLayer,
    Target,
    loss_kernel,
    product_kernel,
    sum_kernel,
)
from stylekernels.triton.instance_norm import exact_mean
from stylekernels.triton.launch import (
    on_amd,
    processors,
    product_precision,
    stages,
    wide_type,
)
from stylekernels.triton.planes import Planes, index_type_of

#: By bytes of an operand: the most channels of a tile (a tile has these or half as many; float32
#: takes three products, and registers for them), and the pixels of a step.
_BLOCKS = {2: 128, 4: 64, 8: 32}
_PIXELS = {2: 64, 4: 32, 8: 16}
#: Programs for each processor, bytes of shared memory for the stages of one, the most stages, and
#: the most chunks of an image.
_PROGRAMS = 1
_STAGE_BYTES = 96 * 1024
_MOST_STAGES = 8
_CHUNKS = 256
#: `sum_kernel`: partial sums that a program holds at once, but at least one row of each chunk; the
#: most chunks at once; warps.
_SUMS = 1024
_SUM_CHUNKS = 64
_SUM_WARPS = 4
#: The most rows of S that a program of `symmetric_kernel` computes, and the most elements.
_SYMMETRIC = (8, 4096)
#: The gradient's product, by bytes of an operand: the most channels of a tile, channels of a step,
#: elements and the most pixels of a tile, and warps.
_GRADIENT = {
    2: (128, 64, 16384, 256, 8),
    4: (64, 32, 4096, 64, 4),
    8: (32, 16, 512, 32, 4),
}

#: Returns the same compile-time constant object for equal values, so that Triton finds the compiled
#: kernel without comparing values. Typed, since True and 1 are different constants.
_constant = functools.lru_cache(typed=True)(tl.constexpr)


@dataclass(frozen=True)
class _Share:
    """The division of a layer's products among programs.

    Attributes:
        block: rows and columns of a tile.
        tiles: number of tiles of one triangle.
        chunks: number of chunks of an image.
        chunk: pixels of a chunk.
        programs: number of programs for all images.
        read: elements that all programs read together.
    """

    block: int
    tiles: int
    chunks: int
    chunk: int
    programs: int
    read: int

    def cost(self, bytes_of_value: int, wanted: float) -> float:
        """The time that a division takes, as bytes read at full bandwidth.

        Fewer programs than ``wanted`` use a part of the bandwidth. Partial sums, in float32 or
        wider, are written and read again, at half the speed (measured).
        """
        sums = self.programs * self.block**2 if self.chunks > 1 else 0
        reads = self.read * max(1.0, wanted / self.programs)
        return bytes_of_value * reads + 4 * max(4, bytes_of_value) * sums


@functools.lru_cache
def _share_out(
    sizes: tuple[tuple[int, int, int], ...], bytes_of_value: int, programs: int
) -> tuple[_Share, ...]:
    """Divide layers of sizes (images, channels, pixels) among ``programs`` programs in all, or more
    where there are more tiles."""
    reads = [_share(*size, _BLOCKS[bytes_of_value], 1, bytes_of_value).read for size in sizes]
    shares = []
    for size, read in zip(sizes, reads, strict=True):
        wanted = programs * read / sum(reads)
        candidates = _candidates(*size, bytes_of_value, wanted)
        costs = [(share.cost(bytes_of_value, wanted), share) for share in candidates]
        shares.append(min(costs, key=lambda cost: cost[0])[1])
    return tuple(shares)


def _candidates(n: int, c: int, p: int, bytes_of_value: int, wanted: float) -> Iterator[_Share]:
    """Yield divisions into about ``wanted`` programs, those with the larger tiles first."""
    for block in (_BLOCKS[bytes_of_value], _BLOCKS[bytes_of_value] // 2):
        whole = _share(n, c, p, block, 1, bytes_of_value)
        chunks = int(wanted / whole.programs)
        for few in (chunks, chunks + 1):
            yield _share(n, c, p, block, few, bytes_of_value)


def _share(n: int, c: int, p: int, most: int, chunks: int, bytes_of_value: int) -> _Share:
    """Divide into tiles of up to ``most`` channels and about ``chunks`` chunks of several steps."""
    block = max(16, min(triton.next_power_of_2(c), most))
    rows = triton.cdiv(c, block)
    tiles = rows * (rows + 1) // 2
    step = _PIXELS[bytes_of_value]
    chunks = max(1, min(chunks, _CHUNKS, triton.cdiv(p, 4 * step)))
    chunk = triton.cdiv(triton.cdiv(p, chunks), step) * step
    chunks = triton.cdiv(p, chunk)
    # A tile on the diagonal is multiplied with itself.
    return _Share(block, tiles, chunks, chunk, n * tiles * chunks, n * p * block * rows * rows)


def _stages(x: Tensor, share: _Share, bytes_of_value: int, centered: bool) -> int:
    """The number of stages of the loop over pixels. Centring copies the operands of one stage.
    Loads in flight take registers, and float64 spills beyond one stage."""
    if x.dtype == torch.float64:
        return 1
    if on_amd():
        return stages()
    operands = 1 if share.tiles == 1 else 2
    step = operands * share.block * _PIXELS[bytes_of_value] * bytes_of_value
    return max(2, min(_MOST_STAGES, _STAGE_BYTES // step - centered))


def _bits(scale: float) -> int:
    """The bits of a float64, made odd: Triton compiles a kernel again for multiples of 16."""
    return struct.unpack("q", struct.pack("d", scale))[0] | 1


def _scales(layers: Sequence[Planes], scales: Sequence[float] | None) -> Sequence[float]:
    return [1.0 / (f.c * f.p) for f in layers] if scales is None else scales


def _grams(
    layers: Sequence[Planes],
    scales: Sequence[float] | None,
    means: Sequence[Tensor] = (),
    targets: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Gram matrices; or with targets the gradient of each layer's loss, and losses, (layers,).
    Features are centred if there are means."""
    x = layers[0].x
    bytes_of_value = max(4 if means else 0, x.element_size())
    sizes = tuple([(f.n, f.c, f.p) for f in layers])
    shares = _share_out(sizes, bytes_of_value, _PROGRAMS * processors(x.device))
    depths = [_stages(x, share, bytes_of_value, bool(means)) for share in shares]
    scales = _scales(layers, scales)
    grams = [x.new_empty((f.n, f.c, f.c), dtype=wide_dtype(x)) for f in layers]
    # Layers with long programs first: the last programs to start should be short.
    order = sorted(range(len(layers)), key=lambda k: shares[k].read, reverse=True)
    products, sums, wanted = [], [], []
    programs = sum_programs = elements = 0
    for k in order:
        f, s = layers[k], shares[k]
        block = _constant(s.block)
        products.append(
            ProductLayer(
                f.x,
                means[k] if means else None,
                f.n,
                f.c,
                f.p,
                *f.strides,
                _bits(scales[k]),
                s.tiles,
                s.chunks,
                s.chunk,
                block,
                _constant(s.tiles == 1),
                _constant(depths[k]),
            )
        )
        chunks = min(triton.next_power_of_2(s.chunks), _SUM_CHUNKS)
        rows = max(1, min(s.block, _SUMS // (chunks * s.block)))
        sums.append(
            SumLayer(
                grams[k],
                f.n,
                f.c,
                s.tiles,
                s.chunks,
                block,
                _constant(rows),
                _constant(chunks),
                _constant(k),
            )
        )
        if targets is not None:
            target = targets[k].expand(f.n, f.c, f.c)
            wanted.append(Target(targets[k], *target.stride()))
        programs += s.programs
        elements += s.programs * s.block**2
        sum_programs += f.n * s.tiles * (s.block // rows)
    whole = targets is None and shares[0].chunks == 1  # without targets there is a single layer
    partial = None if whole else x.new_empty((elements,), dtype=wide_dtype(x))
    product_kernel[(programs,)](
        tuple(products),
        partial,
        grams[0] if whole else None,
        PRECISION=product_precision(x, torch.backends.cuda.matmul),
        INDEX=index_type_of(*layers),
        WIDE=wide_type(x),
        BLOCK_P=_PIXELS[bytes_of_value],
        num_warps=8 if any(s.block == 128 for s in shares) else 4,
    )
    if whole:
        return grams, None
    squares = losses = None
    if targets is not None:
        squares = x.new_empty((sum_programs,), dtype=torch.float64)
        losses = x.new_empty((len(layers),), dtype=wide_dtype(x))
    sum_kernel[(sum_programs,)](
        tuple(sums),
        tuple(wanted) or None,
        partial,
        squares,
        WIDE=wide_type(x),
        num_warps=_SUM_WARPS,
    )
    if losses is not None:
        loss_kernel[(len(layers),)](tuple(sums), squares, losses, BLOCK=256, num_warps=4)
    return grams, losses


def _gradients(
    grads: Sequence[Tensor],
    features: Sequence[Tensor],
    scales: Sequence[float] | None,
    means: Sequence[Tensor] = (),
    grad_losses: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of features from the gradients of their Gram matrices, times ``grad_losses``.
    Features were centred if there are means."""
    layers = [Planes.of(x) for x in features]
    scales = _scales(layers, scales)
    grad_features = [dense_like(x) for x in features]
    x = layers[0].x
    dtype = wide_dtype(x) if means else x.dtype
    widest, block_k, elements, most_pixels, warps = _GRADIENT[dtype.itemsize]
    symmetric, products = [], []
    symmetric_programs = programs = rows = weights = 0
    for k in sorted(range(len(layers)), key=lambda k: features[k].numel(), reverse=True):
        f, to = layers[k], Planes.of(grad_features[k])
        columns = triton.next_power_of_2(f.c)
        some = max(1, min(_SYMMETRIC[0], _SYMMETRIC[1] // columns))
        symmetric.append(
            SymmetricLayer(
                grads[k],
                *grads[k].stride(),
                f.n,
                f.c,
                _bits(scales[k]),
                _constant(some),
                _constant(columns),
                _constant(k),
            )
        )
        block_c = max(16, min(columns, widest))
        block_p = max(16, min(triton.next_power_of_2(f.p), elements // block_c, most_pixels))
        depth = 1 if x.dtype == torch.float64 else min(stages(), triton.cdiv(f.c, block_k))
        products.append(
            GradientLayer(
                f.x,
                means[k].contiguous() if means else None,
                *f.strides,
                to.x,
                *to.strides,
                f.n,
                f.c,
                f.p,
                _constant(block_c),
                _constant(block_p),
                _constant(depth),
                _constant(to.stride_c == 1 and f.c > 1),
            )
        )
        symmetric_programs += f.n * triton.cdiv(f.c, some)
        programs += f.n * triton.cdiv(f.c, block_c) * triton.cdiv(f.p, block_p)
        rows += f.n * f.c
        weights += f.n * f.c**2
    weights = x.new_empty((weights,), dtype=dtype)
    powers = x.new_empty((rows,), dtype=torch.float32) if dtype == torch.float16 else None
    symmetric_kernel[(symmetric_programs,)](
        tuple(symmetric), grad_losses, weights, powers, WIDE=wide_type(x), num_warps=4
    )
    gradient_kernel[(programs,)](
        tuple(products),
        weights,
        powers,
        PRECISION=product_precision(x, torch.backends.cuda.matmul),
        INDEX=index_type_of(*layers),
        WIDE=wide_type(x),
        BLOCK_K=block_k,
        num_warps=warps,
    )
    return grad_features


def gram_matrix(x: Tensor, scale: float | None, center: bool) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    means = [exact_mean(planes.x)] if center else []
    (gram,), _ = _grams([planes], _of_one(scale), means)
    return gram, means[0] if center else gram.new_empty((0,))


def gram_matrix_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, scale: float | None
) -> Tensor:
    """The op of this name."""
    return _gradients([grad], [x], _of_one(scale), () if mean is None else (mean,))[0]


def gram_loss(
    x: Tensor, target: Tensor, scale: float | None, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name."""
    losses, (grad_gram,), means = gram_losses([x], [target], _of_one(scale), center)
    return losses.view(()), grad_gram, means[0] if center else losses.new_empty((0,))


def gram_losses(
    features: Sequence[Tensor],
    targets: Sequence[Tensor],
    scales: Sequence[float] | None,
    center: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The op of this name."""
    layers = [Planes.of(x) for x in features]
    means = [exact_mean(planes.x) for planes in layers] if center else []
    grad_grams, losses = _grams(layers, scales, means, targets)
    return losses, grad_grams, means


def gram_losses_backward(
    features: Sequence[Tensor],
    grad_grams: Sequence[Tensor],
    means: Sequence[Tensor],
    grad: Tensor,
    scales: Sequence[float] | None,
) -> list[Tensor]:
    """The op of this name."""
    return _gradients(grad_grams, features, scales, means, grad.contiguous())


def _of_one(scale: float | None) -> list[float] | None:
    return None if scale is None else [scale]
