"""Pairs of a norm and the activation after it, and whether they can be one op."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.nn.derived import Derived
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


#: What a call of each function may give besides the input.
_OPTIONS = {function: tuple(signature(kind).parameters) for function, kind in FUNCTIONS.items()}


def options_of(activation: nn.Module) -> tuple[str, float]:
    """Return the name and the negative slope of a module of `ACTIVATIONS`."""
    name = ACTIVATIONS[type(activation)]
    if name == "gelu" and activation.approximate == "tanh":
        name = "gelu_tanh"
    return name, getattr(activation, "negative_slope", 0.01)


def options_of_call(
    function: Callable | str, args: Sequence[object], options: Mapping[str, object]
) -> tuple[str, float] | None:
    """Return what `options_of` returns, for a call of a function, or of a tensor's method by name,
    with more arguments than the input; None if it is not known to be an activation."""
    kind = METHODS.get(function) if isinstance(function, str) else _kind_of(function)
    names = _OPTIONS.get(function, ())
    if kind is None or len(args) > len(names):
        return None
    given = dict(zip(names, args, strict=False)) | dict(options)
    slope = given.get("negative_slope", 0.01)
    if not given.keys() <= set(names) or type(slope) not in (int, float):
        return None
    name = ACTIVATIONS[kind]
    return ("gelu_tanh" if given.get("approximate") == "tanh" else name), slope


def _kind_of(function: object) -> type[nn.Module] | None:
    return next((kind for each, kind in FUNCTIONS.items() if each is function), None)


def as_module(activation: object) -> object:
    """Return a module of the class that computes what a function of `FUNCTIONS` does; anything else
    as it is."""
    kind = None if isinstance(activation, nn.Module) else _kind_of(activation)
    return activation if kind is None else kind()


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a norm of ours without an activation of its own: of one of
    `NORMS`, or of a drop-in of a subclass (`drop_ins.ours`)."""
    if not isinstance(module, NORMS):
        return False
    kind = type(module)
    return (kind in NORMS or isinstance(module, Derived)) and module.activation == "none"


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
    if has_hooks(successor):
        return f"the {kind.__name__} after it has hooks"
    return why_alone(norm)


def why_alone(norm: nn.Module) -> str | None:
    """Return why a norm cannot be one op with any activation; None if it can."""
    if "forward" in norm.__dict__:
        return "it has a forward of its own"
    if has_hooks(norm):
        return "it has hooks, which would see the activated output"
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


def can_pair(norm: nn.Module) -> bool:
    """Return whether a norm can be one op with an activation."""
    return is_plain(norm) and why_alone(norm) is None


def run_pair(
    *,
    norm: nn.Module,
    x: Tensor,
    activation: Callable[..., Tensor] | str,
    args: Sequence[object] = (),
    options: Mapping[str, object] | None = None,
) -> Tensor:
    """Return ``activation(norm(x), *args, **options)``, or ``norm(x).activation(...)`` for the name
    of a tensor's method, computed by one op if the two can be one."""
    options = {} if options is None else options
    if can_pair(norm):
        if not isinstance(activation, nn.Module):
            then = options_of_call(activation, args, options)
        elif why_apart(norm, activation) is None and not args and not options:
            then = options_of(activation)
        else:
            then = None
        if then is not None:
            return norm(x, then=then)
    y = norm(x)
    function = getattr(y, activation) if isinstance(activation, str) else partial(activation, y)
    return function(*args, **options)
