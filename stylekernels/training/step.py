"""One step of training: forward pass, loss, backward pass, Adam."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from stylekernels.nn import InstanceNorm2d, UpsampleBlock


class MixedPrecision:
    """A network whose weights are float32, computed in another dtype.

    The convolutions' weights are rounded into a copy of the network, which computes in that dtype
    throughout. Autocast rounds them as well, but carries images back to float32 for padding, and
    rounds the weights of a frozen network at every call. Norms keep float32 parameters.

    Args:
        network: what is trained, float32.
        precision: float32, bfloat16 or float16.

    Attributes:
        working: what computes: the copy, or with float32 the network itself.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype) -> None:
        self.network, self.precision = network, precision
        self.working = network
        if precision != torch.float32:
            self.working = copy.deepcopy(network)
            for parameter in _rounded(self.working):
                parameter.data = parameter.data.to(precision)

    def __call__(self, x: Tensor) -> Tensor:
        """The output for ``x``, by the weights as they are now, in the precision."""
        if self.working is not self.network:
            with torch.no_grad():
                weights = [*self.network.parameters()]
                torch._foreach_copy_([*self.working.parameters()], weights)
        return self.working(x.to(self.precision))

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the gradients of the last backward pass to the network's weights, in float32."""
        if self.working is self.network:
            return
        pairs = zip(self.network.parameters(), self.working.parameters(), strict=True)
        for weight, rounded in pairs:
            weight.grad = None if rounded.grad is None else rounded.grad.float()
            rounded.grad = None


def _rounded(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that must have the dtype of the images."""
    for module in network.modules():
        if isinstance(module, InstanceNorm2d):
            continue
        names = ("norm_weight", "norm_bias") if isinstance(module, UpsampleBlock) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in names:
                yield parameter


class TrainingStep:
    """Changes a network's weights so that a loss falls, in mixed precision.

    Args:
        network: what is trained.
        loss: of target and picture, (N, 3, H, W) each: scalars by name, of which ``total`` is
            minimised. With float16 its gradients are scaled.
        capturable: on a GPU, whether CUDA graphs may capture the step; not with float16.

    Attributes:
        optimizer: Adam, over all of the network's weights.
        scaler: of gradients; it does nothing but for float16.
    """

    def __init__(
        self,
        network: MixedPrecision,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        capturable: bool = False,
    ) -> None:
        self.network, self.loss = network, loss
        weights = [*network.network.parameters()]
        device = weights[0].device.type
        # On GPUs PyTorch chooses.
        fused = True if device == "cpu" else None
        self.optimizer = torch.optim.Adam(weights, capturable=capturable, fused=fused)
        self.scaler = torch.amp.GradScaler(device, enabled=network.precision == torch.float16)

    def __call__(self, photo: Tensor, target: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Take one step.

        Args:
            photo: what the network is given, (N, 3, H, W) in [0, 1].
            target: what the loss compares its picture with, the same shape.
            learning_rate: Adam's.

        Returns:
            The losses before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        losses = self.loss(target, self.network(photo))
        self.scaler.scale(losses["total"]).backward()
        self.network.take_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses
