"""The graph of a module, with convolutions that normalise their input."""

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn

from stylekernels.conversion import Entry, Report
from stylekernels.fusion.convolve import Convolve
from stylekernels.fusion.geometry import (
    CONVOLUTIONS,
    Geometry,
    geometry_of,
    is_faster,
    why_no_kernel,
    with_padding,
    with_upsampling,
)
from stylekernels.fusion.inputs import NORMS, Calls, Input, takes_planes
from stylekernels.fusion.norms import LikeInput, Normalize, ScaleShift
from stylekernels.fusion.running import let_run
from stylekernels.fusion.tracing import Traced

_OUTPUT, _SCALE_SHIFT, _INPUT = range(3)
_TENSORS = ("weight", "bias", "running_mean", "running_var")


class Rewriting:
    """Rewrites the graph of one module.

    Args:
        root: the module, whose forward is replaced.
        found: its graph, which is changed.
        name: the module's name in the network.
        report: receives what became of each layer.
    """

    def __init__(self, root: nn.Module, found: Traced, name: str, report: Report) -> None:
        self._root, self._prefix, self._report = root, name, report
        self._graph, self._arguments = found.graph, found.arguments
        self._calls = Calls(found.graph, root)
        self._added: list[str] = []  # names of modules

    def run(self) -> None:
        """Let the module run the changed graph."""
        convolutions = {}
        for node in self._graph.nodes:
            module = self._calls.module(node)
            if isinstance(module, CONVOLUTIONS):
                why = why_no_kernel(module)
                if why is None and (len(node.args) != 1 or node.kwargs):
                    why = "it is called with more than its input"
                if why is None:
                    convolutions[node] = module
                else:
                    self._tell(self._report.left, node, why)
        self._tell_of_others()
        feeding = {self._calls.read(self._placed(*each)[0]).x for each in convolutions.items()}
        for node, module in convolutions.items():
            self._fuse(node, module, node in feeding)
        for node in reversed(list(self._graph.nodes)):
            if node.users:  # else it is the output, or part of a call that was replaced
                self._normalize(node)
        self._keep_layouts()
        attributes = self._attributes_as_arguments()
        self._graph.lint()
        fused = fx.GraphModule(self._root, self._graph, type(self._root).__name__)
        for name in self._added:
            delattr(self._root, name)
        let_run(self._root, fused.eval(), self._arguments, attributes, self._prefix)

    def _attributes_as_arguments(self) -> list[str]:
        """Let the graph take parameters and buffers as arguments behind its others, and return
        their names. The graph would keep the tensors of now: a module that is moved or cast gets
        other buffers."""
        readers = self._graph.find_nodes(op="get_attr")
        names = list(dict.fromkeys(node.target for node in readers))
        *_, last = [None, *self._graph.find_nodes(op="placeholder")]
        taken = {node.name for node in self._graph.nodes}
        arguments = {}
        for index, name in enumerate(names):
            argument = f"attribute_{index}"
            while argument in taken:
                argument += "_"
            with self._graph.inserting_after(last):  # None: at the beginning
                last = arguments[name] = self._graph.placeholder(argument)
        for node in readers:
            node.replace_all_uses_with(arguments[node.target])
            self._graph.erase_node(node)
        return names

    def _keep_layouts(self) -> None:
        """Return images in the layout of the first argument, and let views be made of images in
        channels_last."""
        first = next(iter(self._graph.find_nodes(op="placeholder")), None)
        *_, output = self._graph.nodes
        with self._graph.inserting_before(output):
            output.args = fx.map_arg(
                output.args,
                lambda value: self._graph.call_module(self._add(LikeInput()), (value, first)),
            )
        for node in self._graph.nodes:
            if node.op == "call_method" and node.target == "view":
                sizes = not any(isinstance(size, torch.dtype) for size in node.args)
                if sizes and not self._calls.has_visible_changes():
                    node.target = "reshape"

    def _path(self, node: fx.Node) -> str:
        """Return the name in the network of the module that a node calls."""
        return f"{self._prefix}.{node.target}".strip(".")

    def _tell(self, entries: list[Entry], node: fx.Node, why: str) -> None:
        name = self._path(node)
        if all(entry.name != name for entry in entries):
            entries.append(Entry(name, type(self._calls.module(node)).__name__, why))

    def _tell_of_others(self) -> None:
        """Report the layers that no pattern can have."""
        called = {self._calls.module(node): node for node in self._graph.nodes}
        for module, node in called.items():
            why = self._calls.why_no_norm(node) if isinstance(module, NORMS) else None
            if why is not None:
                self._tell(self._report.left, node, why)
        for name, module in self._root.named_modules():
            if isinstance(module, CONVOLUTIONS) and module not in called:
                path = f"{self._prefix}.{name}".strip(".")
                entry = Entry(path, type(module).__name__, "no call of it was found")
                self._report.left.append(entry)

    def _fuse(self, node: fx.Node, conv: nn.Conv2d | nn.ConvTranspose2d, feeds: bool) -> None:
        """Replace a convolution, with what stands before it.

        Args:
            node: the call.
            conv: the module.
            feeds: whether another convolution that is replaced reads the output.
        """
        source, geometry, parts = self._placed(node, conv)
        read = self._calls.read(source)
        if self._is_stale(read, node):
            source, geometry, parts = node.args[0], geometry_of(conv), []
            read = Input(source)
        returns_input = len(source.users) > 1
        if read.residual_first or (
            returns_input and (read.norm is None or not self._is_first(node, source))
        ):
            read, returns_input = Input(source), False
        feeds = feeds and any(map(self._feeds_planes, node.users))
        if read.norm is None and not feeds and not is_faster(geometry, conv):
            self._tell(self._report.left, node, "no norm before it: PyTorch is as fast")
            return
        options = geometry, read.activation, read.negative_slope, returns_input
        module = Convolve(self._path(node), *options)
        name = self._add(module)
        with self._graph.inserting_before(node):
            weight = self._attribute(node, "weight")
            bias = self._attribute(node, "bias")
            scale_shift = self._scale_shift(read)
            call = self._graph.call_module(
                name, (read.x, weight, bias, scale_shift, read.residual, None, None)
            )
            output, given = (
                self._graph.call_function(operator.getitem, (call, index))
                for index in (_OUTPUT, _INPUT)
            )
        self._calls.place |= dict.fromkeys((call, output, given), self._calls.place[node])
        parts += self._named(read)
        if parts:
            why = f"with the {', '.join(reversed(parts))} before it"
        elif feeds:
            why = "takes the statistics for the norm after it"
        else:
            why = "alone: faster than PyTorch's"
        if conv.weight.is_inference():
            why += "; packs its weights at each call: they were made in inference mode"
        self._tell(self._report.fused, node, why)
        self._replace(node, output)
        if returns_input:
            self._replace(source, given)
        else:
            self._graph.erase_node(given)

    def _is_stale(self, read: Input, node: fx.Node) -> bool:
        """Return whether what an input is made of may have changed when a node is called."""
        begins = [each for each in (read.x, read.residual) if each is not None]
        return any(self._calls.is_changed_between(begin, node) for begin in begins)

    def _feeds_planes(self, user: fx.Node) -> bool:
        """Return whether a node is a norm that takes the statistics of each plane."""
        return self._calls.is_norm(user) and takes_planes(self._calls.module(user))

    def _add(self, module: nn.Module) -> str:
        """Add a module to the network, and return its name."""
        number = len(self._added)
        kind = type(module).__name__.lower()
        while hasattr(self._root, name := f"{kind}_{number}"):
            number += 1
        self._root.add_module(name, module)
        self._added.append(name)
        return name

    def _scale_shift(self, read: Input) -> fx.Node | None:
        """Return scale and shift of a norm, from the convolution before it if possible."""
        if read.norm is None:
            return None
        norm = self._calls.module(read.norm)
        tensors = [self._attribute(read.norm, name) for name in _TENSORS]
        producer = read.x.args[0] if read.x.target is operator.getitem else None
        module = producer and self._calls.module(producer)
        if not (isinstance(module, Convolve) and module.next_eps is None and takes_planes(norm)):
            module = ScaleShift(self._path(read.norm), norm)
            return self._graph.call_module(self._add(module), (read.x, *tensors))
        module.next_eps = norm.eps
        weight, bias, *_ = tensors
        for attribute in (weight, bias):
            if attribute is not None:
                producer.prepend(attribute)
        producer.args = (*producer.args[:-2], weight, bias)
        with self._graph.inserting_after(producer):
            return self._graph.call_function(operator.getitem, (producer, _SCALE_SHIFT))

    def _replace(self, node: fx.Node, other: fx.Node) -> None:
        """Use another node in a node's place, and erase what only that node used."""
        node.replace_all_uses_with(other)
        unused = [node]
        while unused:
            node = unused.pop()
            if not node.users and node.op != "placeholder":
                unused += node.all_input_nodes
                self._graph.erase_node(node)

    def _placed(
        self, node: fx.Node, conv: nn.Conv2d | nn.ConvTranspose2d
    ) -> tuple[fx.Node, Geometry, list[str]]:
        """Return the value that a convolution reads before padding and upsampling, the options for
        that, and what was found."""
        source, geometry, parts = node.args[0], geometry_of(conv), []
        for step in (with_padding, with_upsampling):
            source = self._calls.skip_idle(source)
            module = self._calls.module(source)
            changed = step(geometry, source, module) if len(source.users) == 1 else None
            if changed is not None:
                parts.append(_label(source, module))
                source, geometry = source.args[0], changed
        return self._calls.skip_idle(source), geometry, parts

    def _is_first(self, node: fx.Node, source: fx.Node) -> bool:
        """Return whether all other uses of a value come after a convolution that reads it."""
        place = self._calls.place
        return all(
            place[user] >= place[node] or self._leads_to(user, node) for user in source.users
        )

    def _leads_to(self, node: fx.Node, conv: fx.Node) -> bool:
        """Return whether a node is used by a convolution only."""
        while node is not conv and len(node.users) == 1:
            node = next(iter(node.users))
        return node is conv

    def _attribute(self, node: fx.Node, name: str) -> fx.Node | None:
        """Return a parameter or buffer of a module, or None if it has none of that name."""
        if getattr(self._calls.module(node), name, None) is None:
            return None
        return self._graph.get_attr(f"{node.target}.{name}")

    def _normalize(self, node: fx.Node) -> None:
        """Replace a norm, with the activation and the addition after it."""
        read = self._calls.read(node)
        if read.norm is None or self._is_stale(read, node):
            return
        norm = self._calls.module(read.norm)
        if isinstance(norm, nn.BatchNorm2d) and read.activation == "none" and not read.residual:
            return  # PyTorch's is as fast
        with self._graph.inserting_before(node):
            tensors = [self._attribute(read.norm, name) for name in _TENSORS]
            options = (read.activation, read.negative_slope, read.residual_first)
            name = self._add(Normalize(self._path(read.norm), norm, *options))
            call = self._graph.call_module(name, (read.x, *tensors, read.residual))
        parts = list(self._named(read))[-2::-1]
        why = "without a convolution"
        if parts:
            why += f", as one op with the {', '.join(parts)} after it"
        self._tell(self._report.alone, read.norm, why)
        self._replace(node, call)

    def _named(self, read: Input) -> Iterator[str]:
        """Yield what an input consists of, from the last to the first."""
        if read.residual is not None:
            yield "addition"
        if read.activation != "none":
            yield read.activation
        if read.norm is not None:
            yield type(self._calls.module(read.norm)).__name__


def _label(node: fx.Node, module: nn.Module | None) -> str:
    return type(module).__name__ if module is not None else node.target.__name__
