"""A step of ``stylekernels train``, without what its discriminator and its noise loss add."""

import torch
from torch import Tensor, nn

from stylekernels.losses import PerceptualLoss
from stylekernels.training.processes import Processes
from stylekernels.training.step import MixedPrecision, TrainingStep


class OurStep:
    """A step that minimises the perceptual loss.

    Args:
        network: what is trained, float32.
        loss: of target and picture.
        precision: dtype of the arithmetic.
        capturable: whether CUDA graphs may capture the step.
    """

    def __init__(
        self, network: nn.Module, loss: PerceptualLoss, precision: torch.dtype, *, capturable: bool
    ) -> None:
        self.network, self.loss = MixedPrecision(network, precision), loss
        self.step = TrainingStep(self.network, capturable=capturable)
        self.optimizer = self.step.optimizer

    def __call__(self, photo: Tensor, target: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Take a step; returns the losses before it."""
        self.step.begin(learning_rate)
        losses = self.loss(target, self.network(photo))
        self.step.backward(losses["total"])
        self.step.finish(Processes())
        return losses
