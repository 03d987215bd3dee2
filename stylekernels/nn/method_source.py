"""Source of the methods of a module's class, and methods compiled from a changed source."""

import __future__

import ast
import copy
import functools
import inspect
import types
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
#: Parts of a method with variables of their own.
SCOPES = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


class Method(NamedTuple):
    """A method whose source was found.

    Attributes:
        function: the method.
        label: its name with that of its class, for messages.
        tree: its source, a copy that may be changed.
        owner: name of the class in whose body it stands, which private names get; None if it stands
            in none.
    """

    function: types.FunctionType
    label: str
    tree: ast.FunctionDef
    owner: str | None

    @property
    def myself(self) -> str:
        """Name of the first argument."""
        return _first_argument(self.tree)

    def attribute(self, node: ast.AST) -> str | None:
        """Return the name x of ``self.x``, as the object has it; None for another expression."""
        match node:
            case ast.Attribute(ast.Name(name), attribute) if name == self.myself:
                private = attribute.startswith("__") and not attribute.endswith("__")
                stem = (self.owner or "").lstrip("_")
                return f"_{stem}{attribute}" if private and stem else attribute
        return None

    def value(self, expression: ast.expr) -> object:
        """Return the value of a name outside of the method, or of such a name's attributes.

        Raises:
            LookupError: if it is no such expression, or has no value.
        """
        name = ast.unparse(expression)
        if not name.replace(".", "").isidentifier():
            raise LookupError(name)
        code = self.function.__code__
        first = name.partition(".")[0]
        if first in {*code.co_varnames, *_assigned(self.tree), *_arguments(self.tree)}:
            raise LookupError(name)
        cells = dict(zip(code.co_freevars, self.function.__closure__ or (), strict=True))
        try:
            local = {first: cells[first].cell_contents} if first in cells else {}
            return eval(name, self.function.__globals__, local)
        except Exception as error:
            raise LookupError(name) from error

    def compiled(self) -> types.FunctionType:
        """Return the method with the code of ``tree``."""
        old = self.function
        code = _compiled(self.tree, self.owner, old.__code__)
        cells = dict(zip(old.__code__.co_freevars, old.__closure__ or (), strict=True))
        closure = tuple(cells[name] for name in code.co_freevars)
        new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
        new.__kwdefaults__ = old.__kwdefaults__
        new.__qualname__, new.__doc__, new.__module__ = (
            old.__qualname__,
            old.__doc__,
            old.__module__,
        )
        new.__dict__.update(old.__dict__)
        return new


def _assigned(tree: ast.FunctionDef) -> set[str]:
    """Return the variables that a method, and functions and classes in it, assign to or delete."""
    return {_target(node) for node in ast.walk(tree) if node is not tree} - {None}


