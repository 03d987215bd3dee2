"""The fused ops, one file each: schema, shapes for tracing, gradients and the public function."""

from stylekernels.ops.gram_matrix import gram_loss, gram_losses, gram_matrix
from stylekernels.ops.group_norm import group_norm
from stylekernels.ops.instance_norm import instance_norm, instance_norm_stats
from stylekernels.ops.norm_conv2d import norm_conv2d
from stylekernels.ops.norm_scale_shift import norm_scale_shift
from stylekernels.ops.upsample_block import upsample_block

__all__ = [
    "gram_loss",
    "gram_losses",
    "gram_matrix",
    "group_norm",
    "instance_norm",
    "instance_norm_stats",
    "norm_conv2d",
    "norm_scale_shift",
    "upsample_block",
]
