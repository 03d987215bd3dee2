"""Modules whose methods call a norm and then an activation, as in ``self.act(self.norm(x))``: the
same source with the two calls as one."""

import ast
import copy
import functools
import inspect
import types
from typing import NamedTuple

from torch import nn

from stylekernels.nn.derived import Derived, derive, origin
from stylekernels.nn.layer_calls import LayerCall, layer_call, only_input
from stylekernels.nn.method_source import SCOPES, Method, methods
from stylekernels.nn.output_uses import OutputUses
from stylekernels.nn.pairs import can_pair, run_pair

# Names that methods call these by. Classes of others have no such attributes.
_RUN_PAIR, _CAN_PAIR = "_stylekernels_run_pair", "_stylekernels_can_pair"

#: What a condition that only reads is made of.
_READING = (
    ast.Attribute
    | ast.Constant
    | ast.Compare
    | ast.BoolOp
    | ast.UnaryOp
    | ast.cmpop
    | ast.boolop
    | ast.unaryop
    | ast.expr_context
)


class Pair(NamedTuple):
    """A norm and what is called with its result: an attribute's name, or a module that computes
    what the function does that is called."""

    norm: str
    activation: str | nn.Module


class _Rewriter(ast.NodeTransformer):
    """Replaces ``self.act(self.norm(x))``, also with a function or a tensor's method, also in two
    statements in a row with one variable, by a call of `run_pair`. Its arguments are in the order
    in which the two calls read theirs.

    Args:
        kind: the class.
        method: one of its methods, whose source is changed.
        norms: attributes that are norms.
        pairs: of all methods of the class; those found are added.
    """

    def __init__(
        self,
        kind: type[nn.Module],
        method: Method,
        norms: frozenset[str],
        pairs: list[Pair],
    ) -> None:
        self.kind, self.method, self.norms, self.pairs = kind, method, norms, pairs
        code = method.function.__code__
        # Variables that other functions see, or that outlive an exception, stay as they are.
        self.shared = {*code.co_cellvars, *code.co_freevars}
        nodes = list(ast.walk(method.tree))
        self.shared.update(*(node.names for node in nodes if isinstance(node, ast.Global)))
        kinds = {type(node).__name__ for node in nodes}
        self.stops_early = not kinds.isdisjoint({"Try", "TryStar"})  # the latter since Python 3.11
        method.tree.body = self.visit_block(method.tree.body)

    def _norm_call(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or only_input(node) is None:
            return False
        return self.method.attribute(node.func) in self.norms

    def _layer_call(self, node: ast.AST) -> LayerCall | None:
        found = layer_call(self.kind, self.method, node)
        return None if found is None or found.layer in self.norms else found

    def _pair(self, found: LayerCall, norm: ast.Call, *, apart: bool = False) -> ast.Call:
        """Return the one call for a layer's call with the result of a norm's; ``apart``: of the
        statement before."""
        self.pairs.append(Pair(self.method.attribute(norm.func), found.layer))
        first = [ast.keyword("norm", norm.func), ast.keyword("x", only_input(norm))]
        activation = ast.keyword("activation", found.callee)
        given = [*first, activation] if apart else [activation, *first]
        if found.args:
            given.append(ast.keyword("args", ast.Tuple(list(found.args), ast.Load())))
        if found.options:
            names = [word.arg and ast.Constant(word.arg) for word in found.options]
            values = [word.value for word in found.options]
            given.append(ast.keyword("options", ast.Dict(names, values)))
        return ast.Call(_own(self.method, _RUN_PAIR), [], given)

    def visit(self, node: ast.AST) -> ast.AST:
        """Rewrite a node, but for functions and classes inside of the method."""
        return node if isinstance(node, SCOPES) else super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        found = self._layer_call(node)
        if found is not None and self._norm_call(found.value):
            return self._pair(found, found.value)
        return node

    def _ends_in_norm(self, block: list[ast.stmt], target: str) -> bool:
        """Return whether a norm's result is assigned at the end of a block, or of one in it."""
        match block:
            case [*_, ast.Assign([ast.Name(name)], value)]:
                return name == target and self._norm_call(value)
            case [*_, ast.If(_, body, orelse)]:
                return any(self._ends_in_norm(each, target) for each in (body, orelse))
        return False

    def _activated(self, statement: ast.stmt) -> tuple[str, LayerCall] | None:
        """Return y and the call of ``y = act(y)``, ``return act(y)`` or ``y.relu_()``."""
        match statement:
            case ast.Assign([ast.Name(target)], call):
                pass
            case ast.Return(call) | ast.Expr(call):
                target = None
            case _:
                return None
        found = self._layer_call(call)
        if found is None or not isinstance(found.value, ast.Name):
            return None
        name = found.value.id
        if isinstance(statement, ast.Expr) and not found.in_place:
            return None
        read = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(call))
        alone = read == 1 and target in (None, name) and name not in self.shared
        return (name, found) if alone and not self.stops_early else None

    def _activated_in(self, statement: ast.stmt) -> list[str]:
        """Return y of the branches of an ``if`` that begin with ``y = act(y)`` or the like."""
        match statement:
            case ast.If(_, body, orelse):
                found = [self._activated(block[0]) for block in (body, orelse) if block]
                return [each[0] for each in found if each is not None]
        return []

    def _is_early(self, test: ast.expr, before: ast.stmt) -> bool:
        """Return whether a condition may be read before ``y = self.norm(x)``: both only read
        variables and attributes, and the condition neither y nor the norm."""
        match before:
            case ast.Assign([ast.Name(y)], ast.Call(norm) as call) if self._norm_call(call):
                input_only = isinstance(only_input(call), ast.Name)
                return input_only and self._only_reads(test, y, ast.dump(norm))
        return False

    def _only_reads(self, test: ast.expr, name: str, norm: str) -> bool:
        """Return whether a condition reads variables and attributes only, but not one variable and
        not the norm."""
        for node in ast.walk(test):
            match node:
                case ast.Name(variable):
                    reads = variable != name
                case ast.Attribute(attr=attribute):
                    member = inspect.getattr_static(self.kind, attribute, None)
                    reads = not isinstance(member, property) and ast.dump(node) != norm
                case ast.Call(ast.Name("hasattr" | "isinstance")):
                    reads = True
                case _:
                    reads = isinstance(node, _READING)
            if not reads:
                return False
        return True

    def _moved(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Bring ``y = self.norm(x)`` and ``y = act(y)`` together. The latter moves from behind an
        ``if`` to the end of each of its branches, where one of them ends in the former. The former
        moves into the branches of an ``if`` where one of them begins with the latter, unless the
        norm has hooks or the like at the time of the call: these may change the condition."""
        done: list[ast.stmt] = []
        for statement in statements:
            before = done[-1] if done else None
            activated = self._activated(statement)
            names = self._activated_in(statement) if activated is None else [activated[0]]
            if not any(self._ends_in_norm([before], name) for name in names):
                done.append(statement)
            elif isinstance(before, ast.If):
                before.body.append(statement)
                before.orelse.append(copy.deepcopy(statement))
                if hasattr(before, "unmoved"):
                    before.unmoved.append(copy.deepcopy(statement))
            elif activated is None and self._is_early(statement.test, before):
                statement.unmoved = copy.deepcopy([before, statement])
                statement.body.insert(0, before)
                statement.orelse.insert(0, copy.deepcopy(before))
                done[-1] = statement
            else:
                done.append(statement)
        return done

    def visit_block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Rewrite ``y = self.norm(x)`` and a following ``y = self.act(y)``, ``return self.act(y)``
        or ``y.relu_()``."""
        done: list[ast.stmt] = []
        for statement in map(self.visit, self._moved(statements)):
            activated = self._activated(statement)
            match done[-1] if done else None:
                case ast.Assign([ast.Name(y)], norm) if activated and activated[0] == y:
                    if self._norm_call(norm):
                        pair = self._pair(activated[1], norm, apart=True)
                        if isinstance(statement, ast.Expr):
                            statement = done[-1]
                        statement.value = pair
                        done.pop()
            done.append(statement)
        return done

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self.visit_block(value))
            elif isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _own(method: Method, name: str) -> ast.expr:
    """Return ``self.name``."""
    return ast.parse(f"{method.myself}.{name}", mode="eval").body


