"""Group norm: instance norm whose statistics are those of several channels together."""

from torch import Tensor

from stylekernels.ops.arguments import as_integer, check_channels, check_number
from stylekernels.ops.dispatch import NATIVE, TRITON, register
from stylekernels.ops.instance_norm import check_operands, run

register("group_norm", cuda=(TRITON, NATIVE))


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual_first: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm, activation and residual in one op.

    ``activation((x - mean) / sqrt(var + eps) * weight + bias) + residual`` with the mean and
    biased variance of each (image, group of channels), computed in float32 and rounded once. One
    group is layer norm over channels and pixels; C groups are instance norm. A group of a single
    value is normalised to 0.

    Args:
        x: (N, C, ...) of any rank, contiguous or channels_last; float32, bfloat16, float16 or
            float64.
        num_groups: groups of consecutive channels, a divisor of C.
        weight: scale, (C,) or (N, C), in x's dtype or float32; 1 by default.
        bias: shift, as weight; 0 by default.
        residual, activation, negative_slope, residual_first: as for `instance_norm`.
        eps: added to the variance. With 0, constant groups are normalised to 0.

    Returns:
        x's shape, dtype and layout.

    Raises:
        TypeError: if a dtype does not fit, or an argument is no tensor.
        ValueError: if a shape, device or name does not fit, or if the groups do not divide C.

    Wu and He, "Group normalization", 2018.
    """
    check_channels(x)
    channels = x.shape[1]
    num_groups = as_integer(num_groups, "num_groups")
    if num_groups < 1 or channels % num_groups != 0:
        raise ValueError(
            f"num_groups: expected a divisor of x's {channels} channels, got {num_groups}"
        )
    check_number(negative_slope, "negative_slope")
    check_number(eps, "eps")
    x, residual = check_operands(x, weight, bias, residual, activation)
    options = (activation, negative_slope, residual_first, eps)
    group = max(1, channels // num_groups)
    return run("group_norm", (x, weight, bias, residual, None, None), options, group)
