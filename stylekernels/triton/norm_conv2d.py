"""The deferred-norm convolution.

A layer takes two kernels. The first writes the convolution's input: x normalised, activated, with
the residual added, rounded once, and padded. It reads and writes every value once. The second reads
each input up to k x k times, and needs no masks or index arithmetic for it. Where the first kernel
would change nothing, the second reads x itself.

The second kernel is the matrix product that `conv_geometry` describes. A tile's statistics are
computed from its rounded values. Each tile is a chunk in the sense of `moments`; the moments of all
chunks are merged afterwards.
"""

import torch
from torch import Tensor

from stylekernels.tensors import conv_channels, conv_size, dense_like, wide_dtype
from stylekernels.triton.conv_layer import ConvLayer, Preparation, geometry_of, pack
from stylekernels.triton.moments import write_statistics
from stylekernels.triton.planes import Planes


def norm_conv2d(
    x,
    weight,
    bias,
    scale_shift,
    activation,
    negative_slope,
    residual,
    return_input,
    stride,
    padding,
    padding_mode,
    upsample,
    return_stats,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of this name."""
    geometry = geometry_of(weight, stride, padding, padding_mode, upsample)
    n, height, width = _image_sizes(x)
    _, outputs = conv_channels(weight, upsample)
    size = conv_size((height, width), weight.shape[2], stride, padding, upsample)
    y = written = dense_like(x, (n, outputs, *size))
    if Planes.of(y).stride_c != 1 and geometry.pixels > 1:
        # Writing the pixels of a group one by one takes far longer than a copy does.
        written = torch.empty_like(y, memory_format=torch.channels_last)
    layer = ConvLayer(
        weight,
        n,
        height,
        width,
        stride,
        padding,
        padding_mode,
        upsample,
        Planes.of(written).stride_c == 1,
    )
    kept = dense_like(x) if return_input else None
    wide = wide_dtype(x)
    mean, var = (x.new_empty(y.shape[:2] if return_stats else (0,), dtype=wide) for _ in range(2))

    def moments(shape: tuple[int, ...]) -> Tensor:
        return x.new_empty(shape, dtype=wide)

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        return x.new_empty((n, h, w, c)).permute(0, 3, 1, 2)

    found = layer.run(
        x,
        pack(weight, geometry, upsample),
        _dense(bias),
        Preparation(_dense(scale_shift), activation, negative_slope, residual),
        prepared,
        kept,
        written,
        moments if return_stats else None,
    )
    if written is not y:
        y.copy_(written)
    if found is not None:
        write_statistics(found, mean=mean, var=var)
    return y, mean, var, x.new_empty((0,)) if kept is None else kept


def _dense(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter as kernels address it: without gaps."""
    return None if parameter is None else parameter.contiguous()


def _image_sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def norm_conv2d_pack(
    weight: Tensor, stride: int, padding: int, padding_mode: str, upsample: str
) -> Tensor:
    """The op of this name."""
    return pack(weight, geometry_of(weight, stride, padding, padding_mode, upsample), upsample)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The size in bytes, rounded up to a multiple of 256, so that the next array is aligned."""
    return -(-torch.Size(shape).numel() * dtype.itemsize // 256) * 256


def norm_conv2d_workspace(
    weight: Tensor,
    n: int,
    h: int,
    w: int,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: str,
) -> int:
    """The op of this name."""
    layer = ConvLayer(weight, n, h, w, stride, padding, padding_mode, upsample)
    prepared = _bytes(layer.prepared_shape, layer.dtype)
    return (prepared + _bytes(layer.most_moments, wide_dtype(weight))) // 8


def _check_memory(
    layer: ConvLayer, packed: Tensor, workspace: Tensor, prepared: int, stats: bool
) -> None:
    """Raise ValueError where the caller's memory is smaller than the kernels assume."""
    geometry = layer.geometry
    weights = geometry.pixels * layer.outputs * geometry.window[0] * geometry.run
    if packed.numel() != weights or packed.dtype != layer.dtype:
        raise ValueError(
            f"packed: expected the {weights} numbers that norm_conv2d_pack makes of this weight "
            f"for this mode, got {packed.numel()}"
        )
    moments = _bytes(layer.most_moments, wide_dtype(packed)) if stats else 0
    if workspace.numel() * 8 < prepared + moments:
        raise ValueError(
            f"workspace: expected {(prepared + moments) // 8} numbers, as norm_conv2d_workspace "
            f"gives, got {workspace.numel()}; it is too small"
        )


def norm_conv2d_out(
    x,
    weight,
    packed,
    bias,
    scale_shift,
    activation,
    negative_slope,
    residual,
    stride,
    padding,
    padding_mode,
    upsample,
    norm_weight,
    norm_bias,
    eps,
    y,
    input,
    next_scale_shift,
    workspace,
) -> None:
    """The op of this name. Images are dense, contiguous or channels_last."""
    layer = ConvLayer(
        weight,
        *_image_sizes(x),
        stride,
        padding,
        padding_mode,
        upsample,
        Planes.of(y).stride_c == 1,
    )
    prepared_bytes = _bytes(layer.prepared_shape, layer.dtype)
    _check_memory(layer, packed, workspace, prepared_bytes, next_scale_shift is not None)
    memory = workspace.view(torch.uint8)

    def moments(shape: tuple[int, ...]) -> Tensor:
        numbers = memory[prepared_bytes:].view(wide_dtype(weight))
        return numbers[: torch.Size(shape).numel()].view(shape)

    def prepared() -> Tensor:
        n, c, h, w = layer.prepared_shape
        values = memory[:prepared_bytes].view(layer.dtype)[: n * c * h * w]
        return values.view(n, h, w, c).permute(0, 3, 1, 2)

    preparation = Preparation(_dense(scale_shift), activation, negative_slope, residual)
    wanted = None if next_scale_shift is None else moments
    found = layer.run(x, packed, _dense(bias), preparation, prepared, input, y, wanted)
    if found is not None:
        write_statistics(
            found,
            scale_shift=next_scale_shift,
            weight=_dense(norm_weight),
            bias=_dense(norm_bias),
            eps=eps,
        )
