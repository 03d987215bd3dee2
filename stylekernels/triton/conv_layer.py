"""A deferred-norm convolution for images of one size: its configuration and its two launches."""

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from stylekernels.tensors import conv_channels, conv_size
from stylekernels.triton.conv_geometry import Geometry
from stylekernels.triton.conv_kernels import convolution_kernel, pack_kernel, prepare_kernel
from stylekernels.triton.launch import (
    on_hopper,
    product_precision,
    stages,
    wide_type,
)
from stylekernels.triton.planes import Planes, index_type_of
from stylekernels.triton.tuning import Config, tune, tuned

#: A product of at least so many terms, for at least so many groups of pixels, uses larger tiles
#: where shared memory has room for them.
_LONG, _MANY = 1024, 1 << 16


def _config(
    geometry: Geometry, dtype: torch.dtype, outputs: int, groups: int, channels_last: bool
) -> Config:
    """The default configuration: the largest tile that the layer fills. In half precision the
    values and the weights of a step are 16 KB each, and three steps are in flight."""
    if dtype == torch.float64:
        return Config(32, 16, min(geometry.step_elements, 16), num_warps=4, num_stages=1)
    half = dtype.itemsize == 2
    # A row of a group with parities reads fewer rows of the window (rows_of_group_row).
    # Hopper's matrix instructions take at least 64 rows of a product.
    rows = 1 if geometry.has_parities else geometry.group[0]
    block_n = triton.next_power_of_2(outputs * rows * geometry.group[1])
    block_n = min(max(64 if half else 16, block_n), 128)
    block_m = 64 if groups <= 64 else 128
    block_k = min(geometry.step_elements, 64 if half else 32)
    inner = geometry.run * geometry.rows_of_group_row[1]
    if half and channels_last and inner >= _LONG and groups >= _MANY and on_hopper():
        return Config(256, block_n, block_k, num_warps=8, num_stages=3 if block_n == 128 else 4)
    # NCHW results are stored one by one; their addresses take registers.
    warps = 8 if block_n * dtype.itemsize > 256 or not channels_last else 4
    return Config(block_m, block_n, block_k, num_warps=warps, num_stages=stages())


