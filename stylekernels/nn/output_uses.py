"""Uses of the outputs of layers in a class's methods, read in their sources."""

import ast
import types
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from stylekernels.nn.layer_calls import is_layer, layer_call
from stylekernels.nn.method_source import SCOPES, Method, methods, names_in, read, wrapped
from stylekernels.nn.pairs import NO_LAYER
from stylekernels.nn.variable_reads import loads, reads_of

_OPERATORS = {
    ast.Add: "an addition",
    ast.Sub: "a subtraction",
    ast.Mult: "a multiplication",
    ast.Div: "a division",
}
#: Attributes and methods of a tensor that do not read its values.
_UNREAD = {"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"}
_UNREAD |= {"size", "dim", "numel", "stride", "is_contiguous"}
#: Functions of Python that do not read a tensor's values, or only write them out.
_UNREAD_BY = (callable, format, hasattr, id, isinstance, len, print, repr, str, type)
#: Functions of Python that compute something else of a tensor.
_COMPUTING = (abs, bool, float, int, pow, round, sum)
_NOT_REWRITTEN = "in a form that is not rewritten; write self.act(self.norm(x))"


class Use(NamedTuple):
    """Something done with a layer's output.

    Attributes:
        text: what, for the report; if it is an activation, why it is not one op with the norm.
        layer: an attribute that is called with the output, or a module that computes what is.
        seen: whether it is known what is done.
        returned: whether ``forward`` returns the output.
    """

    text: str
    layer: str | nn.Module | None = None
    seen: bool = True
    returned: bool = False


