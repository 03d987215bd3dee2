"""Modules whose ``forward`` calls a norm and then an activation, as in ``self.act(self.norm(x))``:
the same source with the two calls as one."""

import ast
import copy
import functools
import inspect
import types
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from stylekernels.nn.pairs import run_pair

#: Functions, and the module of each that computes the same.
FUNCTIONS = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    F.leaky_relu: nn.LeakyReLU,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
}


class Pair(NamedTuple):
    """A norm and what is called with its result: an attribute's name, or a module that computes
    what the function does that ``forward`` calls."""

    norm: str
    activation: str | nn.Module


class _Rewriter(ast.NodeTransformer):
    """Replaces ``self.act(self.norm(x))``, also with a function, also in two statements in a row
    with one variable, by ``self._run_pair(self.norm, self.act, x)``."""

    def __init__(self, forward: types.FunctionType, myself: str, norms: frozenset[str]) -> None:
        self.names = forward.__globals__
        self.variables = forward.__code__.co_varnames
        self.myself = myself
        self.norms = norms
        self.pairs: list[Pair] = []
        self.functions: list[nn.Module] = []

    def _attribute(self, node: ast.expr) -> str | None:
        """Return the name x of ``self.x``."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return node.attr if node.value.id == self.myself else None
        return None

    def _norm_call(self, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and self._attribute(node.func) in self.norms
            and len(node.args) == 1
            and not isinstance(node.args[0], ast.Starred)
            and not node.keywords
        )

    def _function(self, node: ast.Call) -> nn.Module | None:
        """Return a module that computes what a call of one of `FUNCTIONS` does."""
        name = ast.unparse(node.func)
        if name.partition(".")[0] in self.variables:
            return None
        try:
            function = eval(name, self.names)
            args = [ast.literal_eval(arg) for arg in node.args[1:]]
            options = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            return FUNCTIONS[function](*args, **options)
        except (NameError, AttributeError, KeyError, ValueError, TypeError):
            return None

    def _pair(self, call: ast.Call, norm: ast.Call) -> ast.Call | None:
        """Return the one call for an activation's call with the result of a norm's."""
        activation, name = call.func, self._attribute(call.func)
        if name is not None and len(call.args) == 1 and not call.keywords:
            self.pairs.append(Pair(norm.func.attr, name))
        elif name is None and isinstance(call.func, ast.Attribute | ast.Name):
            function = self._function(call)
            if function is None:
                return None
            self.pairs.append(Pair(norm.func.attr, function))
            source = f"{self.myself}.fused_functions[{len(self.functions)}]"
            activation = ast.parse(source, mode="eval").body
            self.functions.append(function)
        else:
            return None
        run = ast.parse(f"{self.myself}._run_pair", mode="eval").body
        return ast.Call(run, [norm.func, activation, norm.args[0]], [])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # a function inside of forward

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if node.args and self._norm_call(node.args[0]):
            return self._pair(node, node.args[0]) or node
        return node

    def _ends_in_norm(self, block: list[ast.stmt], target: str) -> bool:
        """Return whether a norm's result is assigned at the end of a block, or of one in it."""
        match block:
            case [*_, ast.Assign([ast.Name(name)], value)]:
                return name == target and self._norm_call(value)
            case [*_, ast.If(_, body, orelse)]:
                return any(self._ends_in_norm(each, target) for each in (body, orelse))
        return False

    def _moved(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Move ``y = act(y)`` or ``return act(y)`` from behind an ``if`` to the end of each of its
        branches, where one of them ends in ``y = self.norm(x)``."""
        done: list[ast.stmt] = []
        for statement in statements:
            match statement:
                case ast.Assign([ast.Name(target)], ast.Call(args=[ast.Name(y), *_])):
                    y = y if target == y else None
                case ast.Return(ast.Call(args=[ast.Name(y), *_])):
                    pass
                case _:
                    y = None
            before = done[-1] if done else None
            if y and isinstance(before, ast.If) and self._ends_in_norm([before], y):
                before.body.append(statement)
                before.orelse.append(copy.deepcopy(statement))
            else:
                done.append(statement)
        return done

    def visit_block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Rewrite ``y = self.norm(x)`` and a following ``y = self.act(y)`` or
        ``return self.act(y)``."""
        done: list[ast.stmt] = []
        for statement in map(self.visit, self._moved(statements)):
            before = done[-1] if done else None
            if isinstance(before, ast.Assign) and isinstance(statement, ast.Assign | ast.Return):
                y, call = before.targets[0], statement.value
                again = statement.targets if isinstance(statement, ast.Assign) else [y]
                if (
                    self._norm_call(before.value)
                    and isinstance(y, ast.Name)
                    and [ast.unparse(target) for target in before.targets + again] == [y.id] * 2
                    and isinstance(call, ast.Call)
                    and call.args
                    and ast.unparse(call.args[0]) == y.id
                    and y.id not in self.others(call)
                ):
                    pair = self._pair(call, before.value)
                    if pair is not None:
                        statement.value = pair
                        done.pop()
            done.append(statement)
        return done

    @staticmethod
    def others(call: ast.Call) -> set[str]:
        """Return the names in a call outside of its first argument."""
        parts = [call.func, *call.args[1:], *call.keywords]
        return {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self.visit_block(value))
            elif isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _source(forward: types.FunctionType) -> ast.FunctionDef | None:
    """Return the source of a method that can be compiled alone; None if there is none, if the file
    changed after its import, or if the method is wrapped or refers to more than its arguments."""
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return None
    code = forward.__code__
    try:
        lines, _ = inspect.findsource(code)
        tree = ast.parse("".join(lines))
        compiled = compile(tree, code.co_filename, "exec", dont_inherit=True)
    except (OSError, TypeError, SyntaxError):
        return None
    methods = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and (node.name, node.lineno) == (code.co_name, code.co_firstlineno)
    ]
    if not methods or code.co_code not in {found.co_code for found in _codes_in(compiled, code)}:
        return None
    method = methods[0]
    # Variables that other functions see, or that outlive a return, stay as they are.
    tries = any(isinstance(node, ast.Try) for node in ast.walk(method))
    if tries or code.co_freevars or code.co_cellvars or not method.args.args:
        return None
    myself = method.args.args[0].arg
    names = [node for node in ast.walk(method) if isinstance(node, ast.Name)]
    if any(name.id == myself and not isinstance(name.ctx, ast.Load) for name in names):
        return None
    # Private names, as in ``self.__x``, differ outside of their class.
    alone = _compiled(method, code.co_filename)
    return method if alone.co_names == code.co_names else None


