"""Graphs of modules: what is common to all, and those by `torch.fx`."""

import copy
import functools
import inspect
import operator
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, fx, nn

from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS
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


def line_of(error: Exception) -> str:
    """Return the reason that an error gives, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Arguments(Protocol):
    """The arguments of the calls of a module that its graph is for."""

    def tensors(self, args: tuple, options: dict) -> Sequence[Tensor] | None:
        """Return the arguments of the graph; None if a call is another one."""

    def result(self, values: object) -> object:
        """Return what the module returns, for what the graph does."""


class Required:
    """Calls with the required arguments only, all of them tensors: the graph has the branches for
    tensors, not for None.

    Args:
        names: those of the arguments.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def tensors(self, args: tuple, options: dict) -> tuple[Tensor, ...] | None:
        """Return the arguments of the graph; None if a call is another one."""
        named = self._names[len(args) :]
        if len(args) > len(self._names) or options.keys() != set(named):
            return None
        given = *args, *(options[name] for name in named)
        return given if all(isinstance(each, Tensor) for each in given) else None

    def result(self, values: object) -> object:
        """Return what the module returns, for what the graph does: the same."""
        return values


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


def traced(module: nn.Module) -> Traced:
    """Return the graph of a module for calls with its required arguments, by `torch.fx`.

    Raises:
        CannotTrace: if there is no such graph.
    """
    # Hooks of layers keep only these apart. Those of other modules must run at each call.
    if any(has_hooks(each) for each in module.modules() if list(each.children())):
        raise CannotTrace("a module around others has hooks")
    copy_of_it = copied(module)
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
        raise CannotTrace(line_of(error)) from error
    if any(name.startswith("_tensor_constant") for name in vars(copy_of_it).keys() - before):
        raise CannotTrace("its forward makes a tensor, which may be random")
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


def _run(module: nn.Module, graph: fx.GraphModule, arguments: Arguments, *args, **options):
    """Run the graph for the calls that it is for, else the module's own forward."""
    tensors = arguments.tensors(args, options)
    if tensors is None:
        return type(module).forward(module, *args, **options)
    return arguments.result(graph(*tensors))


def let_run(module: nn.Module, graph: fx.GraphModule, arguments: Arguments) -> None:
    """Replace a module's forward by a graph. Its class, names and other methods stay."""
    # Past the module's __setattr__, which would give the parameters of the graph new names.
    object.__setattr__(module, "forward", functools.partial(_run, module, graph, arguments))
