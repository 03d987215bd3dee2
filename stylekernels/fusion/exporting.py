"""Graphs of modules, by `torch.export`, for calls like an example."""

import copy
import operator
from collections import defaultdict

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stylekernels.fusion.tracing import CannotTrace, Traced, copied, is_layer, line_of
from stylekernels.nn.pairs import has_hooks

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


def examples_of(model: nn.Module, args: tuple, kwargs: dict) -> dict[str, tuple[tuple, dict]]:
    """Return the arguments of the first call of each module around others, by its name, when a
    model is called with an example."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    called, found = copy.deepcopy(model, shared), {}
    for name, module in called.named_modules():
        if list(module.children()):

            def record(_, args: tuple, kwargs: dict, name: str = name) -> None:
                found.setdefault(name, (args, kwargs))

            module.register_forward_pre_hook(record, with_kwargs=True)
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    with torch.no_grad():
        called(*args, **kwargs)
    return found


class LikeExample:
    """Calls for which the graph of an example is right: the same nesting of arguments, the same
    numbers, strings and so on in it, and tensors of the same dtypes on the same devices, whose
    sizes meet the conditions that the module's code had on them.

    Args:
        leaves: tensors and other values of the example.
        nesting: that of positional arguments and those by name.
        names: those of the latter, in the order of leaves.
        results: the nesting of what the module returns.
        conditions: computes from leaves whether each condition on sizes is met.
    """

    def __init__(
        self,
        leaves: list,
        nesting: pytree.TreeSpec,
        names: list[str],
        results: pytree.TreeSpec,
        conditions: fx.GraphModule,
    ) -> None:
        self._facts = [_facts(leaf) for leaf in leaves]
        self._nesting, self._names, self._results = nesting, names, results
        self._conditions = conditions

    def tensors(self, args: tuple, options: dict) -> list[Tensor] | None:
        """Return the arguments of the graph; None if a call is another one."""
        if options.keys() != set(self._names):
            return None
        options = {name: options[name] for name in self._names}
        leaves, nesting = pytree.tree_flatten((args, options))
        if nesting != self._nesting or [_facts(leaf) for leaf in leaves] != self._facts:
            return None
        if not all(self._conditions(*leaves)):
            return None
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def result(self, values: tuple) -> object:
        """Return what the module returns."""
        return pytree.tree_unflatten(values, self._results)

    def __getstate__(self) -> dict[str, object]:
        """Keep the nesting in files and copies as values in it: PyTorch warns of its own class."""
        nested = {
            name: pytree.tree_unflatten(range(spec.num_leaves), spec)
            for name, spec in vars(self).items()
            if isinstance(spec, pytree.TreeSpec)
        }
        return vars(self) | nested

    def __setstate__(self, state: dict[str, object]) -> None:
        nested = {name: pytree.tree_structure(state[name]) for name in ("_nesting", "_results")}
        vars(self).update(state | nested)


def _facts(leaf: object) -> tuple:
    """Return what a graph takes for granted about an argument, besides conditions on sizes. A size
    of 1 stays 1, and the graph for a larger one is not for 1, since `torch.export` decides such
    comparisons silently."""
    if isinstance(leaf, Tensor):
        return Tensor, leaf.dtype, leaf.device, tuple(min(size, 2) for size in leaf.shape)
    return type(leaf), leaf


def exported(module: nn.Module, args: tuple, options: dict) -> Traced:
    """Return the graph of a module for calls like an example.

    Layers are calls of modules in it, as in a graph of `torch.fx`; other calls are those of ATen's
    ops that have no equal in `torch.nn.functional`.

    Raises:
        CannotTrace: if there is no such graph.
    """
    if any(map(has_hooks, module.modules())):
        raise CannotTrace("a module has hooks")
    leaves, nesting = pytree.tree_flatten((args, options))
    free = ShapesCollection()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            free[leaf] = {axis: Dim.AUTO for axis, size in enumerate(leaf.shape) if size > 1}
    try:
        with torch.no_grad():
            program = torch.export.export(copied(module), args, options, dynamic_shapes=free)
        flat = program.module()
        conditions = _conditions_of(flat)
        if program.call_spec.in_spec != nesting:
            raise CannotTrace("torch.export gives its arguments another order")
        if not all(conditions(*leaves)):
            raise CannotTrace("its conditions on sizes are too involved")
        graph = fx.Graph()  # of no module yet, with arguments and results in a row
        graph.output(graph.graph_copy(flat.graph, {}))
        _keep_tensors(graph)
        _restore_layers(graph, module)
    except CannotTrace:
        raise
    except Exception as error:  # of the module's own code as well
        raise CannotTrace(line_of(error)) from error
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
                "its forward makes a constant tensor, or changes autocast or gradients inside"
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
