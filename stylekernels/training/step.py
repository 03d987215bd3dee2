"""One step of training: mixed precision, gradients, Adam."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stylekernels.nn import InstanceNorm2d, UpsampleBlock
from stylekernels.training.processes import Processes


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

    def __call__(self, x: Tensor, *rest: int) -> Tensor:
        """The output for ``x`` and the rest, by the weights as they are now, in the precision."""
        if self.working is not self.network:
            with torch.no_grad():
                weights = [*self.network.parameters()]
                torch._foreach_copy_([*self.working.parameters()], weights)
        return self.working(x.to(self.precision), *rest)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the gradients of the last backward pass to those of the network's weights, in
        float32."""
        if self.working is self.network:
            return
        pairs = zip(self.network.parameters(), self.working.parameters(), strict=True)
        for weight, rounded in pairs:
            if rounded.grad is not None:
                found = rounded.grad.float()
                weight.grad = found if weight.grad is None else weight.grad.add_(found)
                rounded.grad = None


def _rounded(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that must have the dtype of the images."""
    for module in network.modules():
        # An nn.ParameterDict holds the rows of norms.
        if isinstance(module, (InstanceNorm2d, nn.ParameterDict)):
            continue
        names = ("norm_weight", "norm_bias") if isinstance(module, UpsampleBlock) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if name not in names:
                yield parameter


def adam(weights: Iterable[nn.Parameter], **settings: Any) -> torch.optim.Adam:
    """Adam with its fused kernels on the CPU; on GPUs PyTorch chooses.

    Args:
        weights: to change, all on one device.
        settings: of `torch.optim.Adam`.
    """
    weights = [*weights]
    fused = True if weights[0].device.type == "cpu" else None
    return torch.optim.Adam(weights, fused=fused, **settings)


class TrainingStep:
    """Changes a network's weights by Adam, in mixed precision.

    A step is :meth:`begin`, then :meth:`backward` for each pass of the network, then
    :meth:`finish`.

    Args:
        network: what is trained.
        capturable: on a GPU, whether CUDA graphs may capture the step; not with float16.

    Attributes:
        optimizer: Adam, over all of the network's weights.
        scaler: of gradients; it does nothing but for float16.
    """

    def __init__(self, network: MixedPrecision, *, capturable: bool = False) -> None:
        self.network = network
        weights = [*network.network.parameters()]
        device = weights[0].device.type
        self.optimizer = adam(weights, capturable=capturable)
        self.scaler = torch.amp.GradScaler(device, enabled=network.precision == torch.float16)

    def begin(self, learning_rate: float) -> None:
        """Forget the gradients of the last step, and set Adam's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()

    def backward(self, output: Tensor, gradient: Tensor | None = None) -> None:
        """Add the gradients of an output: of a loss, or of pictures with theirs.

        Args:
            output: a scalar, or what the network made.
            gradient: None for a scalar; else the scaled gradient, of the output's shape.
        """
        if gradient is None:
            self.scaler.scale(output).backward()
        else:
            output.backward(gradient.to(output.dtype))
        self.network.take_gradients()

    def finish(self, processes: Processes) -> None:
        """Change the weights, by the mean of the gradients of all processes."""
        weights = self.optimizer.param_groups[0]["params"]
        processes.average([weight.grad for weight in weights if weight.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def restart(self) -> None:
        """Forget Adam's moments: what follows has gradients of another size."""
        self.optimizer.state.clear()
