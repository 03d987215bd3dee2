"""Norms that convert misses, and strict=True refuses: an activation follows that is not one op with
them, or what follows cannot be seen."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels import convert
from tests.norm_blocks import Block, Ends, HelperThatEnds, outputs, swish


def wrapping(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def hiding(function):
    def wrapper(self, x):
        return function(self, x)

    return wrapper


class Wrapped(Block):
    @wrapping
    def forward(self, x):
        return self.act(self.norm(x))


class Hidden(Block):
    @hiding
    def forward(self, x):
        return self.act(self.norm(x))


class Lambda(Block):
    def forward(self, x):
        return (lambda y: self.act(self.norm(y)))(x)


class Nested(Block):
    def forward(self, x):
        def block(y):
            return self.act(self.norm(y))

        return block(x)


class ReadInside(Block):
    def forward(self, x):
        y = self.norm(x)
        self.peek = lambda: y
        return self.act(y)


class Walrus(Block):
    def forward(self, x):
        if (y := self.norm(x)) is not None:
            return self.act(y)
        return x


class TriedStatements(Block):
    def forward(self, x):
        try:
            y = self.norm(x)
            return self.act(y)
        finally:
            self.calls = 1


class HelperThatBegins(Block):
    def forward(self, x):
        return self.end(self.norm(x))

    def end(self, y):
        return self.act(y)


class OtherFunction(Block):
    def forward(self, x):
        return swish(self.norm(x))


class OtherName(Block):
    def forward(self, x):
        act = self.act
        return act(self.norm(x))


class Loop(Block):
    def forward(self, x):
        for layer in (self.norm, self.act):
            x = layer(x)
        return x


class OfBase(Ends):
    def forward(self, x):
        return self.act(super().forward(x))


class InLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.InstanceNorm2d(3)])

    def forward(self, x):
        return F.relu(self.norms[0](x))


class InDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleDict({"first": nn.InstanceNorm2d(3)})

    def forward(self, x):
        return F.relu(self.norms["first"](x))


class OfChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Ends()
        self.block.forward = None

    def forward(self, x):
        return self.block.act(self.block.norm(x))


class Stored(Block):
    def forward(self, x):
        self.seen = self.norm(x)
        return F.relu(self.seen)


class Listed(Block):
    def forward(self, x):
        found = [self.norm(x)]
        return F.relu(found[0])


class Later(Block):
    def forward(self, x):
        y = self.norm(x)
        x = self.conv(x)
        return self.act(y) + x


class AfterItsSize(Block):
    def forward(self, x):
        y = self.norm(x)
        pixels = y.shape[2] * y.size(3)
        return F.relu(y) / pixels


class ReadTwice(Block):
    def forward(self, x):
        y = self.norm(x)
        z = F.relu(y)
        return y + z


class NextRound(Block):
    def forward(self, x):
        for _ in range(2):
            x = F.relu(x)
            x = self.norm(x)
        return x


class OneBranch(Block):
    def forward(self, x):
        y = self.norm(x)
        if y.mean() < 100:
            y = self.act(y)
        return y


def without_source() -> type[nn.Module]:
    names = {"Block": Block}
    exec(
        "class Executed(Block):\n"
        "    def forward(self, x):\n"
        "        return self.act(self.norm(x))\n",
        names,
    )
    return names["Executed"]


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(Ends())

    def forward(self, x):
        return F.relu(self.block(x))


class Inside(Block):
    def __init__(self):
        super().__init__()
        self.tail = nn.Sequential(nn.Identity(), nn.ReLU())

    def forward(self, x):
        return self.tail(self.norm(x))


class EndsInList(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Ends()])

    def forward(self, x):
        return F.relu(self.blocks[0](x))


LATER = r"follows it, after other statements; call it right after the norm"
AGAIN = r"follows it, but its output is read elsewhere too"
UNKNOWN = r"follows it, and what it computes is not known"

MISSED = {
    Wrapped: "Wrapped.forward is wrapped by a decorator; call the layers in a method without one",
    Hidden: "Hidden.forward is wrapped by a decorator; call the layers in a method without one",
    without_source(): "no source of Executed.forward is found",
    Lambda: "a function inside of Lambda.forward calls it; make that a method",
    Nested: "a function inside of Nested.forward calls it; make that a method",
    ReadInside: f"a function inside of ReadInside.forward reads its output; LeakyReLU {AGAIN}",
    Walrus: f"LeakyReLU {LATER}",
    TriedStatements: "LeakyReLU follows it, in a form that is not rewritten; "
    "write self.act(self.norm(x))",
    HelperThatEnds: "LeakyReLU follows it, but outside of HelperThatEnds.block",
    HelperThatBegins: f"`self.end(...)` {UNKNOWN}",
    OtherFunction: f"`swish(...)` {UNKNOWN}",
    OtherName: f"`act(...)` {UNKNOWN}",
    Loop: "Loop.forward passes it on, and where it is called cannot be seen",
    OfBase: "Ends.forward calls it, which OfBase.forward overrides",
    InLists: "calls from a ModuleList cannot be seen; make it an attribute or use a Sequential",
    InDict: "calls from a ModuleDict cannot be seen; make it an attribute or use a Sequential",
    OfChild: "the forward of Ends was replaced on the instance",
    Stored: "Stored.forward stores its output as self.seen",
    Listed: "Listed.forward puts its output into a list",
    Later: f"LeakyReLU {LATER}",
    AfterItsSize: f"ReLU {LATER}",
    ReadTwice: f"ReLU {AGAIN}",
    NextRound: f"ReLU {AGAIN}",
    OneBranch: f"LeakyReLU {AGAIN}",
    Outside: "ReLU follows it, but outside of Sequential",
    Inside: "ReLU follows it, but inside of Sequential",
    EndsInList: "Ends returns its output, and calls from a ModuleList cannot be seen; "
    "make it an attribute or use a Sequential",
}


@pytest.mark.parametrize("kind", MISSED, ids=lambda kind: kind.__name__)
def test_missed(kind):
    theirs = kind().double()
    with pytest.raises(ValueError, match=r"strict=True expects"):
        convert(theirs, strict=True)
    ours, report = convert(copy.deepcopy(theirs))
    (entry,) = report.alone
    assert entry.why == MISSED[kind]
    assert {missed.name for missed in report.missed} == {entry.name}
    assert type(ours) is kind
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=1e-9, atol=1e-9)


def test_a_norm_that_is_one_op_in_one_of_two_calls():
    class Twice(Block):
        def forward(self, x):
            return self.act(self.norm(x)) + swish(self.norm(x))

    _, report = convert(Twice())
    (entry,) = report.fused
    assert entry.why == f"one op with the LeakyReLU after it; elsewhere `swish(...)` {UNKNOWN}"
    assert [missed.name for missed in report.missed] == ["norm"]


def test_without_fusing_nothing_is_missed():
    convert(Wrapped(), fuse=False, strict=True)
