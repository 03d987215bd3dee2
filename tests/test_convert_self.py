"""convert leaves methods that give their first argument, self, another value."""

import pytest
import torch

from stylekernels import convert
from tests.norm_blocks import Block, x_of


class Other:
    """An object that a method names self: its norm and its activation are other functions."""

    def __init__(self):
        self.norm, self.act = torch.clone, torch.tanh


class Captured(Block):
    def forward(self, x):
        match Other():
            case self:
                return self.act(self.norm(x))


class CapturedInSequence(Block):
    def forward(self, x):
        match [1, Other()]:
            case [_, *self]:
                return self[0].act(self[0].norm(x))


class CapturedRest(Block):
    def forward(self, x):
        match {"norm": torch.clone, "act": torch.tanh}:
            case {**self}:
                return self["act"](self["norm"](x))


class Raised(Block):
    def forward(self, x):
        error = AttributeError()
        error.norm, error.act = torch.clone, torch.tanh
        try:
            raise error
        except AttributeError as self:
            return self.act(self.norm(x))


class Imported(Block):
    def forward(self, x):
        import tests.test_convert_self as self

        return self.act(self.norm(x))


class Defined(Block):
    def forward(self, x):
        class self:  # noqa: N801
            norm, act = torch.clone, torch.tanh

        return self.act(self.norm(x))


norm, act = torch.clone, torch.tanh  # for Imported


@pytest.mark.parametrize(
    "kind",
    [Captured, CapturedInSequence, CapturedRest, Raised, Imported, Defined],
    ids=lambda kind: kind.__name__,
)
def test_a_method_that_sets_self_is_left(kind):
    model = kind()
    x = x_of(torch.float32)
    expected = torch.tanh(x)
    torch.testing.assert_close(model(x), expected)
    ours, report = convert(model)
    (missed,) = report.missed
    assert missed.why == f"{kind.__name__}.forward assigns to self"
    assert type(ours) is kind
    torch.testing.assert_close(ours(x), expected)
