"""Graphs of modules, by `torch.export`, for calls like an example."""

import contextlib
import io
import logging
import operator
import warnings
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stylekernels.fusion.examples import LikeExample
from stylekernels.fusion.tracing import (
    CannotTrace,
    Traced,
    check_hooks,
    is_layer,
    plain_copy,
    reason_of,
)

_ATEN = torch.ops.aten
#: What `fusion.inputs` and `fusion.geometry` know these ops as.
_FUNCTIONS = {
    _ATEN.add.Tensor: torch.add,
    _ATEN.sub.Tensor: operator.sub,
    _ATEN.mul.Tensor: operator.mul,
    _ATEN.cat.default: torch.cat,
    _ATEN.relu.default: F.relu,
    _ATEN.leaky_relu.default: F.leaky_relu,
    _ATEN.tanh.default: torch.tanh,
    _ATEN.sigmoid.default: torch.sigmoid,
    _ATEN.silu.default: F.silu,
    _ATEN.gelu.default: F.gelu,
    _ATEN.pad.default: F.pad,
    _ATEN.upsample_nearest2d.vec: F.interpolate,
}
_IN_PLACE = {
    _ATEN.relu_.default: F.relu,
    _ATEN.leaky_relu_.default: F.leaky_relu,
    _ATEN.silu_.default: F.silu,
}
_METHODS = {_ATEN.add_.Tensor: "add_", _ATEN.view.default: "view"}


#: Where `torch.export` logs what it also raises.
_LOGS = ("torch.export._trace", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings, logs and the graph that `torch.export` prints when it fails from the user:
    the report has the reason."""
    loggers = [logging.getLogger(name) for name in _LOGS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def exported(module: nn.Module, args: tuple, options: dict) -> Traced:
    """Return the graph of a module for calls like an example.

    Layers are calls of modules in it, as in a graph of `torch.fx`; other calls are those of ATen's
    ops that have no equal in `torch.nn.functional`.

    Raises:
        CannotTrace: if there is no such graph.
    """
    check_hooks(module.named_modules())
    plain = plain_copy(module)
    leaves, nesting = pytree.tree_flatten((args, options))
    free = ShapesCollection()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            free[leaf] = {axis: Dim.AUTO for axis, size in enumerate(leaf.shape) if size > 1}
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(plain, args, options, dynamic_shapes=free)
        flat = program.module()
        conditions = _conditions_of(flat)
        if program.call_spec.in_spec != nesting:
            raise CannotTrace("torch.export gives its arguments another order")
        if not all(conditions(*leaves)):
            raise CannotTrace("its conditions on sizes are too involved")
        graph = fx.Graph()  # of no module yet, with arguments and results in a row
        graph.output(graph.graph_copy(flat.graph, {}))
        _keep_tensors(graph)
        _restore_layers(graph, plain)
    except CannotTrace:
        raise
    except Exception as error:  # of the module's own code as well
        raise CannotTrace(reason_of(error, module)) from error
    _check_attributes(graph, module)
    for node in graph.nodes:
        _translate(node)
        node.meta.clear()  # of tensors without data
    arguments = LikeExample(leaves, nesting, list(options), program.call_spec.out_spec, conditions)
    how = "by torch.export, for calls like the example"
    if any(isinstance(leaf, Tensor) and 1 in leaf.shape for leaf in leaves):
        how += ", where a size of 1 stays 1"
    return Traced(graph, arguments, how)


class _Conditions(fx.proxy.GraphAppendingTracer):
    """Takes conditions on which Python's code depends, as in ``a and b`` and ``max(a, b)``, for
    true, and keeps them."""

    def __init__(self) -> None:
        super().__init__(fx.Graph())
        self.found: list[fx.Node] = []

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.found.append(obj.node)
        return True


def _conditions_of(program: fx.GraphModule) -> fx.GraphModule:
    """Take the check of sizes out of a program, and return a module that computes its conditions
    from the arguments in a row."""
    checks = program.graph.find_nodes(op="call_module")
    if len(checks) != 1:
        raise CannotTrace("this version of PyTorch does not export the conditions on sizes")
    (check,) = checks
    conditions = _Conditions()
    graph = conditions.graph
    given = [fx.Proxy(graph.placeholder(node.name), conditions) for node in check.args]
    program.get_submodule(check.target)(*given)
    program.graph.erase_node(check)
    for node in graph.find_nodes(op="call_function", target=torch._assert):
        conditions.found.append(node.args[0])
        graph.erase_node(node)
    graph.output(tuple(conditions.found))
    return fx.GraphModule(nn.Module(), graph)


def _keep_tensors(graph: fx.Graph) -> None:
    """Erase the arguments that are no tensors, which are constants in the graph."""
    for node in graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta["val"], Tensor):
            graph.erase_node(node)


def _restore_layers(graph: fx.Graph, root: nn.Module) -> None:
    """Replace the ops of each call of a layer by the call, if it takes and returns one tensor."""
    modules = dict(root.named_modules(remove_duplicate=False))
    calls = defaultdict(list)
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack", {}) if node.op == "call_function" else {}
        for call, (path, _) in stack.items():
            if path and path in modules and is_layer(modules[path], path):
                calls[call, path].append(node)
                break
    for (_, path), nodes in calls.items():
        inside = set(nodes)
        given = {each for node in nodes for each in node.all_input_nodes if each.op != "get_attr"}
        given -= inside
        results = [node for node in nodes if node.users.keys() - inside]
        if len(given) != 1 or results != nodes[-1:]:
            continue
        with graph.inserting_after(nodes[-1]):
            layer = graph.call_module(path, tuple(given))
        nodes[-1].replace_all_uses_with(layer)
        for node in reversed(nodes):
            graph.erase_node(node)


def _check_attributes(graph: fx.Graph, root: nn.Module) -> None:
    """Erase attributes without a use, and refuse those that are not the module's: the graph has
    made them."""
    known = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in root.named_buffers(remove_duplicate=False)}
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
        elif node.target not in known:
            raise CannotTrace(
                "its forward makes a constant tensor, which can be a buffer, or it changes "
                "autocast or gradients inside"
            )


def _translate(node: fx.Node) -> None:
    """Give an op of ATen the name that is known for it in graphs of `torch.fx`."""
    if node.target in _METHODS:
        node.op, node.target = "call_method", _METHODS[node.target]
    elif node.target in _IN_PLACE:
        node.kwargs = {**node.kwargs, "inplace": True}
        node.target = _IN_PLACE[node.target]
    else:
        node.target = _FUNCTIONS.get(node.target, node.target)
