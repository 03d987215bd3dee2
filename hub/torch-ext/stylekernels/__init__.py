"""Fused kernels for neural style networks, as a kernel for Hugging Face ``kernels``.

The functions and modules are those of the package ``stylekernels``. `layers` are for ``kernelize``.
"""

from . import layers, nn
from .conversion import convert, revert
from .ops import (
    gram_loss,
    gram_losses,
    gram_matrix,
    group_norm,
    instance_norm,
    instance_norm_stats,
    norm_conv2d,
    norm_scale_shift,
    upsample_block,
)
from .ops.dispatch import explain
from .ops.forcing import use_impl

__all__ = [
    "convert",
    "explain",
    "gram_loss",
    "gram_losses",
    "gram_matrix",
    "group_norm",
    "instance_norm",
    "instance_norm_stats",
    "layers",
    "nn",
    "norm_conv2d",
    "norm_scale_shift",
    "revert",
    "upsample_block",
    "use_impl",
]
