"""Pairs of a norm and the activation after it, and whether they can be one op."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.nn.group_norm import GroupNorm
from stylekernels.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

NORMS = (GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)
ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
#: Functions, and the module of each that computes the same.
FUNCTIONS = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    F.leaky_relu_: nn.LeakyReLU,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    torch.tanh_: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    torch.sigmoid_: nn.Sigmoid,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
}
#: Methods of a tensor, likewise.
METHODS = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "tanh": nn.Tanh,
    "tanh_": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "sigmoid_": nn.Sigmoid,
}
NO_LAYER = "no layer is called right after it"
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


_MODULES = [(function, kind()) for function, kind in FUNCTIONS.items()]


def as_module(activation: object) -> object:
    """Return the module that computes what a function of `FUNCTIONS` does without options; anything
    else as it is."""
    if isinstance(activation, nn.Module):
        return activation
    return next((module for function, module in _MODULES if function is activation), activation)


def options_of(activation: nn.Module) -> tuple[str, float]:
    """Return the name and the negative slope of a module of `ACTIVATIONS`."""
    name = ACTIVATIONS[type(activation)]
    if name == "gelu" and activation.approximate == "tanh":
        name = "gelu_tanh"
    return name, getattr(activation, "negative_slope", 0.01)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a norm of ours without an activation of its own: of one of
    `NORMS`, or of a drop-in of a subclass (`drop_ins.ours`)."""
    if not isinstance(module, NORMS):
        return False
    kind = type(module)
    return (kind in NORMS or hasattr(kind, "replaced")) and module.activation == "none"


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, besides the one that prepares a lazy module's first call
    and goes."""
    prepares = getattr(getattr(module, "_initialize_hook", None), "id", None)
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks.keys() - {prepares}
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_unchanged(module: nn.Module) -> bool:
    """Return whether a module has neither hooks nor a forward of its own."""
    return "forward" not in module.__dict__ and not has_hooks(module)


def why_apart(norm: nn.Module, successor: nn.Module | None) -> str | None:
    """Return why a norm and the module after it cannot be one op; None if they can."""
    if successor is None:
        return NO_LAYER
    kind = type(successor)
    if kind not in ACTIVATIONS:
        return f"{kind.__name__} follows it"
    if "forward" in successor.__dict__:
        return f"{kind.__name__} follows it, with a forward of its own"
    if has_hooks(norm):
        return "it has hooks, which would see the activated output"
    if has_hooks(successor):
        return f"the {kind.__name__} after it has hooks"
    return None


def passes_on(module: nn.Module, *, in_evaluation: bool = False) -> bool:
    """Return whether a module returns its input: an Identity, or a Dropout that drops nothing now
    or, for ``in_evaluation``, after ``eval()``."""
    kind = type(module)
    if kind in _DROPOUTS:
        idle = in_evaluation or not module.training or module.p == 0
    else:
        idle = kind is nn.Identity
    return idle and is_unchanged(module)


def run_pair(norm: nn.Module, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``activation(norm(x))``, computed by one op if the two can be one."""
    if is_plain(norm):
        module = as_module(activation)
        if isinstance(module, nn.Module) and why_apart(norm, module) is None:
            return norm(x, then=options_of(module))
    return activation(norm(x))
