"""Reads of a method's variable that may find one of the values that the method assigns to it."""

import ast
from collections.abc import Iterable
from typing import NamedTuple

from stylekernels.nn.method_source import Method

_LOOPS = ast.For | ast.AsyncFor | ast.While


class _Ends(NamedTuple):
    """Ways to leave statements on which the variable may have the value: to the next statement, by
    ``break`` and by ``continue``."""

    falls: bool = False
    breaks: bool = False
    continues: bool = False


def _union(*ends: _Ends) -> _Ends:
    return _Ends(*map(any, zip(*ends, strict=True)))


class _Reads:
    """A pass through a method that collects the reads of a variable. The value stays in the
    variable until another assignment certainly replaces it.

    Args:
        method: the method.
        name: the variable.
        node: the assignment, or the named expression, that gives the variable the value.
    """

    def __init__(self, method: Method, name: str, node: ast.AST) -> None:
        self.method, self.name, self.node = method, name, node
        self.found: dict[ast.expr, None] = {}  # an ordered set

    def through(self, block: list[ast.stmt], live: bool) -> _Ends:
        """Return the ends of a block. The variable may have the value before it if ``live``."""
        breaks = continues = False
        for statement in block:
            ends = self._through_one(statement, live)
            live, breaks, continues = ends.falls, breaks | ends.breaks, continues | ends.continues
        return _Ends(live, breaks, continues)

    def _through_one(self, statement: ast.stmt, live: bool) -> _Ends:
        parts = _parts(statement)
        if live or (self.node in parts and self.node is not statement):
            live = True
            self.found.update(dict.fromkeys(loads(self.name, parts)))
        match statement:
            case ast.Return() | ast.Raise():
                return _Ends()
            case ast.Break():
                return _Ends(breaks=live)
            case ast.Continue():
                return _Ends(continues=live)
            case ast.If(_, body, orelse):
                return _union(self.through(body, live), self.through(orelse, live))
            case ast.Match(_, cases):
                return _union(_Ends(live), *(self.through(each.body, live) for each in cases))
            case ast.For() | ast.AsyncFor() | ast.While():
                return self._through_loop(statement, live)
            case ast.With(items, body) | ast.AsyncWith(items, body):
                ends = self.through(body, live)
                suppresses = not all(map(self._raises, items))
                return _union(ends, _Ends(suppresses and (live or self._sets_within(statement))))
            case ast.AST(handlers=_):  # Try, and TryStar since Python 3.11
                return self._through_try(statement, live)
        if statement is self.node:
            return _Ends(True)
        return _Ends(live and self.name not in _assigned(statement))

    def _through_loop(self, loop: _LOOPS, live: bool) -> _Ends:
        ends = self.through(loop.body, live)
        if not live and (ends.falls or ends.continues):
            return self._through_one(loop, True)  # the next round has the value from the beginning
        return _union(self.through(loop.orelse, live), _Ends(ends.breaks))

    def _through_try(self, statement: ast.Try, live: bool) -> _Ends:
        anywhere = live or self._sets_within(statement)  # any statement may raise
        body = self.through(statement.body, live)
        orelse = self.through(statement.orelse, body.falls)
        handlers = [self.through(each.body, anywhere) for each in statement.handlers]
        ends = _union(body._replace(falls=False), orelse, *handlers)
        last = self.through(statement.finalbody, ends.falls)
        raised = self.through(statement.finalbody, anywhere)._replace(falls=False)
        sets = self.through(statement.finalbody, False).falls  # and then a break goes on
        return _union(ends._replace(falls=False), last, raised, _Ends(False, sets, sets))

    def _sets_within(self, statement: ast.stmt) -> bool:
        return self.node in ast.walk(statement)

    def _raises(self, item: ast.withitem) -> bool:
        """Return whether a context does not suppress exceptions. Those of PyTorch do not."""
        context = item.context_expr
        try:
            kind = self.method.value(context.func if isinstance(context, ast.Call) else context)
        except LookupError:
            return False
        return str(getattr(kind, "__module__", "")).partition(".")[0] == "torch"


def reads_of(method: Method, name: str, node: ast.AST) -> list[ast.expr]:
    """Return the reads of a variable that may find the value that a node gives it.

    Args:
        method: the method.
        name: the variable.
        node: an assignment or a named expression of the method, in no function inside of it.
    """
    reads = _Reads(method, name, node)
    reads.through(method.tree.body, False)
    return list(reads.found)


def loads(name: str, nodes: Iterable[ast.AST]) -> list[ast.expr]:
    """Return those of some nodes that read a variable, the targets of ``y += x`` among them."""
    found = []
    for node in nodes:
        match node:
            case ast.AugAssign(ast.Name(variable) as read) if variable == name:
                found.append(read)
            case ast.Name(variable, ast.Load()) if variable == name:
                found.append(node)
    return found


def _parts(statement: ast.stmt) -> list[ast.AST]:
    """Return a statement and the nodes in it, but for the statements of its blocks."""
    nodes: list[ast.AST] = [statement]
    for node in nodes:
        nodes += [each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.stmt)]
    return nodes


def _assigned(statement: ast.stmt) -> set[str]:
    """Return variables that a statement without blocks certainly assigns to."""
    match statement:
        case ast.Assign(targets):
            pass
        case ast.AugAssign(target):
            targets = [target]
        case _:
            return set()
    each = [name for t in targets for name in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return {name.id for name in each if isinstance(name, ast.Name)}
