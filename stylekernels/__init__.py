"""Fused kernels for neural style networks."""

from stylekernels import nn
from stylekernels.convert import convert
from stylekernels.dispatch import explain, use_impl
from stylekernels.ops import (
    gram_loss,
    gram_matrix,
    instance_norm,
    instance_norm_stats,
    upsample_block,
)

__version__ = "0.1.0"

__all__ = [
    "convert",
    "explain",
    "gram_loss",
    "gram_matrix",
    "instance_norm",
    "instance_norm_stats",
    "nn",
    "upsample_block",
    "use_impl",
]
