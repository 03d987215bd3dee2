"""One step of training: forward pass, loss, backward pass, Adam."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Networks compute in ``precision`` inside; in float32 as they are."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


class TrainingStep:
    """Changes a generator's weights so that a loss falls, in mixed precision.

    Args:
        generator: what is trained; its weights are float32.
        loss: of target and picture, (N, 3, H, W) each: scalars by name, of which ``total`` is
            minimised.
        precision: arithmetic of the networks, float32, bfloat16 or float16; the gradients of the
            latter are scaled.
        capturable: on a GPU, whether CUDA graphs may capture the step; not with float16.

    Attributes:
        optimizer: Adam, over all of the generator's weights.
        scaler: of gradients; it does nothing but for float16.
    """

    def __init__(
        self,
        generator: nn.Module,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        precision: torch.dtype,
        *,
        capturable: bool = False,
    ) -> None:
        self.generator, self.loss, self.precision = generator, loss, precision
        self.device = next(generator.parameters()).device
        self.optimizer = torch.optim.Adam(generator.parameters(), capturable=capturable)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def __call__(self, photo: Tensor, target: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Take one step.

        Args:
            photo: what the generator is given, (N, 3, H, W) in [0, 1].
            target: what the loss compares its picture with, the same shape.
            learning_rate: Adam's.

        Returns:
            The losses before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with autocast(self.device, self.precision):
            losses = self.loss(target, self.generator(photo))
        self.optimizer.zero_grad()
        self.scaler.scale(losses["total"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses
