"""Modules over the fused ops; those named as torch's own are drop-in replacements for them."""

from stylekernels.nn.gram_matrix import GramMatrix, StyleLoss
from stylekernels.nn.instance_norm import (
    AdaptiveInstanceNorm2d,
    ConditionalInstanceNorm2d,
    InstanceNorm2d,
)
from stylekernels.nn.upsample_block import UpsampleBlock

__all__ = [
    "AdaptiveInstanceNorm2d",
    "ConditionalInstanceNorm2d",
    "GramMatrix",
    "InstanceNorm2d",
    "StyleLoss",
    "UpsampleBlock",
]
