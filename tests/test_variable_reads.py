"""The reads that find a value in a variable, against random methods that run."""

import ast
import contextlib
import linecache
import random

import pytest

from stylekernels.nn.method_source import read
from stylekernels.nn.variable_reads import reads_of

#: Statements that end a block early, and those that do only in a loop.
_LEAVES = ["return", "raise ValueError"]
_LOOP_LEAVES = ["break", "continue"]


class _Writer:
    """Writes a method of random statements, which set and read the variable y."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines = ["def method(self, choose, mark, read):", "    y = mark(2)"]
        self.block(1, 0, in_loop=False, length=5)

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def block(self, depth: int, nested: int, *, in_loop: bool, length: int = 3) -> None:
        for _ in range(self.random.randint(1, length)):
            self.statement(depth, nested, in_loop=in_loop)

    def statement(self, depth: int, nested: int, *, in_loop: bool) -> None:
        line = len(self.lines) + 1  # marks what is set here, and what is read
        kinds = ["set", "read", "read", "condition", "leave"]
        kinds += ["if", "while", "for", "try", "with", "match"] if nested < 3 else []
        inside = {"depth": depth + 1, "nested": nested + 1}
        match self.random.choice(kinds):
            case "set":
                self.line(depth, f"y = mark({line})")
            case "read":
                self.line(depth, f"read(y, {line})")
            case "condition":
                self.line(depth, f"choose() and (y := mark({line}))")
            case "leave":
                leaves = _LEAVES + _LOOP_LEAVES * 4 * in_loop
                self.line(depth, f"if choose(): {self.random.choice(leaves)}")
            case "if":
                self.line(depth, "if choose():")
                self.block(**inside, in_loop=in_loop)
                self.perhaps("else:", **inside, in_loop=in_loop)
            case "while":
                self.line(depth, f"while choose() or (choose() and read(y, {line})):")
                self.block(**inside, in_loop=True)
                self.perhaps("else:", **inside, in_loop=in_loop)
            case "for":
                self.line(depth, f"for {self.random.choice('yz')} in [mark({line})] * choose(2):")
                self.block(**inside, in_loop=True)
                self.perhaps("else:", **inside, in_loop=in_loop)
            case "try":
                self.line(depth, "try:")
                self.block(**inside, in_loop=in_loop)
                self.line(depth, "except ValueError:")
                self.block(**inside, in_loop=in_loop)
                self.perhaps("else:", **inside, in_loop=in_loop)
                self.perhaps("finally:", **inside, in_loop=in_loop)
            case "with":
                self.line(depth, "with suppress(ValueError):")
                self.block(**inside, in_loop=in_loop)
            case "match":
                self.line(depth, "match choose():")
                self.line(depth + 1, "case 1:")
                self.block(depth + 2, nested + 1, in_loop=in_loop)
                self.line(depth + 1, "case _:")
                self.block(depth + 2, nested + 1, in_loop=in_loop)

    def perhaps(self, header: str, depth: int, nested: int, *, in_loop: bool) -> None:
        if self.random.random() < 0.5:
            self.line(depth - 1, header)
            self.block(depth, nested, in_loop=in_loop)


class _Run:
    """Random choices, for a limited number of steps, and the reads that happen."""

    def __init__(self, choices: random.Random) -> None:
        self.choices, self.steps = choices, 0
        self.reads: set[tuple[int, int]] = set()  # lines in which y was set, and read

    def choose(self, most: int = 1) -> int:
        self.steps += 1
        if self.steps > 200:
            raise TimeoutError
        return self.choices.randint(0, most)

    def read(self, y: int, line: int) -> None:
        self.reads.add((y, line))


@pytest.mark.parametrize("seed", range(60))
def test_every_read_that_happens_is_found(seed):
    source = "\n".join(_Writer(seed).lines) + "\n"
    name = f"<method of seed {seed}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    names = {"suppress": contextlib.suppress, "__name__": name}
    exec(compile(source, name, "exec"), names)
    method = read(names["method"], "method")
    expected = set()
    for node in ast.walk(method.tree):
        if isinstance(node, ast.Assign | ast.NamedExpr):
            expected |= {(node.lineno, load.lineno) for load in reads_of(method, "y", node)}
    loops = {node.lineno for node in ast.walk(method.tree) if isinstance(node, ast.For)}
    choices = random.Random(seed)
    for _ in range(100):
        run = _Run(choices)
        with contextlib.suppress(ValueError, TimeoutError):
            names["method"](None, run.choose, int, run.read)
        assert {pair for pair in run.reads if pair[0] not in loops} <= expected, source
