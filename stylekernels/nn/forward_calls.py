"""Modules whose methods call a norm and then an activation, as in ``self.act(self.norm(x))``: the
same source with the two calls as one."""

import ast
import copy
import functools
from typing import NamedTuple

from torch import nn

from stylekernels.nn.layer_calls import LayerCall, layer_call, only_input
from stylekernels.nn.method_source import SCOPES, Method
from stylekernels.nn.output_uses import OutputUses
from stylekernels.nn.pairs import run_pair

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


class _WithoutAnnotations(ast.NodeTransformer):
    """Makes ``y: Tensor = x`` an assignment, which is the same in a function."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and node.value is not None:
            return ast.copy_location(ast.Assign([node.target], node.value), node)
        return node


class _Rewriter(ast.NodeTransformer):
    """Replaces ``self.act(self.norm(x))``, also with a function or a tensor's method, also in two
    statements in a row with one variable, by ``self._run_pair(self.norm, self.act, x)``.

    Args:
        kind: the class.
        method: one of its methods, whose source is changed.
        norms: attributes that are norms.
        pairs: of all methods of the class; those found are added.
        functions: modules that compute what functions do, likewise.
    """

    def __init__(
        self,
        kind: type[nn.Module],
        method: Method,
        norms: frozenset[str],
        pairs: list[Pair],
        functions: list[nn.Module],
    ) -> None:
        self.kind, self.method, self.norms = kind, method, norms
        self.pairs, self.functions = pairs, functions
        code = method.function.__code__
        # Variables that other functions see, or that outlive an exception, stay as they are.
        self.shared = {*code.co_cellvars, *code.co_freevars}
        kinds = {type(node).__name__ for node in ast.walk(method.tree)}
        self.tries = not kinds.isdisjoint({"Try", "TryStar"})  # the latter since Python 3.11
        method.tree.body = self.visit_block(_WithoutAnnotations().visit(method.tree).body)

    def _norm_call(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or only_input(node) is None:
            return False
        return self.method.attribute(node.func) in self.norms

    def _layer_call(self, node: ast.AST) -> LayerCall | None:
        return layer_call(self.kind, self.method, node)

    def _pair(self, call: ast.Call, layer: str | nn.Module, norm: ast.Call) -> ast.Call:
        """Return the one call for a layer's call with the result of a norm's."""
        self.pairs.append(Pair(self.method.attribute(norm.func), layer))
        activation = call.func
        if not isinstance(layer, str):
            source = f"{self.method.myself}.fused_functions[{len(self.functions)}]"
            activation = ast.parse(source, mode="eval").body
            self.functions.append(layer)
        run = ast.parse(f"{self.method.myself}._run_pair", mode="eval").body
        return ast.Call(run, [norm.func, activation, only_input(norm)], [])

    def visit(self, node: ast.AST) -> ast.AST:
        """Rewrite a node, but for functions and classes inside of the method."""
        return node if isinstance(node, SCOPES) else super().visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        found = self._layer_call(node)
        if found is not None and self._norm_call(found.value):
            return self._pair(node, found.layer, found.value)
        return node

    def _ends_in_norm(self, block: list[ast.stmt], target: str) -> bool:
        """Return whether a norm's result is assigned at the end of a block, or of one in it."""
        match block:
            case [*_, ast.Assign([ast.Name(name)], value)]:
                return name == target and self._norm_call(value)
            case [*_, ast.If(_, body, orelse)]:
                return any(self._ends_in_norm(each, target) for each in (body, orelse))
        return False

    def _activated(self, statement: ast.stmt) -> tuple[str, str | nn.Module] | None:
        """Return y and the layer of ``y = act(y)``, ``return act(y)`` or ``y.relu_()``."""
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
        if isinstance(statement, ast.Expr) and not _in_place(call, found.layer):
            return None
        read = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(call))
        alone = read == 1 and target in (None, name) and name not in self.shared
        return (name, found.layer) if alone and not self.tries else None

    def _activated_if(self, statement: ast.stmt) -> str | None:
        """Return y of an ``if`` with ``y = act(y)`` or the like at the beginning of a branch, and a
        condition that may be read before y is set."""
        match statement:
            case ast.If(test, body, orelse):
                found = [self._activated(block[0]) for block in (body, orelse) if block]
                names = [each[0] for each in found if each is not None]
                return names[0] if names and _only_reads(test, names[0]) else None
        return None

    def _moved(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Bring ``y = self.norm(x)`` and ``y = act(y)`` together. The latter moves from behind an
        ``if`` to the end of each of its branches, where one of them ends in the former. The former
        moves into the branches of an ``if`` where one of them begins with the latter."""
        done: list[ast.stmt] = []
        for statement in statements:
            activated = self._activated(statement)
            under = self._activated_if(statement)
            name = activated[0] if activated else under
            before = done[-1] if done else None
            if name is None or not self._ends_in_norm([before], name):
                done.append(statement)
            elif isinstance(before, ast.If):
                before.body.append(statement)
                before.orelse.append(copy.deepcopy(statement))
            elif under:
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
                        pair = self._pair(statement.value, activated[1], norm)
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


def _in_place(call: ast.Call, layer: str | nn.Module) -> bool:
    """Return whether the call of an activation changes its argument, whatever the object is."""
    name = ast.unparse(call.func)
    by_name = name.endswith("_") and not name.endswith("__")
    return not isinstance(layer, str) and (by_name or getattr(layer, "inplace", False))


def _only_reads(test: ast.expr, name: str) -> bool:
    """Return whether a condition reads variables and attributes only, and not one variable."""
    for node in ast.walk(test):
        match node:
            case ast.Name(variable):
                reads = variable != name
            case ast.Call(ast.Name("hasattr" | "isinstance")):
                reads = True
            case _:
                reads = isinstance(node, _READING)
        if not reads:
            return False
    return True


class _Fusing(nn.Module):
    """Has methods in which calls were made one. The modules themselves do not change."""

    _run_pair = staticmethod(run_pair)

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (type(self).unfused, type(self).fused_norms), *state


class Fusion(NamedTuple):
    """What becomes of a class.

    Attributes:
        kind: its subclass whose methods call norms together with their activations; the class
            itself if there are no pairs. The subclass knows the class as ``unfused``.
        pairs: what is called together.
        uses: the uses of the outputs of its other calls.
    """

    kind: type[nn.Module]
    pairs: tuple[Pair, ...]
    uses: OutputUses


@functools.cache
def fusing(kind: type[nn.Module], norms: frozenset[str]) -> Fusion:
    """Return what becomes of a class with norms as attributes of these names."""
    kind = kind.unfused if issubclass(kind, _Fusing) else kind
    uses = OutputUses(kind)
    pairs, functions, rewritten = [], [], {}
    for name in uses.mentioning(*norms):
        method, before = uses.source(name), len(pairs)
        if isinstance(method, Method):
            _Rewriter(kind, method, norms, pairs, functions)
            if len(pairs) > before:
                rewritten[name] = method.compiled()
    if not pairs:
        return Fusion(kind, (), uses)
    members = {
        "__module__": kind.__module__,
        **rewritten,
        "unfused": kind,
        "fused_norms": norms,
        "fused_functions": tuple(functions),
    }
    made = type(f"Fusing{kind.__name__}", (_Fusing, kind), members)
    return Fusion(made, tuple(pairs), uses)


def _new(kind: type[nn.Module], norms: frozenset[str]) -> nn.Module:
    """Return an empty object for pickle or copy to fill."""
    made = fusing(kind, norms).kind
    return made.__new__(made)
