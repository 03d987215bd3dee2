"""A step of training as people write it in PyTorch: what the rivals run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PlainStep:
    """Forward pass and loss under autocast, backward pass and Adam.

    Args:
        network: what is trained; its weights are float32.
        loss: of target and picture: scalars by name, of which ``total`` is minimised.
        dtype: of the arithmetic, float32 or bfloat16.
        capturable: on a GPU, whether CUDA graphs may capture the step.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        dtype: torch.dtype,
        *,
        capturable: bool = False,
    ) -> None:
        self.network, self.loss, self.dtype = network, loss, dtype
        self.device = next(network.parameters()).device
        fused = True if self.device.type == "cpu" else None
        self.optimizer = torch.optim.Adam(network.parameters(), capturable=capturable, fused=fused)

    def __call__(self, photo: Tensor, target: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Take one step; return the losses before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with autocast(self.device, self.dtype):
            losses = self.loss(target, self.network(photo))
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        return losses


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Networks compute in ``dtype`` inside; in float32 as they are."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
