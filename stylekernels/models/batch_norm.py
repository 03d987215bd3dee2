"""Batch norm by the kernels of instance norm."""

import torch
from torch import Tensor, nn

from stylekernels.ops import instance_norm, instance_norm_stats

# Share of a batch's statistics in the running ones, torch.nn.BatchNorm2d's default.
_MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Batch norm and leaky ReLU by the kernels of instance norm.

    In channels_last a batch is, in memory, one image of N H rows. Its batch norm is the instance
    norm of that image.

    Args:
        channels: C.
        negative_slope: slope of leaky ReLU below zero.

    Ioffe and Szegedy, "Batch normalization", 2015.
    """

    def __init__(self, channels: int, negative_slope: float) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), channels_last: the batch's statistics are used in training, else
        the running ones."""
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)[None].permute(0, 3, 1, 2)
        stats = None
        if self.training:
            self._remember(rows.detach())
        else:
            stats = (self.running_mean, self.running_var)
        y = instance_norm(
            rows,
            self.weight,
            self.bias,
            activation="leaky_relu",
            negative_slope=self.negative_slope,
            stats=stats,
        )
        return y.permute(0, 2, 3, 1).unflatten(1, (len(x), -1))[0].permute(0, 3, 1, 2)

    @torch.no_grad()
    def _remember(self, rows: Tensor) -> None:
        mean, var = instance_norm_stats(rows)
        count = rows.shape[2] * rows.shape[3]
        self.running_mean.lerp_(mean[0], _MOMENTUM)
        self.running_var.lerp_(var[0] * (count / (count - 1)), _MOMENTUM)
