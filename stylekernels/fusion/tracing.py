"""Graphs of modules: what is common to all, and those by `torch.fx`."""

import copy
import inspect
import operator
import os
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from stylekernels.conversion import revert
from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS
from stylekernels.fusion.running import Arguments, Required
from stylekernels.nn.pairs import has_hooks

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


_PLAIN = fx.Tracer()


class _Proxy(fx.Proxy):
    """A value that passes for a tensor. PyTorch's own class does not, and records ``y += x`` as
    ``y + x``, which leaves y as it was."""

    __class__ = property(lambda self: Tensor)
    _is_param = _is_buffer = False  # for isinstance(value, nn.Parameter) and nn.Buffer

    def __iadd__(self, other):
        return self._in_place(operator.iadd, other)

    def __isub__(self, other):
        return self._in_place(operator.isub, other)

    def __imul__(self, other):
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other):
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function, other) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """Follows all modules but layers, also layers of other packages than torch.nn."""

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a):
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m, module_qualified_name)


def is_layer(module: nn.Module, name: str) -> bool:
    """Return whether a call of a module is one node of a graph."""
    return (
        isinstance(module, (*CONVOLUTIONS, *NORMS))
        or type(module).__module__.startswith("stylekernels.nn.")
        or _PLAIN.is_leaf_module(module, name)
    )


class CannotTrace(Exception):
    """A forward depends on values, or does what a tracer cannot follow. The message is the reason
    in one line."""


#: Beginnings of what PyTorch says, and what it means.
_MEANINGS = {
    "symbolically traced variables cannot be used as inputs to control flow": (
        "its code branches on values or sizes of tensors"
    ),
    "Could not guard on data-dependent expression": "its code branches on values of tensors",
}
_TORCH = os.path.dirname(torch.__file__)


def reason_of(error: Exception, module: nn.Module) -> str:
    """Return in one line why a module cannot be traced, from the error of a tracer, and the last
    line of the module's code that it came from."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    reason = next((mean for start, mean in _MEANINGS.items() if line.startswith(start)), line)
    forwards = (inspect.unwrap(type(each).forward) for each in module.modules())
    files = {each.__code__.co_filename for each in forwards if hasattr(each, "__code__")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files and not frame.filename.startswith(_TORCH):
            return f"{reason} ({os.path.basename(frame.filename)}:{frame.lineno})"
    return reason


class Traced(NamedTuple):
    """The graph of a module.

    Attributes:
        graph: a graph of tensors.
        arguments: those of the calls that it is for.
        how: the tracer, as in a report.
    """

    graph: fx.Graph
    arguments: Arguments
    how: str


def copied(module: nn.Module) -> nn.Module:
    """Return a copy with the same parameters and buffers. Tracing needs one: a forward that it runs
    may set attributes."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def plain_copy(module: nn.Module) -> nn.Module:
    """Return such a copy, as the module was before `convert`."""
    return revert(copied(module))


def check_hooks(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse modules with hooks, given with their names."""
    for name, module in modules:
        if has_hooks(module):
            raise CannotTrace(f"{name or 'it'} has hooks; remove them first")


def traced(module: nn.Module) -> Traced:
    """Return the graph of a module for calls with its required arguments, by `torch.fx`.

    Raises:
        CannotTrace: if there is no such graph.
    """
    # Hooks of layers keep only these apart. Those of other modules must run at each call.
    check_hooks(each for each in module.named_modules() if list(each[1].children()))
    copy_of_it = plain_copy(module)
    before = set(vars(copy_of_it))
    try:
        _, *parameters = inspect.signature(type(module).forward).parameters.values()
        given = {each.name: each.default for each in parameters if each.default is not each.empty}
        required = {each.name: each.kind for each in parameters if each.name not in given}
        if not all(kind in _BY_POSITION for kind in required.values()):
            raise CannotTrace("its forward takes *args, **options or required keywords")
        graph = _Tracer().trace(copy_of_it, concrete_args=given)
    except CannotTrace:
        raise
    except Exception as error:  # of the module's own code as well
        raise CannotTrace(reason_of(error, module)) from error
    if any(name.startswith("_tensor_constant") for name in vars(copy_of_it).keys() - before):
        raise CannotTrace(
            "its forward makes a tensor, which may be random; a constant can be a buffer"
        )
    names = [node.target for node in graph.find_nodes(op="placeholder")]
    if len(names) > len(set(names)):
        raise CannotTrace("torch.fx confuses the names of its arguments")
    for node in list(graph.nodes):  # also erased ones
        if node.op == "placeholder" and node.target not in required:
            _erase(graph, node)
        elif not node.args and "input" in node.kwargs:
            node.args, node.kwargs = _positional(node.kwargs)
    names = [node.target for node in graph.find_nodes(op="placeholder")]
    return Traced(graph, Required(names), "by torch.fx")


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase an argument that has its default, and the checks of that."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _positional(options: dict) -> tuple[tuple, dict]:
    """Return arguments and options of a call whose image was given by name."""
    return (options["input"],), {name: options[name] for name in options if name != "input"}
