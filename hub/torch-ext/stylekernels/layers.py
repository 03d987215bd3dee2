"""Layers for ``kernelize``, which gives their ``forward`` to modules of torch's.

A layer has no state of its own: ``self`` is the module whose ``forward`` is replaced, and has the
parameters and options that torch's class gives it.
"""

from torch import Tensor, nn

from .nn.instance_norm import normalize
from .ops import group_norm

__all__ = ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class InstanceNorm2d(nn.Module):
    """For `torch.nn.InstanceNorm2d`: (N, C, H, W) or (C, H, W)."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(self, input: Tensor) -> Tensor:
        return normalize(self, input)


class InstanceNorm1d(InstanceNorm2d):
    """For `torch.nn.InstanceNorm1d`: (N, C, L) or (C, L)."""


class InstanceNorm3d(InstanceNorm2d):
    """For `torch.nn.InstanceNorm3d`: (N, C, D, H, W) or (C, D, H, W)."""


class GroupNorm(nn.Module):
    """For `torch.nn.GroupNorm`: (N, C, ...)."""

    has_backward: bool = True
    can_torch_compile: bool = True

    num_groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)
