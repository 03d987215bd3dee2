"""Graphs of modules, by `torch.fx`."""

import copy
import functools
import inspect
import operator
from collections.abc import Sequence

from torch import Tensor, fx, nn

from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS
from stylekernels.nn.pairs import has_hooks

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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
        return (
            isinstance(m, (*CONVOLUTIONS, *NORMS))
            or type(m).__module__.startswith("stylekernels.nn.")
            or super().is_leaf_module(m, module_qualified_name)
        )


class CannotTrace(Exception):
    """A forward depends on values, or does what `torch.fx` cannot follow. The message is the reason
    in one line."""


def traced(module: nn.Module) -> fx.Graph:
    """Return the graph of a module for a call with its required arguments.

    Raises:
        CannotTrace: if there is no such graph.
    """
    # Hooks of layers keep only these apart. Those of other modules must run at each call.
    if any(has_hooks(each) for each in module.modules() if list(each.children())):
        raise CannotTrace("a module around others has hooks")
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, shared)  # tracing runs its forward, which may set attributes
    before = set(vars(copied))
    try:
        _, *parameters = inspect.signature(type(module).forward).parameters.values()
        given = {each.name: each.default for each in parameters if each.default is not each.empty}
        required = {each.name: each.kind for each in parameters if each.name not in given}
        if not all(kind in _BY_POSITION for kind in required.values()):
            raise CannotTrace("its forward takes *args, **options or required keywords")
        graph = _Tracer().trace(copied, concrete_args=given)
    except CannotTrace:
        raise
    except Exception as error:  # of the module's own code as well
        raise CannotTrace(str(error).partition("\n")[0] or type(error).__name__) from error
    if any(name.startswith("_tensor_constant") for name in vars(copied).keys() - before):
        raise CannotTrace("its forward makes a tensor, which may be random")
    names = [node.target for node in graph.find_nodes(op="placeholder")]
    if len(names) > len(set(names)):
        raise CannotTrace("torch.fx confuses the names of its arguments")
    for node in list(graph.nodes):  # also erased ones
        if node.op == "placeholder" and node.target not in required:
            _erase(graph, node)
        elif not node.args and "input" in node.kwargs:
            node.args, node.kwargs = _positional(node.kwargs)
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase an argument that has its default, and the checks of that."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _positional(options: dict) -> tuple[tuple, dict]:
    """Return arguments and options of a call whose image was given by name."""
    return (options["input"],), {name: options[name] for name in options if name != "input"}


def _run(module: nn.Module, graph: fx.GraphModule, required: Sequence[str], *args, **options):
    """Run the graph for a call with the required arguments, all tensors, else the module's own
    forward: the graph has the branches for tensors, not for None."""
    named = required[len(args) :]
    if len(args) > len(required) or options.keys() != set(named):
        return type(module).forward(module, *args, **options)
    given = *args, *(options[name] for name in named)
    if not all(isinstance(each, Tensor) for each in given):
        return type(module).forward(module, *args, **options)
    return graph(*given)


def let_run(module: nn.Module, graph: fx.GraphModule) -> None:
    """Replace a module's forward by a graph. Its class, names and other methods stay."""
    required = [node.target for node in graph.graph.find_nodes(op="placeholder")]
    # Past the module's __setattr__, which would give the parameters of the graph new names.
    forward = functools.partial(_run, module, graph, required)
    object.__setattr__(module, "forward", forward)
