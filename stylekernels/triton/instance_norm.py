"""Instance and group norm, forward and backward.

Bytes: forward reads x (and the residual) and writes y. Backward reads grad and x and writes grad_x.
One kernel moves no more than that where a plane fits into the registers of a program: statistics
are computed from the tile that is loaded already. Larger planes are read twice, once for statistics
or sums of chunks and once to write. The second read hits the L2 cache for images up to some 50 MB.
"""

import torch
from torch import Tensor

from stylekernels import reference
from stylekernels.tensors import dense_like, wide_dtype
from stylekernels.triton.instance_norm_gradient_kernels import norm_gradient_kernel
from stylekernels.triton.instance_norm_kernels import normalize_kernel
from stylekernels.triton.launch import wide_type
from stylekernels.triton.moments import moments_of, write_statistics
from stylekernels.triton.planes import Planes, tiling_of


def _over_images(parameter: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a (C,) or (N, C) parameter, made dense, and its stride over images."""
    if parameter is None:
        return None, 0
    parameter = parameter.contiguous()
    return parameter, parameter.shape[1] if parameter.dim() == 2 else 0


def exact_mean(x: Tensor) -> Tensor:
    """Mean of every plane of (N, C, H, W) or (N, C, L) and its rounding error: (2, N, C)."""
    planes = Planes.of(x)
    mean = x.new_empty((2, planes.n, planes.c), dtype=wide_dtype(x))
    write_statistics(moments_of(planes, tiling_of(planes)), mean=mean[0], error=mean[1])
    return mean


def write_group_statistics(
    moments: Tensor, group: int, mean: Tensor, rstd: Tensor, eps: float
) -> None:
    """Merge the moments of each group of channels as if they were chunks, and write its mean and
    rounding error, (2, N, C), and inverse deviation, (N, C), for each of its channels."""
    _, n, chunks, c = moments.shape
    groups = c // group
    moments = moments.unflatten(3, (groups, group)).movedim(4, 3).contiguous()
    merged = moments.new_empty((3, n, groups))
    write_statistics(
        moments.view(4, n, chunks * group, groups),
        mean=merged[0],
        error=merged[1],
        rstd=merged[2],
        eps=eps,
    )
    of_channels = merged.repeat_interleave(group, 2)
    mean.copy_(of_channels[:2])
    rstd.copy_(of_channels[2])


def instance_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """The op of this name."""
    planes = Planes.of(x)
    mean = x.new_empty((planes.n, planes.c), dtype=wide_dtype(x))
    var = torch.empty_like(mean)
    write_statistics(moments_of(planes, tiling_of(planes)), mean=mean, var=var)
    return mean, var


def instance_norm(
    x,
    weight,
    bias,
    residual,
    mean,
    var,
    activation,
    negative_slope,
    residual_first,
    eps,
    own_stats,
    group,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op of this name. ``own_stats`` is for the gradient."""
    planes = Planes.of(x)
    y = dense_like(x)
    tiling = tiling_of(planes)
    means = x.new_empty((2, planes.n, planes.c), dtype=wide_dtype(x))
    rstd = x.new_empty((planes.n, planes.c), dtype=wide_dtype(x))
    if mean is not None:
        means[0], means[1] = mean, 0
        # In float64, by PyTorch: kernels compute in float32.
        rstd.copy_(reference.inverse_deviation(var.double(), eps))
    elif group > 1:
        write_group_statistics(moments_of(planes, tiling), group, means, rstd, eps)
    elif not tiling.one_tile:
        write_statistics(
            moments_of(planes, tiling), mean=means[0], error=means[1], rstd=rstd, eps=eps
        )
    target = Planes.of(y)
    other = planes if residual is None else Planes.of(residual)
    weight, weight_stride = _over_images(weight)
    bias, bias_stride = _over_images(bias)
    normalize_kernel[(tiling.programs,)](
        planes.x,
        y,
        None if residual is None else other.x,
        weight,
        bias,
        means[0],
        means[1],
        rstd,
        planes.c,
        planes.p,
        *planes.strides,
        *target.strides,
        *other.strides,
        weight_stride,
        bias_stride,
        tiling.chunks,
        tiling.chunk,
        negative_slope,
        eps,
        ONE_TILE=mean is None and group == 1 and tiling.one_tile,
        ACTIVATION=activation,
        RESIDUAL_FIRST=residual_first,
        INDEX=planes.index_type,
        WIDE=wide_type(x),
        BLOCK_P=tiling.block_p,
        BLOCK_C=tiling.block_c,
        num_warps=tiling.num_warps,
    )
    return y, means, rstd


def instance_norm_backward(
    grad,
    x,
    weight,
    bias,
    residual,
    mean,
    rstd,
    activation,
    negative_slope,
    own_stats,
    want_residual,
    sum_images,
    group,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op of this name. ``grad`` may have another layout than ``x``."""
    planes, gradient = Planes.of(x), Planes.of(grad)
    other = planes if residual is None else Planes.of(residual)
    grad_x = dense_like(x)
    grad_residual = dense_like(x) if want_residual else None
    target = Planes.of(grad_x)
    tiling = tiling_of(planes, tensors=2)
    one_pass = tiling.one_tile and group == 1
    sums = x.new_empty((2, planes.n, tiling.chunks, planes.c), dtype=wide_dtype(x))
    weight, weight_stride = _over_images(weight)
    bias, bias_stride = _over_images(bias)
    mean, rstd = mean.contiguous(), rstd.contiguous()

    def launch(sums: Tensor, sum: bool, write: bool) -> None:
        norm_gradient_kernel[(tiling.programs,)](
            gradient.x,
            planes.x,
            None if residual is None else other.x,
            weight,
            bias,
            mean[0],
            mean[1],
            rstd,
            sums,
            grad_x,
            grad_residual,
            planes.n,
            planes.c,
            planes.p,
            *gradient.strides,
            *planes.strides,
            *other.strides,
            *target.strides,
            weight_stride,
            bias_stride,
            tiling.chunks,
            tiling.chunk,
            negative_slope,
            SUM=sum,
            WRITE=write,
            OWN_STATISTICS=own_stats,
            OF_GROUPS=group > 1,
            ACTIVATION=activation,
            INDEX=planes.index_type,
            WIDE=wide_type(x),
            BLOCK_P=tiling.block_p,
            BLOCK_C=tiling.block_c,
            num_warps=tiling.num_warps,
        )

    launch(sums, sum=True, write=one_pass)
    sums = sums.sum(2, dtype=torch.float64)
    if not one_pass:
        of_groups = sums
        if group > 1:
            gain = 1.0 if weight is None else weight.double()
            of_groups = reference.sums_of_groups((gain * sums).flatten(0, 1), group) / group
        launch(of_groups.to(rstd.dtype), sum=False, write=True)
    sums = (sums.sum(1) if sum_images else sums).to(rstd.dtype)
    # A clone, since the results of an op may not share memory.
    return (
        grad_x,
        x.new_empty((0,)) if grad_residual is None else grad_residual,
        sums[0],
        sums[1].clone(),
    )
