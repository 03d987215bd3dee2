"""What stands before a convolution: the norm, the activation and the addition that make its
input."""

import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from stylekernels.fusion.convolve import Convolve
from stylekernels.nn import GroupNorm, InstanceNorm2d
from stylekernels.nn.forward_calls import FUNCTIONS
from stylekernels.nn.pairs import ACTIVATIONS, has_hooks, options_of, passes_on

_METHODS = {"relu": nn.ReLU, "relu_": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
#: The norms that a convolution can take.
NORMS = (nn.InstanceNorm2d, InstanceNorm2d, nn.GroupNorm, GroupNorm, nn.BatchNorm2d)
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "setitem")


class Input(NamedTuple):
    """An input as ``activation(norm(x)) + residual``, or ``activation(norm(x) + residual)``.

    Attributes:
        x: what is normalised.
        norm: the call of an instance, group or batch norm, or None.
        activation, negative_slope: as for `instance_norm`.
        residual: what is added, or None.
        residual_first: whether it is added before the activation.
    """

    x: fx.Node
    norm: fx.Node | None = None
    activation: str = "none"
    negative_slope: float = 0.01
    residual: fx.Node | None = None
    residual_first: bool = False


def takes_planes(norm: nn.Module) -> bool:
    """Return whether a norm takes the statistics of each plane of its input."""
    return isinstance(norm, nn.InstanceNorm2d) and norm.running_mean is None


class Calls:
    """The calls of a traced network.

    Args:
        graph: its graph.
        root: the module that it is the graph of.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._root = root
        self.place = {node: index for index, node in enumerate(graph.nodes)}

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self._root.get_submodule(node.target) if node.op == "call_module" else None

    def is_norm(self, node: fx.Node) -> bool:
        """Return whether a node calls a norm that ends as a scale and a shift for each channel of
        each image: an instance or group norm, or a batch norm with running statistics."""
        module = self.module(node)
        kind = type(module)
        return (
            kind in NORMS
            and (kind is not nn.BatchNorm2d or module.running_mean is not None)
            and not has_hooks(module)
            and "forward" not in vars(module)
            and len(node.args) == 1
            and not node.kwargs
        )

    def read(self, node: fx.Node) -> Input:
        """Return a value as the result of what makes it, as far back as one op reaches."""
        found = self._read_sum(node)
        if found is None:
            found = self._read_activation(node)
        return found

    def _read_sum(self, node: fx.Node) -> Input | None:
        """Read ``activation(norm(x)) + residual``."""
        for term, residual in self._terms(node):
            found = self._read_activation(term) if len(term.users) == 1 else Input(term)
            if found.norm is not None and found.residual is None:
                return found._replace(residual=residual)
        return None

    def _read_activation(self, node: fx.Node) -> Input:
        """Read ``activation(norm(x))`` or ``activation(norm(x) + residual)``."""
        activation = self._activation(node)
        if activation is None:
            return self._read_norm(node)
        before = node.args[0]
        if len(before.users) == 1:
            for term, residual in self._terms(before):
                found = self._read_norm(term)
                if len(term.users) == 1 and found.norm is not None and found.activation == "none":
                    return Input(found.x, found.norm, *activation, residual, True)
            found = self._read_norm(before)
            if found.norm is not None and found.activation == "none":
                return Input(found.x, found.norm, *activation)
        if self._changes(node) and not (len(before.users) == 1 and self._is_new(before)):
            return Input(node)
        return Input(before, None, *activation)

    def _read_norm(self, node: fx.Node) -> Input:
        """Read ``norm(x)``, which has an activation of its own if it is of this library."""
        while node.op == "call_module" and passes_on(self.module(node)) and len(node.users) == 1:
            node = node.args[0]
        if not self.is_norm(node) or self.is_changed(node.args[0]):
            return Input(node)
        module = self.module(node)
        activation = getattr(module, "activation", "none"), getattr(module, "negative_slope", 0.01)
        return Input(node.args[0], node, *activation)

    def _activation(self, node: fx.Node) -> tuple[str, float] | None:
        """Return the name and the slope of the activation that a node calls."""
        module = self.module(node)
        if module is not None:
            alone = type(module) in ACTIVATIONS and not has_hooks(module)
            return options_of(module) if alone and "forward" not in vars(module) else None
        makers = {"call_function": FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
        if node.target not in makers or not isinstance(node.args[0], fx.Node):
            return None
        try:
            return options_of(makers[node.target](*node.args[1:], **node.kwargs))
        except TypeError:  # an argument that the module does not know
            return None

    def _terms(self, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield both orders of the terms of a sum of two tensors."""
        named = node.op == "call_method" and node.target in ("add", "add_")
        if not named and not (node.op == "call_function" and node.target in _ADDITIONS):
            return
        terms = node.args
        if len(terms) != 2 or node.kwargs or not all(isinstance(t, fx.Node) for t in terms):
            return
        if terms[0] is terms[1] or (self._changes(node) and len(terms[0].users) > 1):
            return
        for term, residual in (terms[::-1], terms):
            if not self.is_changed(residual, but=node):
                yield term, residual

    def _changes(self, node: fx.Node) -> bool:
        """Return whether a node changes its first argument."""
        if node.op == "call_module":
            return getattr(self.module(node), "inplace", False)
        name = node.target if isinstance(node.target, str) else node.target.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        return in_place or name in _IN_PLACE or bool(node.kwargs.get("inplace"))

    def is_changed(self, node: fx.Node, but: fx.Node | None = None) -> bool:
        """Return whether another node than ``but`` changes a value in place."""
        return any(self._changes(user) for user in node.users if user is not but)

    def _is_new(self, node: fx.Node) -> bool:
        """Return whether a value is no view of another."""
        if node.target is operator.getitem:
            return isinstance(self.module(node.args[0]), Convolve)
        return node.op == "call_module" and not passes_on(self.module(node))
