"""The deferred-norm convolution.

Two kernels a layer. The first writes what is convolved: the input, normalised, activated and with
the residual added, rounded once. It reads and writes every value once, so that the second, which
meets each input k x k / stride^2 times, loads it as it is. Where that is hardly more than once
(1x1, 3x3 with stride 2) and nobody else wants the sum, the second kernel normalises as it loads and
the first is left out.

The second is an implicit matrix product: rows are output pixels of one image, columns output
channels, and the inner dimension kernel taps times input channels. Padding is a map of row and
column numbers. The tile's statistics are taken from its values as they are rounded, a piece of
`planes` for each tile, and merged afterwards.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.reference.dtypes import wide_dtype
from stylekernels.reference.layouts import dense_like
from stylekernels.triton.activations import activate
from stylekernels.triton.conv_geometry import Geometry
from stylekernels.triton.launch import (
    INTERPRETED,
    column_sums,
    product_precision,
    rounded,
    stages,
    wide_type,
)
from stylekernels.triton.planes import Planes, store_moments, write_statistics


@triton.jit
def _continued(at, size, PADDING_MODE: tl.constexpr):
    """The pixel of an image of ``size`` that stands at ``at``, beyond its border too."""
    if PADDING_MODE == "reflect":
        at = tl.abs(at)
        at = size - 1 - tl.abs(size - 1 - at)
    return tl.minimum(tl.maximum(at, 0), size - 1)


@triton.jit
def _scale_and_shift(scale_shift, n, channels, C):
    inside = channels < C
    at = scale_shift + 2 * (n * C + channels)
    scale = tl.load(at, mask=inside, other=0.0)[None, :]
    return scale, tl.load(at + 1, mask=inside, other=0.0)[None, :]


@triton.jit
def _scaled(z, scale, shift):
    """z * scale + shift rounded once: the product may be far larger than the sum."""
    if INTERPRETED:  # whose fma rounds twice
        return (z.to(tl.float64) * scale.to(tl.float64) + shift.to(tl.float64)).to(z.dtype)
    else:
        return tl.fma(z, tl.broadcast_to(scale, z.shape), tl.broadcast_to(shift, z.shape))


@triton.jit
def prepare_kernel(
    x,
    scale_shift,
    residual,
    padded,
    kept,
    C,
    H,
    W,
    x_stride_n: tl.int64,
    x_stride_c,
    x_stride_p,
    residual_stride_n: tl.int64,
    residual_stride_c,
    residual_stride_p,
    padded_stride_n: tl.int64,
    padded_stride_c,
    padded_stride_p,
    kept_stride_n: tl.int64,
    kept_stride_c,
    kept_stride_p,
    CHANNELS,
    BORDER: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """activation(x * scale + shift) + residual, to ``padded`` with a border and CHANNELS >= C
    channels, those beyond C zero, and to ``kept`` (where there is one) without."""
    program = tl.program_id(0)
    width = W + 2 * BORDER
    size = (H + 2 * BORDER) * width
    blocks = tl.cdiv(CHANNELS, BLOCK_C)
    spans = tl.cdiv(size, BLOCK_P)
    channels = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    places = program // blocks % spans * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (program // blocks // spans).to(tl.int64)
    in_image = places < size
    known = in_image
    pixels = places
    if BORDER > 0:
        row, column = places // width - BORDER, places % width - BORDER
        own = in_image & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        if PADDING_MODE == "zeros":
            known = own
        pixels = _continued(row, H, PADDING_MODE) * W + _continued(column, W, PADDING_MODE)
    inside = known[:, None] & (channels < C)[None, :]
    columns, lines = channels.to(INDEX)[None, :], pixels.to(INDEX)[:, None]
    z = tl.load(x + n * x_stride_n + columns * x_stride_c + lines * x_stride_p,
                mask=inside, other=0).to(WIDE)  # fmt: skip
    if scale_shift is not None:
        scale, shift = _scale_and_shift(scale_shift, n, channels, C)
        z = _scaled(z, scale, shift)
    z = activate(z, ACTIVATION, SLOPE)
    if residual is not None:
        z += tl.load(
            residual + n * residual_stride_n + columns * residual_stride_c
            + lines * residual_stride_p, mask=inside, other=0.0,
        ).to(WIDE)  # fmt: skip
    z = rounded(tl.where(inside, z, 0.0), padded.dtype.element_ty)
    to = padded + n * padded_stride_n + columns * padded_stride_c
    to += (places.to(INDEX) * padded_stride_p)[:, None]
    tl.store(to, z, mask=in_image[:, None] & (channels < CHANNELS)[None, :])
    if kept is not None:
        if BORDER > 0:
            inside = inside & own[:, None]
        to = kept + n * kept_stride_n + columns * kept_stride_c + lines * kept_stride_p
        tl.store(to, z, mask=inside)


@triton.jit
def convolution_kernel(
    x,
    weight,
    bias,
    scale_shift,
    y,
    moments,
    N,
    C,
    H,
    W,
    outputs,
    rows_out,
    columns_out,
    y_rows,
    y_columns,
    x_stride_n: tl.int64,
    x_stride_h,
    x_stride_w,
    y_stride_n: tl.int64,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    tiles,
    STRIDE: tl.constexpr,
    PARITIES: tl.constexpr,
    TAPS_EVEN: tl.constexpr,
    TAPS_ODD: tl.constexpr,
    START_EVEN: tl.constexpr,
    START_ODD: tl.constexpr,
    REPEATS: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    RUN_CHANNELS: tl.constexpr,
    BORDER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M pixels of one parity of one image, in BLOCK_N channels. x is channels_last.

    With RUN_CHANNELS, that many channels to a pixel, x has its border already, and a step takes all
    that a kernel row meets. Else a step takes BLOCK_K channels of one tap, normalised here where
    there is a ``scale_shift``.
    """
    program = tl.program_id(0)
    column_blocks = tl.cdiv(outputs, BLOCK_N)
    block = program % column_blocks
    parity = program // column_blocks % PARITIES
    tile = program // column_blocks // PARITIES % tiles
    n = (program // column_blocks // PARITIES // tiles).to(tl.int64)
    parity_y, parity_x = parity // 2, parity % 2
    if PARITIES == 1:
        taps_y, taps_x, start_y, start_x = TAPS_EVEN, TAPS_EVEN, START_EVEN, START_EVEN
        taps_before = 0
    else:
        taps_y = tl.where(parity_y == 0, TAPS_EVEN, TAPS_ODD)
        taps_x = tl.where(parity_x == 0, TAPS_EVEN, TAPS_ODD)
        start_y = tl.where(parity_y == 0, START_EVEN, START_ODD)
        start_x = tl.where(parity_x == 0, START_EVEN, START_ODD)
        taps_before = parity_y * TAPS_EVEN * (TAPS_EVEN + TAPS_ODD) + parity_x * taps_y * TAPS_EVEN

    pixels = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    here = pixels < rows_out * columns_out
    row, column = pixels // columns_out, pixels % columns_out
    channels = block * BLOCK_N + tl.arange(0, BLOCK_N)
    in_outputs = channels < outputs
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_M, BLOCK_N], WIDE)
    if RUN_CHANNELS:
        # In multiples of RUN_CHANNELS, so that the compiler knows how many values may be loaded
        # at once.
        width = W + 2 * BORDER
        at = (row * STRIDE).to(INDEX) * width + column * STRIDE
        at = x + n * (H + 2 * BORDER) * width * RUN_CHANNELS + (at * RUN_CHANNELS)[:, None]
        at += k[None, :]
        from_weight = weight + k[:, None] * outputs + channels[None, :]
        inside = here[:, None] & (k < TAPS_EVEN * RUN_CHANNELS)[None, :]
        for _ in range(TAPS_EVEN):
            values = tl.load(at, mask=inside, other=0.0)
            factors = tl.load(from_weight, mask=in_outputs[None, :], other=0.0)
            if INTERPRETED:
                values, factors = values.to(WIDE), factors.to(WIDE)
            sums = tl.dot(values, factors, sums, input_precision=PRECISION, out_dtype=WIDE)
            at += width * RUN_CHANNELS
            from_weight += BLOCK_K * outputs
    else:
        steps = tl.cdiv(C, BLOCK_K)
        for step in range(taps_y * taps_x * steps):
            tap = step // steps
            c = step % steps * BLOCK_K + k
            in_channels = (c < C)[None, :]
            i = row * STRIDE + start_y + tap // taps_x
            j = column * STRIDE + start_x + tap % taps_x
            met = here
            if PADDING_MODE == "zeros":
                met = met & (i >= 0) & (i < H * REPEATS) & (j >= 0) & (j < W * REPEATS)
            i = _continued(i, H * REPEATS, PADDING_MODE) // REPEATS
            j = _continued(j, W * REPEATS, PADDING_MODE) // REPEATS
            at = x + n * x_stride_n + (i.to(INDEX) * x_stride_h + j.to(INDEX) * x_stride_w)[:, None]
            at += c[None, :]
            inside = met[:, None] & in_channels
            values = tl.load(at, mask=inside, other=0.0)
            if scale_shift is not None:
                scale, shift = _scale_and_shift(scale_shift, n, c, C)
                z = activate(_scaled(values.to(WIDE), scale, shift), ACTIVATION, SLOPE)
                values = rounded(tl.where(inside, z, 0.0), x.dtype.element_ty)
            factors = tl.load(
                weight + ((taps_before + tap) * C + c[:, None]) * outputs + channels[None, :],
                mask=(c < C)[:, None] & in_outputs[None, :], other=0.0,
            )  # fmt: skip
            if INTERPRETED:
                values, factors = values.to(WIDE), factors.to(WIDE)
            sums = tl.dot(values, factors, sums, input_precision=PRECISION, out_dtype=WIDE)

    if bias is not None:
        sums += tl.load(bias + channels, mask=in_outputs, other=0.0).to(WIDE)[None, :]
    doubled: tl.constexpr = 2 if PARITIES == 4 else 1
    to_row, to_column = row * doubled + parity_y, column * doubled + parity_x
    to = y + n * y_stride_n + (channels.to(INDEX) * y_stride_c)[None, :]
    to += (to_row.to(INDEX) * y_stride_h + to_column.to(INDEX) * y_stride_w)[:, None]
    wanted = here & (to_row < y_rows) & (to_column < y_columns)
    if y.dtype.element_ty == tl.uint8:
        # To the nearest, and halves to the even one: so does adding what leaves no fraction.
        whole: tl.constexpr = 6755399441055744.0 if tl.float64 == WIDE else 12582912.0
        level = (tl.minimum(tl.maximum(sums, 0.0), 255.0) + whole) - whole
        tl.store(to, level.to(tl.uint8), mask=wanted[:, None] & in_outputs[None, :])
    else:
        stored = rounded(sums, y.dtype.element_ty)
        tl.store(to, stored, mask=wanted[:, None] & in_outputs[None, :])
        if moments is not None:
            value = tl.where(here[:, None], stored.to(WIDE), 0.0)
            count = tl.minimum(rows_out * columns_out - tile * BLOCK_M, BLOCK_M).to(WIDE)
            near = column_sums(value) / count
            away = tl.where(here[:, None], value - near[None, :], 0.0)
            distance = column_sums(away) / count
            away = tl.where(here[:, None], away - distance[None, :], 0.0)
            store_moments(
                moments, n, tile * PARITIES + parity, channels, N, tiles * PARITIES, outputs, count,
                near, distance, column_sums(away * away),
            )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Pixels, output channels and inner dimension of a program's step; warps; steps under way."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def _config(geometry: Geometry, x: Tensor, channels: int, outputs: int, pixels: int) -> Config:
    """Defaults: as large as the layer fills. A step's values and weights are 16 KB each in half
    precision, and three steps are under way."""
    if x.dtype == torch.float64:
        return Config(32, 16, geometry.run or 16, num_warps=4, num_stages=1)
    half = x.element_size() == 2
    block_n = min(max(16, triton.next_power_of_2(outputs)), 128)
    block_m = 64 if pixels <= 64 else 128
    block_k = min(max(16, triton.next_power_of_2(channels)), 64 if half else 32)
    return Config(
        block_m, block_n, geometry.run or block_k,
        num_warps=8 if block_n * x.element_size() >= 256 else 4, num_stages=stages(),
    )  # fmt: skip