def _target(node: ast.AST) -> str | None:
    """Return the variable that a node itself assigns to."""
    match node:
        case ast.Name(name, ast.Store() | ast.Del()):
            return name
        case ast.MatchAs(name=name) | ast.MatchStar(name) | ast.MatchMapping(rest=name):
            return name
        case ast.ExceptHandler(name=name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
            return name
        case ast.ClassDef(name):
            return name
        case ast.alias(name, other):  # of an import
            return other or name.partition(".")[0]
    return None


def _arguments(tree: ast.AST) -> set[str]:
    """Return the arguments of a method and of the functions in it."""
    return {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def methods(
    kind: type[nn.Module],
) -> Iterator[tuple[str, types.FunctionType, type[nn.Module], bool]]:
    """Yield the functions that the classes below `torch.nn.Module` define, but ``__init__``: name,
    function, class, and whether another class overrides it."""
    found = set()
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        for name, function in vars(base).items():
            if isinstance(function, types.FunctionType) and name != "__init__":
                yield name, function, base, name in found
        found.update(vars(base))


def names_in(function: types.FunctionType) -> set[str]:
    """Return the global names and attributes that a function refers to, with the functions in it
    and the one that it wraps."""
    function = inspect.unwrap(function)
    codes, names = [getattr(function, "__code__", None)], set()
    while codes:
        code = codes.pop()
        if isinstance(code, types.CodeType):
            names.update(code.co_names)
            codes += code.co_consts
    return names


def wrapped(label: str) -> str:
    """Return the text for a method that a decorator wraps."""
    return f"{label} is wrapped by a decorator; call the layers in a method without one"


def read(function: types.FunctionType, label: str) -> Method | str:
    """Return the source of a method; or why there is none that can be compiled in its place."""
    if hasattr(function, "__wrapped__"):
        return wrapped(label)
    code = function.__code__
    try:
        lines, _ = inspect.findsource(code)
        module, compiled = _parsed("".join(lines))
        tree, owner = _found(module, code)
    except (OSError, TypeError, LookupError):
        return f"no source of {label} is found"
    except SyntaxError:
        return f"the source that is found for {label} is not that of its code"
    if not all(map(str.isidentifier, code.co_freevars)):
        return f"{label} has type parameters"
    if not (tree.args.posonlyargs or tree.args.args):
        return f"{label} has no argument self"
    if _key(code) not in map(_key, _codes_in(compiled, code)):
        return f"the source that is found for {label} is not that of its code"
    myself = _first_argument(tree)
    if myself in _assigned(tree):
        return f"{label} assigns to {myself}"
    return Method(function, label, _WithoutAnnotations().visit(copy.deepcopy(tree)), owner)


def _first_argument(tree: ast.FunctionDef) -> str:
    return (tree.args.posonlyargs + tree.args.args)[0].arg


class _WithoutAnnotations(ast.NodeTransformer):
    """Makes ``y: Tensor = x`` an assignment, which is the same in a function."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name) and node.value is not None:
            return ast.copy_location(ast.Assign([node.target], node.value), node)
        return node


@functools.lru_cache(maxsize=16)
def _parsed(source: str) -> tuple[ast.Module, types.CodeType]:
    tree = ast.parse(source)
    return tree, compile(tree, "", "exec", dont_inherit=True)


def _found(module: ast.Module, code: types.CodeType) -> tuple[ast.FunctionDef, str | None]:
    """Return the function of this name and first line, and the class around it."""
    around: list[tuple[ast.AST, str | None]] = [(module, None)]
    while around:
        node, owner = around.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and child.name == code.co_name:
                first = min(n.lineno for n in (child, *child.decorator_list))
                if first == code.co_firstlineno:
                    return child, owner
            inside = child.name if isinstance(child, ast.ClassDef) else owner
            around.append((child, inside))
    raise LookupError(code.co_name)


def _compiled(tree: ast.FunctionDef, owner: str | None, like: types.CodeType) -> types.CodeType:
    """Compile a method as if it stood where another code stood: in a class, and in a function that
    has its free variables."""
    module = ast.parse(f"class {owner}:\n  pass") if owner else ast.Module([], [])
    (module.body[0] if owner else module).body[:] = [tree]
    free = [name for name in like.co_freevars if name != "__class__"]
    if free:
        outer = ast.parse(f"def _({', '.join(free)}):\n  pass")
        outer.body[0].body = module.body
        module = outer
    flags = like.co_flags & _FUTURE
    ast.fix_missing_locations(module)
    code = compile(module, like.co_filename, "exec", flags, dont_inherit=True)
    return next(_codes_in(code, like))


def _codes_in(code: types.CodeType, like: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the functions in a code with the name and first line of another."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if (constant.co_name, constant.co_firstlineno) == (like.co_name, like.co_firstlineno):
                yield constant
            yield from _codes_in(constant, like)


def _key(code: types.CodeType) -> tuple:
    """Return what two codes have in common that do the same."""
    constants = [
        _key(each) if isinstance(each, types.CodeType) else (type(each), each)
        for each in code.co_consts
        if not (isinstance(each, str) and "<locals>" in each)  # Python 3.10: a qualified name
    ]
    variables = code.co_varnames, code.co_cellvars, code.co_freevars
    return code.co_code, code.co_names, variables, tuple(constants)