class _Flow:
    """Data flow of one method: the uses of a value, through variables."""

    def __init__(self, kind: type[nn.Module], method: Method) -> None:
        self.kind, self.method = kind, method
        self.parents: dict[ast.AST, ast.AST] = {}
        self.places: dict[ast.AST, tuple[list[ast.stmt], int]] = {}  # of statements
        self.outer: dict[str, str] = {}  # variables that are global or nonlocal, and which of both
        for node in ast.walk(method.tree):
            if isinstance(node, ast.Global | ast.Nonlocal):
                self.outer.update(dict.fromkeys(node.names, type(node).__name__.lower()))
            for _, value in ast.iter_fields(node):
                if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                    self.places.update((each, (value, i)) for i, each in enumerate(value))
            self.parents.update((child, node) for child in ast.iter_child_nodes(node))

    def _statement(self, node: ast.AST) -> ast.stmt:
        while node not in self.places:
            node = self.parents[node]
        return node

    def nested(self, node: ast.AST) -> bool:
        """Return whether a node is in a function inside of the method."""
        while not isinstance(node, SCOPES):
            node = self.parents[node]
        return node is not self.method.tree

    def passes_on(self, name: str) -> bool:
        """Return whether an attribute is read other than to call it, for its attributes or in a
        condition."""
        return any(
            self.method.attribute(node) == name
            and isinstance(node.ctx, ast.Load)
            and not self._is_plain_read(node)
            for node in self.parents
        )

    def _is_plain_read(self, node: ast.expr) -> bool:
        parent = self.parents[node]
        while isinstance(parent, ast.BoolOp | ast.UnaryOp):
            node, parent = parent, self.parents[parent]
        match parent:
            case ast.Attribute() | ast.Compare() | ast.keyword("norm"):  # of a call of run_pair
                return True
            case ast.Call(func):
                asks = isinstance(func, ast.Name) and func.id in {f.__name__ for f in _UNREAD_BY}
                return func is node or asks
            case ast.If(test) | ast.While(test) | ast.IfExp(test):
                return test is node
        return False

    def uses(self, node: ast.expr) -> list[Use]:
        """Return what is done with the value of a node."""
        reads = list(self._reads(node, set()))
        found = []
        for expression, direct in reads:
            use = self._use(expression)
            if use is not None and use.layer is not None:
                if len(reads) > 1:
                    use = use._replace(text="but its output is read elsewhere too")
                elif not direct:
                    use = use._replace(text="after other statements; call it right after the norm")
            found += [] if use is None else [use]
        return found

    def _reads(self, node: ast.expr, seen: set[ast.AST]) -> Iterator[tuple[ast.expr, bool]]:
        """Yield the expressions that read a value, through conditional expressions, ``and`` and
        ``or``, and variables, and whether each is read in the same statement or the next one."""
        if node in seen:
            return
        seen.add(node)
        parent = self.parents[node]
        match parent:
            case ast.IfExp(test) if node is not test:
                yield from self._reads(parent, seen)
            case ast.BoolOp(values=[*_, last]) if node is last:
                yield from self._reads(parent, seen)
            case ast.NamedExpr(target):
                yield from self._reads(parent, seen)
                yield from self._variable(target, parent, seen)
            case ast.Assign(targets) if all(isinstance(each, ast.Name) for each in targets):
                for target in targets:
                    yield from self._variable(target, parent, seen)
            case ast.Tuple(values) if self._unpacked(parent) is not None:
                target = self._unpacked(parent)[values.index(node)]
                yield from self._variable(target, self.parents[parent], seen)
            case ast.Expr() | ast.FormattedValue():
                pass
            case ast.Compare(_, [ast.Is() | ast.IsNot()]):
                pass
            case ast.Attribute(attr=name) if name in _UNREAD:
                pass
            case _:
                yield node, True

    def _unpacked(self, values: ast.Tuple) -> list[ast.Name] | None:
        """Return the variables that ``a, b = values`` sets one by one."""
        match self.parents[values]:
            case ast.Assign([ast.Tuple(targets)]) if len(targets) == len(values.elts):
                return targets if all(isinstance(each, ast.Name) for each in targets) else None
        return None

    def _variable(
        self, target: ast.Name, node: ast.AST, seen: set[ast.AST]
    ) -> Iterator[tuple[ast.expr, bool]]:
        """Yield the reads of a variable that a node sets, and the variable itself if it may be read
        outside of the method."""
        if target.id in self.outer or self.nested(target):
            yield target, True
        block, index = self.places[self._statement(node)]
        following = block[index + 1 : index + 2]
        everywhere = loads(target.id, self.parents)
        found = reads_of(self.method, target.id, node) + list(filter(self.nested, everywhere))
        for load in dict.fromkeys(found):
            near = self._statement(load) in following
            for each, direct in self._reads(load, seen):
                yield each, direct and near

    def _use(self, node: ast.expr) -> Use | None:
        """Return what is done with a value where it is read."""
        label, parent = self.method.label, self.parents[node]
        if self.nested(node):
            return Use(f"a function inside of {label} reads its output", seen=False)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in self.outer:
            return Use(f"{label} stores its output as {self.outer[node.id]} {node.id}", seen=False)
        if isinstance(parent, ast.keyword):
            parent = self.parents[parent]
        if isinstance(parent, ast.Attribute):
            layer = layer_call(self.kind, self.method, self.parents[parent])
            if layer is not None:
                return Use(_NOT_REWRITTEN, layer.layer)
            known = hasattr(torch.Tensor, parent.attr)
            return Use(f"`.{parent.attr}` follows it", seen=known)
        if isinstance(parent, ast.Call) and node is not parent.func:
            layer = layer_call(self.kind, self.method, parent)
            if layer is not None and layer.value is node:
                return Use(_NOT_REWRITTEN, layer.layer)
            return self._call(parent)
        if isinstance(parent, ast.Tuple | ast.List | ast.Dict | ast.Set):
            outer = self.parents[parent]
            if isinstance(outer, ast.Call):
                return self._call(outer)
            if isinstance(outer, ast.Return):
                return Use(f"{label} returns it with other values", seen=False)
            kind = type(parent).__name__.lower()
            return Use(f"{label} puts its output into a {kind}", seen=False)
        match parent:
            case ast.Return():
                return Use(f"{label} returns its output", returned=True)
            case ast.BinOp(op=operator) | ast.AugAssign(op=operator):
                return Use(f"{_OPERATORS.get(type(operator), 'an operator')} follows it")
            case ast.UnaryOp() | ast.BoolOp() | ast.Compare():
                return Use("an operator follows it")
            case ast.Subscript():
                return Use("indexing follows it")
            case ast.Assign([target]):
                return Use(f"{label} stores its output as {ast.unparse(target)}", seen=False)
        return Use(f"what {label} does with its output cannot be followed", seen=False)

    def _call(self, call: ast.Call) -> Use | None:
        """Return the use of a value that is an argument of a call, and no activation's input."""
        name = ast.unparse(call.func)
        attribute = self.method.attribute(call.func)
        if attribute is not None and is_layer(self.kind, attribute):
            return Use(_NOT_REWRITTEN, attribute)
        try:
            function = self.method.value(call.func)
        except LookupError:
            function = None
        error = isinstance(function, type) and issubclass(function, Exception)
        if error or any(function is each for each in _UNREAD_BY):
            return None
        if _is_of_pytorch(function) or any(function is each for each in _COMPUTING):
            return Use(f"{name} follows it")
        return Use(f"`{name}(...)` follows it, and what it computes is not known", seen=False)


def _is_of_pytorch(function: object) -> bool:
    """Return whether PyTorch has a function under the function's own name."""
    name = getattr(function, "__name__", None)
    return name is not None and any(vars(each).get(name) is function for each in (torch, F))


def _wraps(function: types.FunctionType) -> bool:
    """Return whether a function is one that a decorator makes: it stands in the body of a function,
    and uses variables of that."""
    in_function = function.__qualname__.endswith(f"<locals>.{function.__name__}")
    return in_function and bool(function.__code__.co_freevars)


