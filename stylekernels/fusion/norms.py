"""The norms in the graph of a fused network."""

from torch import Tensor

from stylekernels.fusion.convolve import in_layout_of
from stylekernels.ops import group_norm, instance_norm, instance_norm_stats, norm_scale_shift
from stylekernels.tensors import wide_dtype


def scale_shift_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    groups: int | None,
    eps: float,
) -> Tensor:
    """Return scale and shift of a norm, (N, C, 2), for the convolution that reads x.

    Args:
        x: (N, C, H, W).
        weight, bias: the norm's, (C,).
        mean, var: running statistics, (C,); None for those of x's planes.
        groups: number of groups of channels of a group norm; None for other norms.
        eps: the norm's.
    """
    if mean is not None:
        mean, var = (each.to(wide_dtype(x)).expand(x.shape[:2]) for each in (mean, var))
    else:
        mean, var = instance_norm_stats(x)
        if groups is not None:
            mean, var = _of_groups(mean, var, groups)
    return norm_scale_shift(mean, var, weight, bias, eps)


def _of_groups(mean: Tensor, var: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Merge statistics of planes to those of groups: each plane gets its group's."""
    n, c = mean.shape
    means, within = (each.double().view(n, groups, c // groups) for each in (mean, var))
    merged = means.mean(2, keepdim=True)
    spread = (means - merged).square().mean(2, keepdim=True)
    merged_var = within.mean(2, keepdim=True) + spread
    return tuple(
        each.expand(means.shape).reshape(n, c).to(mean.dtype) for each in (merged, merged_var)
    )


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    residual: Tensor | None,
    groups: int | None,
    eps: float,
    **options,
) -> Tensor:
    """Run `instance_norm` or `group_norm`: arguments as for `scale_shift_of`, a residual in any
    layout, and ``activation``, ``negative_slope`` and ``residual_first``."""
    options |= {"residual": in_layout_of(x, residual), "eps": eps}
    if groups is not None:
        return group_norm(x, groups, weight, bias, **options)
    stats = None if mean is None else (mean, var)
    return instance_norm(x, weight, bias, stats=stats, **options)
