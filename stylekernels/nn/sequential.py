"""Sequential containers that run a norm and the activation after it as one op."""

import functools

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


def _options_of(activation: nn.Module) -> tuple[str, float]:
    """Return the name and the negative slope of a module of `ACTIVATIONS`."""
    name = ACTIVATIONS[type(activation)]
    if name == "gelu" and activation.approximate == "tanh":
        name = "gelu_tanh"
    return name, getattr(activation, "negative_slope", 0.01)


def runs_in_order(module: nn.Module) -> bool:
    """Return whether a module is a Sequential that passes each output to the next module."""
    plain = getattr(type(module), "forward", None) in (nn.Sequential.forward, _Fusing.forward)
    return isinstance(module, nn.Sequential) and plain and "forward" not in module.__dict__


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, besides the one that prepares a lazy module's first call
    and goes."""
    prepares = getattr(getattr(module, "_initialize_hook", None), "id", None)
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks.keys() - {prepares}
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def why_apart(norm: nn.Module, successor: nn.Module | None) -> str | None:
    """Return why a norm and the module after it cannot be one op; None if they can."""
    if successor is None:
        return "nothing follows it in a Sequential"
    kind = type(successor)
    if kind not in ACTIVATIONS:
        return f"{kind.__name__} follows it"
    if "forward" in successor.__dict__:
        return f"{kind.__name__} follows it, with a forward of its own"
    if _has_hooks(norm):
        return "it has hooks, which would see the activated output"
    if _has_hooks(successor):
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
    return idle and "forward" not in module.__dict__ and not _has_hooks(module)


class _Fusing(nn.Sequential):
    """Runs each plain norm together with the activation after it, and skips what only passes on.

    The modules do not change: called alone, from a list, by index or in a slice, each computes what
    it computed before.
    """

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self)
        index = 0
        while index < len(modules):
            module = modules[index]
            index += 1
            if type(module) in NORMS and module.activation == "none":
                after = index
                while after < len(modules) and passes_on(modules[after]):
                    after += 1
                successor = modules[after] if after < len(modules) else None
                if why_apart(module, successor) is None:
                    input = module(input, then=_options_of(successor))
                    index = after + 1
                    continue
            input = module(input)
        return input

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (plain_kind(type(self)),), *state


@functools.cache
def fusing(kind: type[nn.Sequential]) -> type[nn.Sequential]:
    """Return the fusing subclass of a Sequential class. Each class has one."""
    if is_fusing(kind):
        return kind
    return type(f"Fusing{kind.__name__}", (_Fusing, kind), {"__module__": kind.__module__})


def is_fusing(kind: type[nn.Module]) -> bool:
    """Return whether a class was made by `fusing`."""
    return issubclass(kind, _Fusing)


def plain_kind(kind: type[nn.Sequential]) -> type[nn.Sequential]:
    """Return the class that `fusing` made a class from."""
    return kind.__mro__[2]


def _new(kind: type[nn.Sequential]) -> nn.Sequential:
    """Return an empty object for pickle or copy to fill."""
    made = fusing(kind)
    return made.__new__(made)
