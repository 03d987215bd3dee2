"""Fused kernels for neural style networks.

The first use of one of these names registers the ops with PyTorch. A program that calls
``torch.ops.stylekernels`` directly, or loads an exported model, must import ``stylekernels.ops``.
"""

from typing import TYPE_CHECKING

from stylekernels.lazy import lazy

if TYPE_CHECKING:
    from stylekernels import nn
    from stylekernels.conversion import convert, revert
    from stylekernels.fusion import fuse_convolutions
    from stylekernels.ops import (
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
    from stylekernels.ops.dispatch import explain
    from stylekernels.ops.forcing import use_impl

__version__ = "0.1.0"

__all__ = [
    "convert",
    "explain",
    "fuse_convolutions",
    "gram_loss",
    "gram_losses",
    "gram_matrix",
    "group_norm",
    "instance_norm",
    "instance_norm_stats",
    "nn",
    "norm_conv2d",
    "norm_scale_shift",
    "revert",
    "upsample_block",
    "use_impl",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "convert": "conversion",
            "explain": "ops.dispatch",
            "fuse_convolutions": "fusion",
            "gram_loss": "ops",
            "gram_losses": "ops",
            "gram_matrix": "ops",
            "group_norm": "ops",
            "instance_norm": "ops",
            "instance_norm_stats": "ops",
            "nn": "nn",
            "norm_conv2d": "ops",
            "norm_scale_shift": "ops",
            "revert": "conversion",
            "upsample_block": "ops",
            "use_impl": "ops.forcing",
        },
    )
