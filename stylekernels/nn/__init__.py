"""Modules over the fused ops. Those with a name of torch's are drop-in replacements."""

from stylekernels.nn.conv_transpose2d import ConvTranspose2d
from stylekernels.nn.gram_matrix import GramMatrix, StyleLoss
from stylekernels.nn.group_norm import GroupNorm
from stylekernels.nn.instance_norm import (
    AdaptiveInstanceNorm2d,
    ConditionalInstanceNorm2d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from stylekernels.nn.upsample_block import UpsampleBlock

__all__ = [
    "AdaptiveInstanceNorm2d",
    "ConditionalInstanceNorm2d",
    "ConvTranspose2d",
    "GramMatrix",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "StyleLoss",
    "UpsampleBlock",
]
