"""The running average of a network's weights."""

import copy

import torch
from torch import nn


class Average:
    """An exponential moving average of weights and buffers, norm statistics included.

    Args:
        network: what is averaged.
        decay: per step, in [0, 1). In early steps it is smaller, (1 + t) / (10 + t), so that the
            first weights are soon forgotten.

    Attributes:
        network: a copy with averaged weights, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        averages, weights = ([*n.state_dict().values()] for n in (self.network, network))
        torch._foreach_lerp_(averages, weights, 1 - decay)
