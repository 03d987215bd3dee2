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

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from stylekernels.reference.dtypes import wide_dtype
from stylekernels.reference.layouts import dense_like
from stylekernels.triton.conv_geometry import Geometry
from stylekernels.triton.conv_kernels import convolution_kernel, prepare_kernel
from stylekernels.triton.launch import (
    product_precision,
    stages,
    wide_type,
)
from stylekernels.triton.planes import Planes, write_statistics
from stylekernels.triton.tuning import Config, tune, tuned


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


def _candidates(default: Config) -> list[Config]:
    """The default and its neighbours: half the pixels, for small layers leave processors idle;
    other warps, where each has much to keep or little to do; and one step less under way, which
    leaves memory for a second program beside the first."""
    fewer_pixels = replace(default, block_m=default.block_m // 2)
    other_warps = replace(default, num_warps=12 - default.num_warps)
    fewer_stages = replace(default, num_stages=max(1, default.num_stages - 1))
    found = [default, fewer_pixels, other_warps, replace(fewer_pixels, num_warps=4), fewer_stages]
    return list(dict.fromkeys(found))


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
        self._problem = (
            "norm_conv2d", str(self.dtype).removeprefix("torch."), self.channels, self.outputs,
            *weight.shape[2:], self.rows, self.columns, n, stride, padding_mode, upsample,
        )  # fmt: skip
        self._candidates = _candidates(
            _config(self.geometry, weight, self.channels, self.outputs, self.rows * self.columns)
        )
        self.config = tuned(self._problem, self.device, self._candidates)

    @property
    def tiles(self) -> int:
        """Of one parity of an image."""
        return triton.cdiv(self.rows * self.columns, self.config.block_m)

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
    def most_moments(self) -> tuple[int, int, int, int]:
        """The shape of the moments in the smallest tiles of any configuration."""
        smallest = min(config.block_m for config in self._candidates)
        tiles = triton.cdiv(self.rows * self.columns, smallest)
        return 4, self.n, tiles * self.geometry.parities, self.outputs

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        return 4, self.n, self.tiles * self.geometry.parities, self.outputs

    def prepare(self, x, scale_shift, activation, negative_slope, residual, prepared, kept) -> None:
        """Run the first kernel."""
        planes = Planes.of(x)
        other = planes if residual is None else Planes.of(residual)
        to = Planes.into(prepared)
        to_kept = to if kept is None else Planes.into(kept)
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
        planes, to = Planes.of(x), Planes.into(y)
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
            PRECISION=product_precision(x, torch.backends.cudnn.conv),
            INDEX=_widest(planes.index_type, to.index_type), WIDE=wide_type(x),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    def _is_convolved_in(self, image: Tensor) -> bool:
        """Whether the second kernel reads images of this layout."""
        channels_last = self.channels == 1 or Planes.of(image).stride_c == 1
        return channels_last and not self.geometry.run

    def run(
        self, x, packed, bias, scale_shift, activation, negative_slope, residual, prepared, kept, y,
        moments,
    ) -> Tensor | None:  # fmt: skip
        """Both kernels, or the second alone where it can do without the first.

        ``prepared`` and ``moments`` give the room that is needed, for moments of the shape that
        they are given; ``moments`` is None where none are wanted. Returns the moments.
        """
        changed = x.dtype != self.dtype or residual is not None or activation != "none"
        changed = changed or scale_shift is not None
        alone = residual is None and x.dtype == self.dtype and scale_shift is not None
        alone = alone and _normalizes_as_it_loads(self.geometry, self.outputs, self.config.block_n)
        x = Planes.of(x).x  # a view with gaps is copied once
        given = (alone or not changed) and self._is_convolved_in(x)
        if kept is not None or not given:
            if kept is not None and self._is_convolved_in(kept):
                made, also = kept, None
            else:
                made, also = prepared(), kept
            self.prepare(x, scale_shift, activation, negative_slope, residual, made, also)
            x, scale_shift, activation = made, None, "none"

        def convolve(config: Config) -> Tensor | None:
            self.config = config
            written = None if moments is None else moments(self.moments_shape)
            self.convolve(x, packed, bias, scale_shift, activation, negative_slope, y, written)
            return written

        best = tune(self._problem, self.device, self._candidates, convolve)
        return convolve(best or self.config)


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

    def moments(shape: tuple[int, ...]) -> Tensor:
        return x.new_empty(shape, dtype=wide)

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        return x.new_empty((n, h, w, c)).permute(0, 3, 1, 2)

    found = layer.run(
        x, layer.geometry.pack(weight, upsample), None if bias is None else bias.contiguous(),
        None if scale_shift is None else scale_shift.contiguous(), activation, negative_slope,
        residual, prepared, kept, y, moments if return_stats else None,
    )  # fmt: skip
    if found is not None:
        write_statistics(found, mean=mean, var=var)
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
    return (prepared + _bytes(layer.most_moments, wide_dtype(weight))) // 8


def norm_conv2d_out(
    x, weight, packed, bias, scale_shift, activation, negative_slope, residual, stride, padding,
    padding_mode, upsample, norm_weight, norm_bias, eps, y, input, next_scale_shift, workspace,
) -> None:  # fmt: skip
    """The op of this name. Images are dense, contiguous or channels_last."""
    layer = _Layer(weight, *_image_sizes(x), stride, padding, padding_mode, upsample)
    memory = workspace.view(torch.uint8)
    prepared_bytes = _bytes(layer.prepared_shape, layer.dtype)

    def moments(shape: tuple[int, ...]) -> Tensor:
        numbers = memory[prepared_bytes:].view(wide_dtype(weight))
        return numbers[: torch.Size(shape).numel()].view(shape)

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        values = memory[:prepared_bytes].view(layer.dtype)[: n * c * h * w]
        return values.view(n, h, w, c).permute(0, 3, 1, 2)

    found = layer.run(
        x, packed, bias, scale_shift, activation, negative_slope, residual, prepared, input, y,
        None if next_scale_shift is None else moments,
    )  # fmt: skip
    if found is not None:
        write_statistics(
            found, scale_shift=next_scale_shift, weight=norm_weight, bias=norm_bias, eps=eps
        )