class OutputUses:
    """The uses of the outputs of a class's layers, by the names of their attributes.

    Args:
        kind: the class.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind
        self._functions: dict[str, tuple[str, types.FunctionType]] = {}
        self._overridden: dict[str, tuple[str, types.FunctionType]] = {}
        for name, function, base, again in methods(kind):
            label = f"{base.__name__}.{name}"
            if again:
                self._overridden[label] = name, function
            else:
                self._functions[name] = label, function
        self._names = {name: names_in(each) for name, (_, each) in self._functions.items()}
        self._sources: dict[str, Method | str] = {}
        self._flows: dict[str, _Flow] = {}

    def source(self, name: str) -> Method | str:
        """Return the source of the method of a name; or why there is none."""
        if name not in self._sources:
            label, function = self._functions[name]
            self._sources[name] = read(function, label)
        return self._sources[name]

    def mentioning(self, *names: str) -> list[str]:
        """Return the methods in which one of some attributes occurs."""
        return [method for method, found in self._names.items() if not found.isdisjoint(names)]

    def of(self, name: str, *, paired: bool, one_input: bool) -> list[Use]:
        """Return the uses of the output of an attribute, but those of calls that are one op with a
        layer's.

        Args:
            name: the attribute.
            paired: whether there are such calls.
            one_input: whether the layer takes one argument: calls with more are of other layers,
                which other objects of the class have.
        """
        found = self._calls(name, {name}, one_input)
        enough = bool(found) or paired  # other methods than forward may be for other purposes
        for method in self.mentioning(name):
            source = self.source(method)
            if enough and method != "forward":
                continue
            if isinstance(source, str):
                found.append(Use(source, seen=False))
            elif self._flow(method).passes_on(name):
                found.append(Use(_passed_on(source), seen=False))
        for label, (method, function) in self._overridden.items():
            by_super = {"super", method} <= self._names.get(method, set())
            counts = by_super and (method == "forward" or not enough)
            if counts and name in names_in(function):
                overriding, _ = self._functions[method]
                found.append(Use(f"{label} calls it, which {overriding} overrides", seen=False))
        return list(dict.fromkeys(found))

    def why_none(self, name: str) -> str:
        """Return why no call of an attribute is found."""
        for method in self._passing_on(name):
            return _passed_on(self.source(method))
        label, forward = self._functions.get("forward", ("", None))
        if forward is not None and _wraps(forward):
            return wrapped(label)
        if forward is not None and isinstance(self.source("forward"), str):
            return self.source("forward")
        return f"{self.kind.__name__} calls it nowhere that can be seen"

    def _passing_on(self, name: str) -> list[str]:
        """Return the methods that read an attribute or method other than to call it."""
        return [
            method
            for method in self.mentioning(name)
            if isinstance(self.source(method), Method) and self._flow(method).passes_on(name)
        ]

    def _is_forward(self, method: str) -> bool:
        """Return whether ``forward`` is a method, under this or another name."""
        _, forward = self._functions.get("forward", ("", None))
        return self._functions[method][1] is forward

    def _flow(self, method: str) -> _Flow:
        if method not in self._flows:
            self._flows[method] = _Flow(self.kind, self.source(method))
        return self._flows[method]

    def _calls(self, name: str, within: set[str], one_input: bool = False) -> list[Use]:
        """Return the uses of what the calls of an attribute or method return."""
        found: list[Use] = []
        for method in self.mentioning(name):
            if isinstance(self.source(method), str):
                continue
            flow = self._flow(method)
            for node in flow.parents:
                if not isinstance(node, ast.Call) or _called(flow.method, node) != name:
                    continue
                if not one_input or len(node.args) + len(node.keywords) == 1:
                    found += self._of_call(flow, node, method, within)
        return found

    def _of_call(self, flow: _Flow, node: ast.Call, method: str, within: set[str]) -> list[Use]:
        label = flow.method.label
        if flow.nested(node):
            why = f"a function inside of {label} calls it; make that a method"
            return [Use(why, seen=False)]
        found = []
        for use in flow.uses(node) or [Use(NO_LAYER)]:
            if not use.returned or method == "forward":
                found.append(use)
            elif method not in within:
                outside = f"but outside of {label}"
                after = [
                    each if each.layer is None else each._replace(text=outside)
                    for each in self._calls(method, within | {method})
                ]
                passing = [self.source(each).label for each in self._passing_on(method)]
                after += [
                    Use(f"{use.text}, and {label} passes {method} on; call it there", seen=False)
                    for label in passing
                ]
                if not after and not self._is_forward(method):
                    unseen = f"{use.text}, and no call of {method} is seen"
                    after = [Use(unseen, seen=False)]
                found += after
        return found


def _passed_on(method: Method) -> str:
    return (
        f"{method.label} passes it on, and where it is called cannot be seen; call it as an "
        "attribute"
    )


def _called(method: Method, call: ast.Call) -> str | None:
    """Return x of a call ``self.x(...)`` or ``super().x(...)``."""
    match call.func:
        case ast.Attribute(ast.Call(ast.Name("super")), name):
            return name
    return method.attribute(call.func)
