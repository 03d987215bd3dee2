"""Calls of layers in the source of a method: which value a layer takes, and which layer it is."""

import ast
import inspect
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from stylekernels.nn.method_source import Method
from stylekernels.nn.pairs import ACTIVATIONS, FUNCTIONS, METHODS


class LayerCall(NamedTuple):
    """A call of a layer with one value.

    Attributes:
        value: the value.
        callee: what is called; the name of a tensor's method.
        layer: the name of the attribute that is called, or a module of the class that computes what
            the called function does.
        in_place: whether a function or method changes the value.
        args, options: further arguments of a function.
    """

    value: ast.expr
    callee: ast.expr
    layer: str | nn.Module
    in_place: bool = False
    args: Sequence[ast.expr] = ()
    options: Sequence[ast.keyword] = ()


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
            return LayerCall(value, ast.Constant(name), METHODS[name](), name.endswith("_"))
        case ast.Call(func=ast.Attribute() as callee) if method.attribute(callee):
            name, value = method.attribute(callee), only_input(node)
            found = value is not None and is_layer(kind, name)
            return LayerCall(value, callee, name) if found else None
        case ast.Call(func=ast.Call(made) as callee):
            value, made = only_input(node), _value(method, made)
            found = value is not None and any(made is each for each in ACTIVATIONS)
            return LayerCall(value, callee, made()) if found else None
        case ast.Call(callee, [value, *args], options) if not isinstance(value, ast.Starred):
            pass
        case ast.Call(callee, [], named) if any(word.arg == "input" for word in named):
            value = next(word.value for word in named if word.arg == "input")
            args, options = [], [word for word in named if word.arg != "input"]
        case _:
            return None
    function = _value(method, callee)
    made = next((FUNCTIONS[each] for each in FUNCTIONS if each is function), None)
    if made is None:
        return None
    named = [word for word in options if word.arg == "inplace"]
    in_place = function.__name__.endswith("_") or any(map(_is_true, named))
    return LayerCall(value, callee, made(), in_place, args, options)


def _value(method: Method, callee: ast.expr) -> object:
    """Return what an expression that is called stands for outside of a method, or None."""
    try:
        return method.value(callee) if isinstance(callee, ast.Attribute | ast.Name) else None
    except LookupError:
        return None


def _is_true(option: ast.keyword) -> bool:
    return isinstance(option.value, ast.Constant) and option.value.value is True
