"""Kernels of the deferred-norm convolution: one prepares the input, one convolves it.

A group of output pixels is computed from a window of input pixels (`conv_geometry.Geometry`). In
most convolutions a group is one pixel, and its window has the size of the kernel. For example, if
the output has twice the input's size and the kernel is 3 x 3, a group is 2 x 2 pixels and its
window 3 x 3::

    window: WINDOW_Y rows of WINDOW_X pixels         group: GROUP_Y x GROUP_X pixels
    +-----+-----+-----+                              +-----+-----+
    |     |     |     | <- run: WINDOW_X * CHANNELS  |  0  |  1  |   pixel p of the group and output
    +-----+-----+-----+    elements of memory; RUN   +-----+-----+   channel o are column
    |     |     |     |    is that, rounded up to a  |  2  |  3  |   p * outputs + o of the matrix
    +-----+-----+-----+    multiple of BLOCK_K       +-----+-----+   product
    |     |     |     |
    +-----+-----+-----+    the window of the next group begins ADVANCE_X pixels further on

The convolution is one matrix product. A program computes a tile of it: BLOCK_N columns by BLOCK_M
groups, summed over the ROWS * RUN elements of a window in steps of BLOCK_K. Beyond the run, weights
are stored as zeros, and pixels are masked to zero as they are loaded.

WIDE is the dtype of sums: float64 for float64, else float32. INDEX is that of offsets in memory:
int64 where int32 would overflow.
"""

import triton
import triton.language as tl

from stylekernels.triton.activations import activate
from stylekernels.triton.launch import INTERPRETED, rounded, row_sums
from stylekernels.triton.moments import store_moments


@triton.jit
def _continued(at, size, PADDING_MODE: tl.constexpr):
    """Map a position beyond the image to the pixel that padding repeats there."""
    if PADDING_MODE == "reflect":
        at = tl.abs(at)
        at = size - 1 - tl.abs(size - 1 - at)
    return tl.minimum(tl.maximum(at, 0), size - 1)


@triton.jit
def _load_scale_shift(scale_shift, n, channels, C):
    """Load scale and shift of an image's channels from (N, C, 2): [1, BLOCK_C] each."""
    inside = channels < C
    at = scale_shift + 2 * (n * C + channels)
    pairs = tl.load(at[:, None] + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0)
    scale, shift = tl.split(pairs)
    return scale[None, :], shift[None, :]


@triton.jit
def _scaled(z, scale, shift):
    """z * scale + shift, rounded once, since the product may be far larger than the sum."""
    if INTERPRETED:  # its fma rounds twice
        return (z.to(tl.float64) * scale.to(tl.float64) + shift.to(tl.float64)).to(z.dtype)
    else:
        return tl.fma(z, tl.broadcast_to(scale, z.shape), tl.broadcast_to(shift, z.shape))


