"""Pairs of a norm and the activation after it, and whether they can be one op."""

from torch import Tensor, nn

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
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def options_of(activation: nn.Module) -> tuple[str, float]:
    """Return the name and the negative slope of a module of `ACTIVATIONS`."""
    name = ACTIVATIONS[type(activation)]
    if name == "gelu" and activation.approximate == "tanh":
        name = "gelu_tanh"
    return name, getattr(activation, "negative_slope", 0.01)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a norm of ours without an activation of its own."""
    return type(module) in NORMS and module.activation == "none"


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
        return "no layer is called right after it"
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


def run_pair(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """Return ``activation(norm(x))``, computed by one op if the two can be one."""
    if is_plain(norm) and why_apart(norm, activation) is None:
        return norm(x, then=options_of(activation))
    return activation(norm(x))