def _normalizes_as_it_loads(geometry: Geometry, outputs: int, block_n: int) -> bool:
    """Whether inputs are loaded so seldom that a pass of its own costs more than it saves."""
    loads = geometry.taps[0] * geometry.taps[1] / geometry.stride**2 * triton.cdiv(outputs, block_n)
    return not geometry.run and geometry.parities == 1 and loads <= 2.25


class _Layer:
    """A convolution of images of one size: how it runs, and the memory that takes.

    Args:
        dtype: of the arithmetic.
        n, channels, height, width: of the input.
        outputs, kernel: of the weights.
    """

    def __init__(
        self, weight: Tensor, n: int, height: int, width: int, stride: int, padding: int,
        padding_mode: str, upsample: str,
    ) -> None:  # fmt: skip
        transposed = upsample == "transpose"
        self.n, self.height, self.width = n, height, width
        self.channels = weight.shape[0 if transposed else 1]
        self.outputs = weight.shape[1 if transposed else 0]
        self.dtype, self.device = weight.dtype, weight.device
        self.geometry = Geometry.of(
            weight.shape[2], self.channels, stride, padding, padding_mode, upsample
        )
        self.rows, self.columns = (self.geometry.output_size(size) for size in (height, width))
        self.config = _config(
            self.geometry, weight, self.channels, self.outputs, self.rows * self.columns
        )
        self.tiles = triton.cdiv(self.rows * self.columns, self.config.block_m)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        doubled = 2 if self.geometry.parities == 4 else 1
        return self.n, self.outputs, doubled * self.rows, doubled * self.columns

    @property
    def prepared_shape(self) -> tuple[int, int, int, int]:
        """Of what the first kernel writes: rows of a few channels with their border, or the input's
        own shape."""
        if not self.geometry.run:
            return self.n, self.channels, self.height, self.width
        border = 2 * self.geometry.border
        channels = self.geometry.run_channels
        return self.n, channels, self.height + border, self.width + border

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        return 4, self.n, self.tiles * self.geometry.parities, self.outputs

    def prepare(self, x, scale_shift, activation, negative_slope, residual, prepared, kept) -> None:
        """Run the first kernel."""
        planes = Planes.of(x)
        other = planes if residual is None else Planes.of(residual)
        to = Planes.of(prepared)
        to_kept = to if kept is None else Planes.of(kept)
        block_c = min(triton.next_power_of_2(to.c), 64)
        block_p = max(16, 2048 // block_c)
        programs = self.n * triton.cdiv(to.c, block_c) * triton.cdiv(to.p, block_p)
        border = self.geometry.border if self.geometry.run else 0
        prepare_kernel[(programs,)](
            planes.x, scale_shift, None if residual is None else other.x, prepared, kept,
            self.channels, self.height, self.width, *planes.strides, *other.strides, *to.strides,
            *to_kept.strides, to.c, BORDER=border, PADDING_MODE=self.geometry.padding_mode,
            ACTIVATION=activation, SLOPE=negative_slope,
            INDEX=_widest(planes.index_type, to.index_type),
            WIDE=wide_type(prepared), BLOCK_P=block_p, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip

    def convolve(
        self, x, packed, bias, scale_shift, activation, negative_slope, y, moments
    ) -> None:  # fmt: skip
        """Run the second kernel, on what the first one wrote or on channels_last x."""
        planes, to = Planes.of(x), Planes.of(y)
        geometry, config = self.geometry, self.config
        columns = triton.cdiv(self.outputs, config.block_n)
        width = x.shape[3]
        convolution_kernel[(self.n * self.tiles * geometry.parities * columns,)](
            planes.x, packed, bias, scale_shift, y, moments, self.n, self.channels, self.height,
            self.width, self.outputs, self.rows, self.columns, y.shape[2], y.shape[3],
            planes.stride_n, planes.stride_p * width, planes.stride_p,
            to.stride_n, to.stride_c, to.stride_p * y.shape[3], to.stride_p, self.tiles,
            STRIDE=geometry.stride, PARITIES=geometry.parities, TAPS_EVEN=geometry.taps[0],
            TAPS_ODD=geometry.taps[1], START_EVEN=geometry.starts[0],
            START_ODD=geometry.starts[1], REPEATS=geometry.repeats,
            PADDING_MODE=geometry.padding_mode, RUN_CHANNELS=geometry.run_channels,
            BORDER=geometry.border, ACTIVATION=activation, SLOPE=negative_slope,
            PRECISION=product_precision(x, torch.backends.cudnn.allow_tf32),
            INDEX=_widest(planes.index_type, to.index_type), WIDE=wide_type(x),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def run(
        self, x, packed, bias, scale_shift, activation, negative_slope, residual, prepared, kept, y,
        moments,
    ) -> None:  # fmt: skip
        """Both kernels, or the second alone where it can do without the first. ``prepared`` gives
        the room that the first needs."""
        changed = x.dtype != self.dtype or residual is not None or activation != "none"
        changed = changed or scale_shift is not None
        alone = residual is None and x.dtype == self.dtype and scale_shift is not None
        alone = alone and _normalizes_as_it_loads(self.geometry, self.outputs, self.config.block_n)
        channels_last = self.channels == 1 or Planes.of(x).stride_c == 1
        given = (alone or not changed) and channels_last and not self.geometry.run
        if kept is not None or not given:
            if kept is not None and channels_last and not self.geometry.run:
                made, also = kept, None
            else:
                made, also = prepared(), kept
            self.prepare(x, scale_shift, activation, negative_slope, residual, made, also)
            x, scale_shift, activation = made, None, "none"
        self.convolve(x, packed, bias, scale_shift, activation, negative_slope, y, moments)


def _widest(*types: tl.dtype) -> tl.dtype:
    return tl.int64 if tl.int64 in types else tl.int32


def norm_conv2d(
    x, weight, bias, scale_shift, activation, negative_slope, residual, return_input, stride,
    padding, padding_mode, upsample, return_stats,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op of this name."""
    layer = _Layer(weight, *_image_sizes(x), stride, padding, padding_mode, upsample)
    y = dense_like(x, layer.y_shape)
    kept = dense_like(x) if return_input else None
    wide = wide_dtype(x)
    mean, var = (x.new_empty(y.shape[:2] if return_stats else (0,), dtype=wide) for _ in range(2))
    moments = x.new_empty(layer.moments_shape, dtype=wide) if return_stats else None

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        return x.new_empty((n, h, w, c)).permute(0, 3, 1, 2)

    layer.run(
        x, layer.geometry.pack(weight, upsample), bias,
        None if scale_shift is None else scale_shift.contiguous(), activation, negative_slope,
        residual, prepared, kept, y, moments,
    )  # fmt: skip
    if moments is not None:
        write_statistics(moments, mean=mean, var=var)
    return y, mean, var, x.new_empty((0,)) if kept is None else kept


def _image_sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def norm_conv2d_pack(
    weight: Tensor, stride: int, padding: int, padding_mode: str, upsample: str
) -> Tensor:
    """The op of this name."""
    channels = weight.shape[0 if upsample == "transpose" else 1]
    geometry = Geometry.of(weight.shape[2], channels, stride, padding, padding_mode, upsample)
    return geometry.pack(weight, upsample)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """A multiple of 256, so that what follows begins at a whole line of memory."""
    return -(-torch.Size(shape).numel() * dtype.itemsize // 256) * 256


def norm_conv2d_workspace(
    weight: Tensor, n: int, h: int, w: int, stride: int, padding: int, padding_mode: str,
    upsample: str,
) -> int:  # fmt: skip
    """The op of this name."""
    layer = _Layer(weight, n, h, w, stride, padding, padding_mode, upsample)
    prepared = _bytes(layer.prepared_shape, layer.dtype)
    return (prepared + _bytes(layer.moments_shape, wide_dtype(weight))) // 8


def norm_conv2d_out(
    x, weight, packed, bias, scale_shift, activation, negative_slope, residual, stride, padding,
    padding_mode, upsample, norm_weight, norm_bias, eps, y, input, next_scale_shift, workspace,
) -> None:  # fmt: skip
    """The op of this name. Images are dense, contiguous or channels_last."""
    layer = _Layer(weight, *_image_sizes(x), stride, padding, padding_mode, upsample)
    memory = workspace.view(torch.uint8)
    prepared_bytes = _bytes(layer.prepared_shape, layer.dtype)
    moments = None
    if next_scale_shift is not None:
        numbers = memory[prepared_bytes:].view(wide_dtype(weight))
        shape = torch.Size(layer.moments_shape)
        moments = numbers[: shape.numel()].view(shape)

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        values = memory[:prepared_bytes].view(layer.dtype)[: n * c * h * w]
        return values.view(n, h, w, c).permute(0, 3, 1, 2)

    layer.run(
        x, packed, bias, scale_shift, activation, negative_slope, residual, prepared, input, y,
        moments,
    )  # fmt: skip
    if moments is not None:
        write_statistics(
            moments, scale_shift=next_scale_shift, weight=norm_weight, bias=norm_bias, eps=eps
        )