@triton.jit
def pack_kernel(
    weight,
    packed,
    size,
    channels,
    outputs,
    stride_output,
    stride_channel,
    stride_row,
    stride_column,
    KERNEL: tl.constexpr,
    OF_WINDOW: tl.constexpr,
    OF_PIXEL: tl.constexpr,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    GROUP_X: tl.constexpr,
    WINDOW_Y: tl.constexpr,
    WINDOW_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights as `convolution_kernel` reads them: (columns, rows of the window, RUN).

    In each direction the weight between pixel w of the window and pixel p of the group is the sum
    of COUNT kernel elements, from OF_WINDOW * w + OF_PIXEL * p + FIRST on (`Geometry.elements`).
    Those outside of the kernel count as zero.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    element = at % RUN
    window_y, window_x = at // RUN % WINDOW_Y, element // CHANNELS
    channel = element % CHANNELS
    column = at // (WINDOW_Y * RUN)
    output, pixel = column % outputs, column // outputs
    first_y = OF_WINDOW * window_y + OF_PIXEL * (pixel // GROUP_X) + FIRST
    first_x = OF_WINDOW * window_x + OF_PIXEL * (pixel % GROUP_X) + FIRST
    real = (at < size) & (window_x < WINDOW_X) & (channel < channels)
    sums = tl.zeros([BLOCK], WIDE)
    for further_y in tl.static_range(COUNT):
        for further_x in tl.static_range(COUNT):
            y, x = first_y + further_y, first_x + further_x
            there = real & (y >= 0) & (y < KERNEL) & (x >= 0) & (x < KERNEL)
            from_weight = weight + output * stride_output + channel * stride_channel
            from_weight += y * stride_row + x * stride_column
            sums += tl.load(from_weight, mask=there, other=0.0).to(WIDE)
    tl.store(packed + at, rounded(sums, packed.dtype.element_ty), mask=at < size)


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
    padded_height,
    padded_width,
    x_stride_n: tl.int64,
    x_stride_c,
    x_stride_p,
    residual_stride_n: tl.int64,
    residual_stride_c,
    residual_stride_p,
    kept_stride_n: tl.int64,
    kept_stride_c,
    kept_stride_p,
    negative_slope: tl.float64,
    CHANNELS: tl.constexpr,
    BORDER: tl.constexpr,
    REPEATS: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write activation(x * scale + shift) + residual to ``padded``, and to ``kept`` if given.

    In ``padded``, which is channels_last, each pixel is repeated REPEATS times in both directions,
    a border of padding surrounds the image, and pixels have CHANNELS >= C channels, zero from C on.
    REPEATS is 2 only for nearest upsampling that groups of 2 x 2 pixels cannot compute. ``kept``
    has x's size, and a layout of its own. The stride of pixels is stride_p, also from row to row.
    """
    program = tl.program_id(0)
    size = padded_height * padded_width
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    pixel_blocks = tl.cdiv(size, BLOCK_P)
    channels = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    positions = program // blocks % pixel_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (program // blocks // pixel_blocks).to(tl.int64)
    in_image = positions < size
    row, column = positions // padded_width - BORDER, positions % padded_width - BORDER
    own = in_image & (row >= 0) & (row < H * REPEATS) & (column >= 0) & (column < W * REPEATS)
    known = own if PADDING_MODE == "zeros" else in_image
    pixels = _continued(row, H * REPEATS, PADDING_MODE) // REPEATS * W
    pixels += _continued(column, W * REPEATS, PADDING_MODE) // REPEATS
    inside = known[:, None] & (channels < C)[None, :]
    columns, lines = channels.to(INDEX)[None, :], pixels.to(INDEX)[:, None]
    z = tl.load(
        x + n * x_stride_n + columns * x_stride_c + lines * x_stride_p, mask=inside, other=0
    ).to(WIDE)
    if scale_shift is not None:
        scale, shift = _load_scale_shift(scale_shift, n, channels, C)
        z = _scaled(z, scale, shift)
    z = activate(z, negative_slope, ACTIVATION)
    if residual is not None:
        z += tl.load(
            residual
            + n * residual_stride_n
            + columns * residual_stride_c
            + lines * residual_stride_p,
            mask=inside,
            other=0.0,
        ).to(WIDE)
    z = rounded(tl.where(inside, z, 0.0), padded.dtype.element_ty)
    to = padded + n * size * CHANNELS + columns + (positions.to(INDEX) * CHANNELS)[:, None]
    tl.store(to, z, mask=in_image[:, None] & (channels < CHANNELS)[None, :])
    if kept is not None:
        if REPEATS > 1:
            own = own & (row % REPEATS == 0) & (column % REPEATS == 0)
        to = kept + n * kept_stride_n + columns * kept_stride_c + lines * kept_stride_p
        tl.store(to, z, mask=own[:, None] & (channels < C)[None, :])


@triton.jit
def convolution_kernel(
    x,
    weight,
    bias,
    y,
    moments,
    N,
    x_rows,
    x_columns,
    outputs,
    rows_out,
    columns_out,
    y_rows,
    y_columns,
    y_stride_n: tl.int64,
    y_stride_c,
    y_stride_h,
    y_stride_w,
    group_blocks,
    ADVANCE_Y: tl.constexpr,
    ADVANCE_X: tl.constexpr,
    WINDOW_Y: tl.constexpr,
    WINDOW_X: tl.constexpr,
    GROUP_Y: tl.constexpr,
    GROUP_X: tl.constexpr,
    ROW_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    RUN: tl.constexpr,
    RAGGED: tl.constexpr,
    CROPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute BLOCK_N columns of the product for BLOCK_M groups of one image.

    x is (N, x_rows, x_columns, CHANNELS), padded so that every window lies inside of it. ``weight``
    is (columns, WINDOW_Y, RUN), as `pack_kernel` writes it, and ``bias`` (outputs,). The output is
    (N, outputs, rows_out, columns_out). y holds its first y_rows and y_columns. ``moments`` are
    (4, N, group_blocks * PIXELS, outputs): see `store_moments`. ``group_blocks``: blocks of groups
    of one image. Successive programs compute all columns of the same groups, which share their
    pixels in the L2 cache.

    If all columns of a tile belong to one row of the group, window rows with zero weights are
    skipped: the tile reads ROWS rows, from ROW_OFFSET times the row of the group on. Otherwise it
    reads all. RAGGED: some groups have pixels outside of the output. CROPPED: y has fewer rows or
    columns than the output.

    The accumulator is transposed, (BLOCK_N, BLOCK_M): a thread holds many pixels of few channels,
    so that statistics are sums within threads.
    """
    PIXELS: tl.constexpr = GROUP_Y * GROUP_X
    STEPS_PER_ROW: tl.constexpr = RUN // BLOCK_K
    program = tl.program_id(0)
    column_blocks = tl.cdiv(outputs * PIXELS, BLOCK_N)
    block = program % column_blocks
    group_block = program // column_blocks % group_blocks
    n = (program // column_blocks // group_blocks).to(tl.int64)
    group_rows, group_columns = tl.cdiv(rows_out, GROUP_Y), tl.cdiv(columns_out, GROUP_X)
    groups = group_block * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    first_row = block * BLOCK_N // (outputs * GROUP_X) * ROW_OFFSET

    # Groups and columns past the end load the last one; stores mask them.
    clamped_groups = tl.minimum(groups, group_rows * group_columns - 1)
    clamped_row, clamped_column = clamped_groups // group_columns, clamped_groups % group_columns
    k = tl.arange(0, BLOCK_K)  # elements of a run
    at = (clamped_row * ADVANCE_Y + first_row).to(INDEX) * x_columns + clamped_column * ADVANCE_X
    # (BLOCK_M, BLOCK_K): addresses of the first elements of each group's window.
    from_x = x + n * x_rows * x_columns * CHANNELS + (at * CHANNELS)[:, None] + k[None, :]
    clamped_columns = tl.minimum(columns, outputs * PIXELS - 1)
    # (BLOCK_N, BLOCK_K): addresses of the first weights of each column.
    from_weight = (
        weight + (clamped_columns * (WINDOW_Y * RUN) + first_row * RUN)[:, None] + k[None, :]
    )
    sums = tl.zeros([BLOCK_N, BLOCK_M], WIDE)
    for step in range(ROWS * STEPS_PER_ROW):
        along = (
            tl.cast(step // STEPS_PER_ROW, INDEX) * x_columns * CHANNELS
            + step % STEPS_PER_ROW * BLOCK_K
        )
        if WINDOW_X * CHANNELS == RUN:
            values = tl.load(from_x + along)  # (BLOCK_M, BLOCK_K)
        else:
            inside = step % STEPS_PER_ROW * BLOCK_K + k < WINDOW_X * CHANNELS
            values = tl.load(from_x + along, mask=inside[None, :], other=0.0)
        factors = tl.load(from_weight + step * BLOCK_K)  # (BLOCK_N, BLOCK_K)
        if INTERPRETED:
            values, factors = values.to(WIDE), factors.to(WIDE)
        sums = tl.dot(factors, tl.trans(values), sums, input_precision=PRECISION, out_dtype=WIDE)

    row, column = groups // group_columns * GROUP_Y, groups % group_columns * GROUP_X
    # (BLOCK_N, BLOCK_M): True inside of the output.
    real = (columns < outputs * PIXELS)[:, None] & (groups < group_rows * group_columns)[None, :]
    # The number of summed pixels: a scalar, or if RAGGED (BLOCK_N,).
    count = tl.minimum(group_rows * group_columns - group_block * BLOCK_M, BLOCK_M).to(WIDE)
    # Offsets of a group in y, (BLOCK_M,).
    from_group = row.to(INDEX) * y_stride_h + column.to(INDEX) * y_stride_w
    from_column = tl.zeros([BLOCK_N], INDEX)  # offsets of a column in y, (BLOCK_N,)
    channels, pixel = columns, 0  # (BLOCK_N,): the output channel and the pixel of the group
    if PIXELS > 1:
        channels, pixel = columns % outputs, columns // outputs
        own_row, own_column = pixel // GROUP_X, pixel % GROUP_X
        from_column = own_row.to(INDEX) * y_stride_h + own_column.to(INDEX) * y_stride_w
        if RAGGED:
            real = real & (row[None, :] < (rows_out - own_row)[:, None])
            real = real & (column[None, :] < (columns_out - own_column)[:, None])
            count = row_sums(real.to(WIDE))
    from_column += channels.to(INDEX) * y_stride_c
    to = y + n * y_stride_n + (from_group[None, :] + from_column[:, None])
    wanted = real
    if CROPPED:
        if PIXELS > 1:
            wanted = real & (row[None, :] < (y_rows - own_row)[:, None])
            wanted = wanted & (column[None, :] < (y_columns - own_column)[:, None])
        else:
            wanted = real & ((row < y_rows) & (column < y_columns))[None, :]
    if bias is not None:
        of_channel = tl.load(bias + channels, mask=columns < outputs * PIXELS, other=0.0)
        sums += of_channel.to(WIDE)[:, None]
    if y.dtype.element_ty == tl.uint8:
        # Round to nearest, halves to even: adding a number this large leaves no fraction bits.
        whole: tl.constexpr = 6755399441055744.0 if tl.float64 == WIDE else 12582912.0
        level = (tl.minimum(tl.maximum(sums, 0.0), 255.0) + whole) - whole
        tl.store(to, level.to(tl.uint8), mask=wanted)
    else:
        stored = rounded(sums, y.dtype.element_ty)
        tl.store(to, stored, mask=wanted)
        if moments is not None:
            # The mean of what is stored is near + distance: the second pass corrects the rounding
            # of the first.
            most = tl.maximum(count, 1.0)
            near = row_sums(tl.where(real, stored.to(WIDE), 0.0)) / most
            away = tl.where(real, stored.to(WIDE) - near[:, None], 0.0)
            distance = row_sums(away) / most
            squares = row_sums(away * away) - distance * distance * most
            # A column sums one pixel of each group: each pixel of a group has a chunk of its own.
            store_moments(
                moments,
                n,
                group_block * PIXELS + pixel,
                channels,
                columns < outputs * PIXELS,
                N,
                group_blocks * PIXELS,
                outputs,
                count,
                near,
                distance,
                squares,
            )
