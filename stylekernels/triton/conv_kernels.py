"""The kernels of the deferred-norm convolution: what is convolved, and the convolution."""

import triton
import triton.language as tl

from stylekernels.triton.activations import activate
from stylekernels.triton.launch import INTERPRETED, column_sums, rounded
from stylekernels.triton.planes import store_moments


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