def _candidates(default: Config) -> list[Config]:
    """The default and its neighbours.

    - Half the pixels: more programs for small layers, which leave processors idle.
    - Another number of warps: fewer registers or more work for each.
    - One stage less: memory for a second program on the processor.
    - Twice the pixels and one stage more, if there is memory for it.
    """
    fewer_pixels = replace(default, block_m=default.block_m // 2)
    other_warps = replace(default, num_warps=12 - default.num_warps)
    fewer_stages = replace(default, num_stages=max(1, default.num_stages - 1))
    more = replace(
        default, block_m=2 * default.block_m, num_warps=8, num_stages=default.num_stages + 1
    )
    return list(dict.fromkeys([default, fewer_pixels, other_warps, fewer_stages, more]))


def geometry_of(
    weight: Tensor, stride: int, padding: int, padding_mode: str, upsample: str
) -> Geometry:
    channels, outputs = conv_channels(weight, upsample)
    return Geometry.of(weight.shape[2], channels, outputs, stride, padding, padding_mode, upsample)


class Preparation(NamedTuple):
    """The first kernel's computation: activation(x * scale + shift) + residual."""

    scale_shift: Tensor | None = None
    activation: str = "none"
    negative_slope: float = 0.0
    residual: Tensor | None = None

    def changes(self) -> bool:
        """Return whether the result differs from x."""
        moved = self.scale_shift is not None or self.residual is not None
        return moved or self.activation != "none"


def prepare(
    x: Tensor,
    prepared: Tensor,
    border: int,
    repeats: int,
    padding_mode: str,
    preparation: Preparation | None = None,
    kept: Tensor | None = None,
) -> None:
    """Run the first kernel: write the convolution's input to ``prepared``, which is channels_last
    and gives the padded size, and without padding to ``kept``."""
    planes, to = Planes.of(x), Planes.into(prepared)
    scale_shift, activation, negative_slope, residual = preparation or Preparation()
    other = planes if residual is None else Planes.of(residual)
    to_kept = planes if kept is None else Planes.into(kept)
    block_c = min(triton.next_power_of_2(to.c), 64)
    block_p = max(16, 2048 // block_c)
    programs = to.n * triton.cdiv(to.c, block_c) * triton.cdiv(to.p, block_p)
    prepare_kernel[(programs,)](
        planes.x,
        scale_shift,
        None if residual is None else other.x,
        prepared,
        kept,
        planes.c,
        *x.shape[2:],
        *prepared.shape[2:],
        *planes.strides,
        *other.strides,
        *to_kept.strides,
        negative_slope,
        CHANNELS=to.c,
        BORDER=border,
        REPEATS=repeats,
        PADDING_MODE=padding_mode,
        ACTIVATION=activation,
        INDEX=index_type_of(planes, to),
        WIDE=wide_type(prepared),
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=4,
    )


class ConvLayer:
    """A convolution of images of one size: its launches and its memory.

    Args:
        weight: weights in the dtype of the arithmetic.
        n, height, width: size of the input.
        stride, padding, padding_mode, upsample: as `norm_conv2d` takes them.
        channels_last: whether the output is channels_last.
    """

    def __init__(
        self,
        weight: Tensor,
        n: int,
        height: int,
        width: int,
        stride: int,
        padding: int,
        padding_mode: str,
        upsample: str,
        channels_last: bool = True,
    ) -> None:
        self.n, self.height, self.width = n, height, width
        self.channels, self.outputs = conv_channels(weight, upsample)
        self.dtype, self.device = weight.dtype, weight.device
        self.geometry = geometry_of(weight, stride, padding, padding_mode, upsample)
        self.rows, self.columns = conv_size(
            (height, width), weight.shape[2], stride, padding, upsample
        )
        self._problem = (
            "norm_conv2d",
            str(self.dtype).removeprefix("torch."),
            self.channels,
            self.outputs,
            *weight.shape[2:],
            self.rows,
            self.columns,
            n,
            stride,
            padding_mode,
            upsample,
            "NHWC" if channels_last else "NCHW",
            product_precision(weight, torch.backends.cudnn.conv),
        )
        self._candidates = self._configurations(channels_last)
        self.config = tuned(self._problem, self.device, self._candidates)

    def _configurations(self, channels_last: bool) -> list[Config]:
        return _candidates(
            _config(self.geometry, self.dtype, self.outputs, self.groups, channels_last)
        )

    @property
    def groups(self) -> int:
        """The number of groups of pixels in an image."""
        rows, columns = self.geometry.groups(self.rows, self.columns)
        return rows * columns

    @property
    def ragged(self) -> bool:
        """Return whether some groups have pixels outside of the output."""
        rows, columns = self.geometry.group
        return self.rows % rows > 0 or self.columns % columns > 0

    def _moments(self, block_m: int) -> tuple[int, int, int, int]:
        """The shape of the moments for tiles of ``block_m`` groups."""
        chunks = triton.cdiv(self.groups, block_m) * self.geometry.pixels
        return 4, self.n, chunks, self.outputs

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.outputs, self.rows, self.columns

    @property
    def prepared_shape(self) -> tuple[int, int, int, int]:
        """The shape of the image that the first kernel writes. Columns are rounded up to a multiple
        of 16, so that Triton can assume that rows are aligned."""
        geometry = self.geometry
        rows, columns = (
            max(seen, geometry.border + size * geometry.repeats)
            for seen, size in zip(
                geometry.seen(self.rows, self.columns), (self.height, self.width), strict=True
            )
        )
        return self.n, geometry.channels, rows, -(-columns // 16) * 16

    @property
    def most_moments(self) -> tuple[int, int, int, int]:
        """The largest shape of moments: for the smallest tiles of all configurations, with outputs
        in either layout."""
        configs = (*self._configurations(True), *self._configurations(False))
        return self._moments(min(config.block_m for config in configs))

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        return self._moments(self.config.block_m)

    def convolve(self, x, packed, bias, y, moments) -> None:
        """Run the second kernel on x, which is channels_last and covers all windows."""
        planes, to = Planes.of(x), Planes.into(y)
        geometry, config = self.geometry, self.config
        group_blocks = triton.cdiv(self.groups, config.block_m)
        column_blocks = triton.cdiv(self.outputs * geometry.pixels, config.block_n)
        row_offset, rows = 0, geometry.window[0]
        if self.outputs * geometry.group[1] % config.block_n == 0:
            # All columns of a tile belong to one row of the group.
            row_offset, rows = geometry.rows_of_group_row
        convolution_kernel[(self.n * group_blocks * column_blocks,)](
            x,
            packed,
            bias,
            y,
            moments,
            self.n,
            *x.shape[2:],
            self.outputs,
            self.rows,
            self.columns,
            *y.shape[2:],
            to.stride_n,
            to.stride_c,
            to.stride_p * y.shape[3],
            to.stride_p,
            group_blocks,
            ADVANCE_Y=geometry.advance[0],
            ADVANCE_X=geometry.advance[1],
            WINDOW_Y=geometry.window[0],
            WINDOW_X=geometry.window[1],
            GROUP_Y=geometry.group[0],
            GROUP_X=geometry.group[1],
            ROW_OFFSET=row_offset,
            ROWS=rows,
            CHANNELS=geometry.channels,
            RUN=geometry.run,
            RAGGED=self.ragged,
            CROPPED=y.shape[2:] != self.y_shape[2:],
            PRECISION=product_precision(x, torch.backends.cudnn.conv),
            INDEX=index_type_of(planes, to),
            WIDE=wide_type(x),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    def _is_convolved_in(self, image: Tensor) -> bool:
        """Return whether the second kernel can read an image of this layout directly."""
        geometry = self.geometry
        seen = geometry.seen(self.rows, self.columns)
        channels_last = self.channels == 1 or Planes.of(image).stride_c == 1
        complete = geometry.channels == self.channels and geometry.repeats == 1
        return (
            channels_last
            and complete
            and geometry.border == 0
            and seen[0] <= self.height
            and seen[1] <= self.width
        )

    def run(self, x, packed, bias, preparation, prepared, kept, y, moments) -> Tensor | None:
        """Run both kernels, or only the second where the first is not needed.

        ``prepared()`` returns memory for the first kernel's image, ``moments(shape)`` memory for
        moments; ``moments`` is None if none are wanted. Returns the moments.
        """
        changed = x.dtype != self.dtype or preparation.changes()
        x = Planes.of(x).x  # a view with gaps is copied once
        if kept is not None or changed or not self._is_convolved_in(x):
            made, also = prepared(), kept
            if kept is not None and self._is_convolved_in(kept):
                made, also = kept, None
            padding = (self.geometry.border, self.geometry.repeats, self.geometry.padding_mode)
            prepare(x, made, *padding, preparation, also)
            x = made

        def convolve(config: Config) -> Tensor | None:
            self.config = config
            written = None if moments is None else moments(self.moments_shape)
            self.convolve(x, packed, bias, y, written)
            return written

        best = tune(self._problem, self.device, self._candidates, convolve)
        return convolve(best or self.config)


def pack(weight: Tensor, geometry: Geometry, upsample: str) -> Tensor:
    """Pack the weights as the second kernel reads them: (columns, inner dimension)."""
    channels, outputs = conv_channels(weight, upsample)
    of_output, of_channel, of_row, of_column = weight.stride()
    if upsample == "transpose":
        of_output, of_channel = of_channel, of_output
    packed = weight.new_empty((geometry.pixels * outputs, geometry.window[0] * geometry.run))
    of_window, of_pixel, first, count = geometry.elements
    pack_kernel[(triton.cdiv(packed.numel(), 1024),)](
        weight,
        packed,
        packed.numel(),
        channels,
        outputs,
        of_output,
        of_channel,
        of_row,
        of_column,
        KERNEL=geometry.kernel,
        OF_WINDOW=of_window,
        OF_PIXEL=of_pixel,
        FIRST=first,
        COUNT=count,
        GROUP_X=geometry.group[1],
        WINDOW_Y=geometry.window[0],
        WINDOW_X=geometry.window[1],
        CHANNELS=geometry.channels,
        RUN=geometry.run,
        WIDE=wide_type(weight),
        BLOCK=1024,
        num_warps=4,
    )
    return packed
