"""Images as planes of pixels, in tiles of pixels by channels.

One kernel serves both memory layouts: an image is addressed as ``n * stride_n + c * stride_c +
pixel * stride_p``, one of the last two strides is 1, and Triton compiles a kernel for which.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.triton.launch import processors

#: The most chunks of a plane: as many moments as one program merges.
MERGED = 1024
#: Elements of a tile (16 for each thread of 4 warps), and the most (32 for each of 16 warps).
_TILE = 2048
_LARGEST_TILE = 16384
#: Programs that the registers of a processor hold at once.
_PROGRAMS = 8
#: The same with tiles of whole pixels: these are twice as large, since a thread holds 8 channels.
_PROGRAMS_OF_PIXELS = 4
#: The same with tiles of two tensors.
_PROGRAMS_OF_TWO = 6


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
        """The type of offsets within an image. The last chunk or tile may end up to a plane beyond
        the image, so that int32 holds the offsets of half as many elements."""
        return tl.int64 if self.c * self.p >= 2**30 else tl.int32


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


def index_type_of(*images: Planes) -> tl.dtype:
    """Return the type of offsets for kernels that address several tensors."""
    return tl.int64 if any(planes.index_type == tl.int64 for planes in images) else tl.int32


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
