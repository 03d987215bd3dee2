"""Inputs of convolutions: the norm, the activation and the addition that make them."""

import operator
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.nn import GroupNorm, InstanceNorm2d
from stylekernels.nn.drop_ins import added
from stylekernels.nn.pairs import (
    ACTIVATIONS,
    FUNCTIONS,
    METHODS,
    is_unchanged,
    options_of,
    passes_on,
)

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

    A value may be read later than in the network if nothing changes it in between. Calls that
    change a value in place are harmless if the value is new, as that of a norm is, and used by that
    call only. No value is read across other ones, since PyTorch's views may show the change in any
    tensor.

    Args:
        graph: its graph.
        root: the module that it is the graph of.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._root = root
        self.place = {node: index for index, node in enumerate(graph.nodes)}
        self._new: set[fx.Node] = set()
        self._visible: list[int] = []  # places of changes that others may see
        for node in graph.nodes:
            changed = node.args[0] if self._changes(node) and node.args else None
            if changed is not None and changed in self._new and len(changed.users) == 1:
                self._new.add(node)
            elif self._changes(node):
                self._visible.append(self.place[node])
            elif self._makes_new(node):
                self._new.add(node)

    def has_visible_changes(self) -> bool:
        """Return whether a call changes a value that others may see."""
        return bool(self._visible)

    def is_changed_between(self, first: fx.Node, last: fx.Node) -> bool:
        """Return whether a call between two others changes a value that others may see."""
        return any(self.place[first] < place < self.place[last] for place in self._visible)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self._root.get_submodule(node.target) if node.op == "call_module" else None

    def is_norm(self, node: fx.Node) -> bool:
        """Return whether a node calls a norm that ends as a scale and a shift for each channel of
        each image: an instance or group norm, or a batch norm with running statistics."""
        return isinstance(self.module(node), NORMS) and self.why_no_norm(node) is None

    def why_no_norm(self, node: fx.Node) -> str | None:
        """Return why the call of a norm stays as it is; None if `is_norm` takes it."""
        module = self.module(node)
        base = next(kind for kind in type(module).__mro__ if kind in NORMS)
        if names := added(type(module), base):
            return f"a subclass of {base.__name__} that defines {', '.join(names)}"
        if base is nn.BatchNorm2d and module.running_mean is None:
            return "it takes the statistics of the whole batch"
        if not is_unchanged(module):
            return "it has hooks or a forward of its own; remove them first"
        if len(node.args) != 1 or node.kwargs:
            return "it is called with more than its input"
        return None

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
        if activation is None or self.place.get(node) in self._visible:
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
        return Input(before, None, *activation)

    def _read_norm(self, node: fx.Node) -> Input:
        """Read ``norm(x)``, which has an activation of its own if it is of this library."""
        node = self.skip_idle(node)
        if not self.is_norm(node):
            return Input(node)
        module = self.module(node)
        activation = getattr(module, "activation", "none"), getattr(module, "negative_slope", 0.01)
        return Input(node.args[0], node, *activation)

    def _activation(self, node: fx.Node) -> tuple[str, float] | None:
        """Return the name and the slope of the activation that a node calls."""
        module = self.module(node)
        if module is not None:
            plain = type(module) in ACTIVATIONS and is_unchanged(module)
            return options_of(module) if plain else None
        makers = {"call_function": FUNCTIONS, "call_method": METHODS}.get(node.op, {})
        if node.target not in makers or node.all_input_nodes != [node.args[0]]:
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
        if terms[0] is not terms[1] and self.place.get(node) not in self._visible:
            yield terms[1], terms[0]
            yield terms[0], terms[1]

    def skip_idle(self, node: fx.Node) -> fx.Node:
        """Return the value that idle layers, such as a Dropout in evaluation, pass on to a node."""
        while len(node.users) == 1 and node.op == "call_module" and passes_on(self.module(node)):
            if len(node.args[0].users) > 1:
                break  # both are one tensor, which may be changed
            node = node.args[0]
        return node

    def _changes(self, node: fx.Node) -> bool:
        """Return whether a node changes one of its arguments."""
        if node.op == "call_module":
            return getattr(self.module(node), "inplace", False)
        if node.op not in ("call_function", "call_method"):
            return False
        if isinstance(node.target, torch._ops.OpOverload):
            return node.target._schema.is_mutable
        name = node.target if isinstance(node.target, str) else node.target.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        options = *node.args[1:], node.kwargs.get("inplace")
        return (
            in_place
            or name in _IN_PLACE
            or "out" in node.kwargs
            or (node.target in FUNCTIONS and any(option is True for option in options))
        )

    def _makes_new(self, node: fx.Node) -> bool:
        """Return whether a value is known to be no view of another."""
        module = self.module(node)
        if module is not None and passes_on(module):
            (given,) = node.all_input_nodes
            return given in self._new and len(given.users) == 1
        if module is not None:
            return isinstance(module, (*CONVOLUTIONS, *NORMS)) and is_unchanged(module)
        return node.target in (operator.add, operator.sub, operator.mul, torch.add, torch.cat)
