"""Calls of layers in the source of a method: which value a layer takes, and which layer it is."""

import ast
import inspect
from typing import NamedTuple

from torch import nn

from stylekernels.nn.method_source import Method
from stylekernels.nn.pairs import ACTIVATIONS, FUNCTIONS, METHODS


class LayerCall(NamedTuple):
    """A call of a layer with one value: the name of the attribute that is called, or a module that
    computes what the called function does."""

    value: ast.expr
    layer: str | nn.Module


def only_input(call: ast.Call) -> ast.expr | None:
    """Return the argument of a call that has no other one: positional, or ``input=``."""
    match call:
        case ast.Call(args=[value], keywords=[]) if not isinstance(value, ast.Starred):
            return value
        case ast.Call(args=[], keywords=[ast.keyword("input", value)]):
            return value
    return None


def is_layer(kind: type[nn.Module], name: str) -> bool:
    """Return whether an attribute of a class's objects may be a layer: no method or property."""
    member = inspect.getattr_static(kind, name, None)
    return member is None or isinstance(member, nn.Module)


def layer_call(kind: type[nn.Module], method: Method, node: ast.AST) -> LayerCall | None:
    """Return what a node calls, if it is an attribute that may be a layer, as in ``self.act(y)``,
    or an activation as a function (``F.relu(y)``), a method (``y.relu()``) or a new module
    (``nn.ReLU()(y)``)."""
    match node:
        case ast.Call(ast.Attribute(value, name), [], []) if name in METHODS:
            return LayerCall(value, _in_place(METHODS[name](), name))
        case ast.Call(func=ast.Attribute()) if method.attribute(node.func):
            name, value = method.attribute(node.func), only_input(node)
            return LayerCall(value, name) if value is not None and is_layer(kind, name) else None
        case ast.Call(func=ast.Call(kind_called, args, options)):
            value = only_input(node)
            made = _made(method, kind_called, args, options, {each: each for each in ACTIVATIONS})
            return LayerCall(value, made) if made is not None and value is not None else None
        case ast.Call(func, [value, *args], options) if not isinstance(value, ast.Starred):
            made = _made(method, func, args, options, FUNCTIONS)
            return LayerCall(value, made) if made is not None else None
        case ast.Call(func, [], options):
            value = next((word.value for word in options if word.arg == "input"), None)
            others = [word for word in options if word.arg != "input"]
            made = _made(method, func, [], others, FUNCTIONS) if value is not None else None
            return LayerCall(value, made) if made is not None else None
    return None


def _made(
    method: Method,
    func: ast.expr,
    args: list[ast.expr],
    options: list[ast.keyword],
    makers: dict,
) -> nn.Module | None:
    """Return the module that one of ``makers`` makes of literal arguments."""
    if not isinstance(func, ast.Attribute | ast.Name):
        return None
    try:
        function = method.value(func)
        values = [ast.literal_eval(arg) for arg in args]
        named = {word.arg: ast.literal_eval(word.value) for word in options}
        return _in_place(makers[function](*values, **named), getattr(function, "__name__", ""))
    except (LookupError, ValueError, TypeError):
        return None


def _in_place(module: nn.Module, name: str) -> nn.Module:
    """Return the module of a function, in place if the function's name says so."""
    if name.endswith("_") and hasattr(module, "inplace"):
        module.inplace = True
    return module