def _codes_in(code: types.CodeType, like: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the functions of a module's code with the name and line of another."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if (constant.co_name, constant.co_firstlineno) == (like.co_name, like.co_firstlineno):
                yield constant
            yield from _codes_in(constant, like)


def _compiled(method: ast.FunctionDef, filename: str) -> types.CodeType:
    module = ast.fix_missing_locations(ast.Module([method], []))
    constants = compile(module, filename, "exec", dont_inherit=True).co_consts
    return next(c for c in constants if isinstance(c, types.CodeType) and c.co_name == method.name)


class _Fusing(nn.Module):
    """Has a ``forward`` in which calls were made one. The modules themselves do not change."""

    _run_pair = staticmethod(run_pair)

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (type(self).unfused, type(self).fused_norms), *state


@functools.cache
def fusing(
    kind: type[nn.Module], norms: frozenset[str]
) -> tuple[type[nn.Module], tuple[Pair, ...]]:
    """Return the subclass of a class whose forward calls its norms, attributes of these names,
    together with their activations, and the pairs; the class itself if it has no pairs. The
    subclass knows the class as ``unfused``."""
    kind = kind.unfused if issubclass(kind, _Fusing) else kind
    forward = kind.forward
    method = _source(forward)
    if method is None:
        return kind, ()
    rewriter = _Rewriter(forward, method.args.args[0].arg, norms)
    method.body = rewriter.visit_block(method.body)
    if not rewriter.pairs:
        return kind, ()
    rewritten = types.FunctionType(
        _compiled(method, forward.__code__.co_filename),
        forward.__globals__,
        forward.__name__,
        forward.__defaults__,
    )
    rewritten.__kwdefaults__ = forward.__kwdefaults__
    members = {
        "__module__": kind.__module__,
        "forward": rewritten,
        "unfused": kind,
        "fused_norms": norms,
        "fused_functions": tuple(rewriter.functions),
    }
    return type(f"Fusing{kind.__name__}", (_Fusing, kind), members), tuple(rewriter.pairs)


def _new(kind: type[nn.Module], norms: frozenset[str]) -> nn.Module:
    """Return an empty object for pickle or copy to fill."""
    made, _ = fusing(kind, norms)
    return made.__new__(made)
