"""convert on code in which the order of what it reads matters, and on what changes afterwards."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels import convert
from tests.norm_blocks import Block, outputs, x_of

if TYPE_CHECKING:
    from nowhere import Image


class InputSetsCondition(Block):
    """The input of the norm is computed before the condition is read."""

    def features(self, x):
        y = self.conv(x)
        self.sparse = bool(y.mean() < 10)
        return y

    def forward(self, x):
        y = self.norm(self.features(x))
        if self.sparse:
            y = self.act(y)
        return y


class InputSetsActivation(Block):
    def prepare(self, x):
        self.act = nn.ReLU()
        return self.conv(x)

    def forward(self, x):
        y = self.norm(self.prepare(x))
        y = self.act(y)
        return y


class InputSetsSlope(Block):
    slope = 0.5

    def prepare(self, x):
        self.slope = 0.25
        return self.conv(x)

    def forward(self, x):
        y = self.norm(self.prepare(x))
        y = F.leaky_relu(y, self.slope)
        return y


class PropertyAsCondition(Block):
    calls = 0

    @property
    def turn(self):
        self.calls += 1
        return self.calls > 0

    def forward(self, x):
        y = self.norm(x)
        if self.turn:
            y = self.act(y)
        return y * self.calls


class VariableOfComprehension(Block):
    def forward(self, x):
        return sum(relu(self.norm(x)) for relu in (torch.tanh, torch.sin))


class AnnotationOfTheFuture(Block):
    def forward(self, x):
        def double(v: Image) -> Image:
            return v * 2

        return double(self.act(self.norm(x)))


class TwoNorms(Block):
    def __init__(self):
        super().__init__()
        self.second = nn.GroupNorm(3, 3)

    def forward(self, x):
        return self.act(self.second(self.norm(x)))


class Lazy(Block):
    """The condition reads what the first call of a lazy norm sets."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LazyInstanceNorm2d(affine=False, track_running_stats=False)

    def forward(self, x):
        y = self.norm(x)
        if self.norm.num_features == 3:
            y = self.act(y)
        return y


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        (InputSetsCondition, 0),
        (InputSetsActivation, 1),
        (InputSetsSlope, 1),
        (PropertyAsCondition, 0),
        (VariableOfComprehension, 0),
        (AnnotationOfTheFuture, 1),
        (TwoNorms, 1),
        (Lazy, 0),
    ],
)
def test_outputs_and_gradients_stay(kind, fused):
    theirs = kind().double()
    ours, report = convert(copy.deepcopy(theirs))
    assert len(report.fused) == fused
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=1e-9, atol=1e-9)


class Conditional(Block):
    on = False

    def forward(self, x):
        y = self.norm(x)
        if self.on:
            y = self.act(y)
        return y.exp()


class InPlace(Block):
    def forward(self, x):
        y = self.norm(x)
        y.tanh_()
        return x + y


def with_hook(model: Block) -> None:
    """Let the norm's call set the condition."""
    model.norm.register_forward_hook(lambda *_: setattr(model, "on", True))


def with_identity(model: Block) -> None:
    model.norm = nn.Identity()


def with_forward(model: Block) -> None:
    model.norm.forward = lambda x: x * 2


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Conditional, with_hook),
        (InPlace, with_identity),
        (InPlace, with_forward),
    ],
)
def test_changes_after_the_conversion(kind, change):
    theirs = kind()
    ours, report = convert(copy.deepcopy(theirs))
    assert report.fused
    for model in (ours, theirs):
        change(model)
        model.double()
    torch.testing.assert_close(ours(x_of()), theirs(x_of()), rtol=1e-9, atol=1e-9)


def test_names_are_looked_up_at_each_call(monkeypatch):
    act = torch.relu

    class Closure(Block):
        def forward(self, x):
            return act(self.norm(x))

    class Global(Block):
        def forward(self, x):
            return relu_or_other(self.norm(x))

    for kind in (Closure, Global):
        theirs = kind().double()
        ours, report = convert(copy.deepcopy(theirs), strict=True)
        assert report.fused
        act = torch.sin
        monkeypatch.setitem(globals(), "relu_or_other", torch.sin)
        torch.testing.assert_close(ours(x_of()), theirs(x_of()), rtol=1e-9, atol=1e-9)
        act = torch.relu
        monkeypatch.setitem(globals(), "relu_or_other", torch.relu)


relu_or_other = torch.relu


def test_a_method_that_is_replaced_between_two_conversions(monkeypatch):
    convert(Block())

    def forward(self, x):
        return torch.tanh(self.norm(x))

    class Patched(Block):
        def forward(self, x):
            return self.act(self.norm(x))

    assert convert(Patched())[1].fused
    monkeypatch.setattr(Patched, "forward", forward)
    theirs = Patched().double()
    ours, report = convert(copy.deepcopy(theirs))
    assert [entry.why for entry in report.fused] == ["one op with the Tanh after it"]
    torch.testing.assert_close(ours(x_of()), theirs(x_of()), rtol=1e-9, atol=1e-9)