class _Fusing(Derived):
    """Has methods in which calls were made one. The modules themselves do not change."""


class _Guard(ast.NodeTransformer):
    """Makes each ``if`` into which a norm's call was moved a branch, beside the statements as they
    were, for a norm that cannot be one op with an activation at the time of the call."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if not hasattr(node, "unmoved"):
            return node
        norm = node.unmoved[0].value.func
        return ast.If(ast.Call(_own(self.method, _CAN_PAIR), [norm], []), [node], node.unmoved)


class Fusion(NamedTuple):
    """Outcome of `fusing` for a class.

    Attributes:
        kind: its subclass whose methods call norms together with their activations; the class
            itself if there are no pairs.
        pairs: what is called together.
        uses: the uses of the outputs of its other calls.
    """

    kind: type[nn.Module]
    pairs: tuple[Pair, ...]
    uses: OutputUses


def fusing(kind: type[nn.Module], norms: frozenset[str]) -> Fusion:
    """Return what becomes of a class with norms as attributes of these names."""
    kind = origin(kind)
    return _fusing(kind, norms, tuple(function for _, function, *_ in methods(kind)))


@functools.cache
def _fusing(
    kind: type[nn.Module], norms: frozenset[str], _methods: tuple[types.FunctionType, ...]
) -> Fusion:
    """Return the `Fusion` of a class with these methods: they may be replaced."""
    uses = OutputUses(kind)
    pairs, rewritten = [], {}
    for name in uses.mentioning(*norms):
        method, before = uses.source(name), len(pairs)
        if isinstance(method, Method):
            _Rewriter(kind, method, norms, pairs)
            if len(pairs) > before:
                guarded = method._replace(tree=_Guard(method).visit(copy.deepcopy(method.tree)))
                rewritten[name] = guarded.compiled()
    if not pairs:
        return Fusion(kind, (), uses)
    members = {_RUN_PAIR: staticmethod(run_pair), _CAN_PAIR: staticmethod(can_pair), **rewritten}
    made = derive(f"Fusing{kind.__name__}", _Fusing, kind, _fusing_class, norms, **members)
    return Fusion(made, tuple(pairs), uses)


def _fusing_class(kind: type[nn.Module], norms: frozenset[str]) -> type[nn.Module]:
    """Return the class that `fusing` makes; pickle and copy call this."""
    return fusing(kind, norms).kind
