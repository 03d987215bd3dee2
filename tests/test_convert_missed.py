"""Norms that convert misses, and strict=True refuses: an activation follows that is not one op with
them, or what follows cannot be seen."""

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stylekernels import convert
from tests.norm_blocks import Block, Ends, HelperThatEnds, outputs, swish, x_of


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


class AndValue(Block):
    def forward(self, x):
        y = x.dim() and self.norm(x)
        return self.act(y)


class OrInside(Block):
    def forward(self, x):
        return self.act(None or self.norm(x))


class Checkpointed(Block):
    def forward(self, x):
        y = checkpoint(self.block, x, use_reentrant=False)
        return self.act(y) * self.block(x).mean()

    def block(self, x):
        return self.norm(x)


class Conditional(Block):
    def forward(self, x):
        return self.act(torch.cond(x.sum() < 1e9, self.block, torch.clone, (x,)))

    def block(self, x):
        return self.norm(x)


class OneBranch(Block):
    def forward(self, x):
        y = self.norm(x)
        if y.mean() < 100:
            y = self.act(y)
        return y


class BreakWithIt(Block):
    def forward(self, x):
        while True:
            y = self.norm(x)
            if y is not None:
                break
            y = x
        return self.act(y)


class BreakBeforeProduct(Block):
    def forward(self, x):
        for i in range(3):
            y = self.norm(x)
            if i > 1:
                break
            y = y * 2
        return self.act(y)


class ContinueWithIt(Block):
    def forward(self, x):
        for i in range(2):
            x = F.relu(x)
            x = self.norm(x)
            if i == 0:
                continue
            x = self.conv(x)
        return x


class SetAfterBreak(Block):
    def forward(self, x):
        while True:
            try:
                if x is not None:
                    break
            finally:
                y = self.norm(x)
            y = x
        return self.act(y)


class HandlerHasIt(Block):
    def forward(self, x):
        try:
            y = self.norm(x)
            y = self.conv(y).missing
        except AttributeError:
            return self.act(y)
        return y


class Suppressed(Block):
    def forward(self, x):
        with contextlib.suppress(AttributeError):
            y = self.norm(x)
            y = self.conv(y).missing
        return self.act(y)


class SetInCondition(Block):
    def forward(self, x):
        y = self.norm(x)
        n = x is None and (y := x)
        return self.act(y) if n is False else x


class SetInComprehension(Block):
    def forward(self, x):
        y = self.norm(x)
        n = [y + 1 for y in range(3)]
        return self.act(y) * n[1]


class DeletedInCondition(Block):
    def forward(self, x):
        y = self.norm(x)
        match x.dim():
            case 3:
                y = x
        if x.dim() == 3:
            del y
        return self.act(y)


class Global(Block):
    def forward(self, x):
        global latest
        latest = self.norm(x)
        return self.activated()

    def activated(self):
        return self.act(latest)


class Mapped(Block):
    def forward(self, x):
        return next(map(self.act, [self.norm(x)]))


class CopiedInside(Block):
    def forward(self, x):
        y = self.norm(x)

        def inside():
            z = y
            return self.act(z)

        return inside()


class UnderAnotherName(Block):
    def run(self, x):
        return self.act(getattr(self, "".join(["no", "rm"]))(x))

    forward = run


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
NOT_REWRITTEN = (
    "LeakyReLU follows it, in a form that is not rewritten; write self.act(self.norm(x))"
)
UNKNOWN = r"follows it, and what it computes is not known"

MISSED = {
    Wrapped: "Wrapped.forward is wrapped by a decorator; call the layers in a method without one",
    Hidden: "Hidden.forward is wrapped by a decorator; call the layers in a method without one",
    without_source(): "no source of Executed.forward is found",
    Lambda: "a function inside of Lambda.forward calls it; make that a method",
    Nested: "a function inside of Nested.forward calls it; make that a method",
    ReadInside: f"a function inside of ReadInside.forward reads its output; LeakyReLU {AGAIN}",
    Walrus: f"LeakyReLU {LATER}",
    TriedStatements: NOT_REWRITTEN,
    AndValue: NOT_REWRITTEN,
    OrInside: NOT_REWRITTEN,
    Checkpointed: "Checkpointed.block returns its output, and Checkpointed.forward passes block "
    "on; call it there",
    Conditional: "Conditional.block returns its output, and Conditional.forward passes block on; "
    "call it there",
    HelperThatEnds: "LeakyReLU follows it, but outside of HelperThatEnds.block",
    HelperThatBegins: f"`self.end(...)` {UNKNOWN}",
    OtherFunction: f"`swish(...)` {UNKNOWN}",
    OtherName: f"`act(...)` {UNKNOWN}",
    Loop: "Loop.forward passes it on, and where it is called cannot be seen; call it as an "
    "attribute",
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
    BreakWithIt: f"LeakyReLU {LATER}",
    BreakBeforeProduct: f"LeakyReLU {AGAIN}",
    ContinueWithIt: f"ReLU {AGAIN}",
    SetAfterBreak: f"LeakyReLU {LATER}",
    HandlerHasIt: f"LeakyReLU {AGAIN}",
    Suppressed: f"LeakyReLU {AGAIN}",
    SetInCondition: f"LeakyReLU {LATER}",
    SetInComprehension: f"LeakyReLU {AGAIN}",
    DeletedInCondition: f"LeakyReLU {LATER}",
    Global: "Global.forward stores its output as global latest",
    Mapped: f"`map(...)` {UNKNOWN}",
    CopiedInside: "a function inside of CopiedInside.forward reads its output",
    UnderAnotherName: "UnderAnotherName calls it nowhere that can be seen",
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


class Alias(Block):
    """One call is seen, and is one op; what the other's output is used for is not."""

    def forward(self, x):
        norm, act = self.norm, self.act
        return self.act(self.norm(x)) + act(norm(x))


def test_a_norm_that_is_also_called_by_another_name():
    model = Alias()
    _, report = convert(model)
    (missed,) = report.missed
    assert missed.why.startswith("Alias.forward passes it on")
    with pytest.raises(ValueError, match=r"Alias\.forward passes it on"):
        convert(Alias(), strict=True)


def test_a_global_variable_is_set():
    class Kept(Block):
        def forward(self, x):
            global kept
            kept = self.norm(x)
            return self.act(kept)

    theirs = Kept()
    ours, report = convert(copy.deepcopy(theirs))
    assert not report.fused
    torch.testing.assert_close(ours(x_of(torch.float32)), theirs(x_of(torch.float32)))
    torch.testing.assert_close(kept, theirs.norm(x_of(torch.float32)))
