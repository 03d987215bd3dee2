"""Plain PyTorch formulas of every op: the contract that each kernel is checked against."""

from stylekernels.reference.gram_matrix import gram_loss, gram_losses, gram_matrix, product
from stylekernels.reference.instance_norm import (
    activate,
    activation_gradient,
    instance_norm,
    instance_norm_stats,
    inverse_deviation,
    sums_of_groups,
)
from stylekernels.reference.norm_conv2d import norm_conv2d, norm_scale_shift
from stylekernels.reference.upsample_block import (
    border_of,
    convolve_enlarged,
    enlarge,
    pad,
    transposed_padding,
    upsample_block,
    upsample_conv2d,
)

__all__ = [
    "activate",
    "activation_gradient",
    "border_of",
    "convolve_enlarged",
    "enlarge",
    "gram_loss",
    "gram_losses",
    "gram_matrix",
    "instance_norm",
    "instance_norm_stats",
    "inverse_deviation",
    "norm_conv2d",
    "norm_scale_shift",
    "pad",
    "product",
    "sums_of_groups",
    "transposed_padding",
    "upsample_block",
    "upsample_conv2d",
]
