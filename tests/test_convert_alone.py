"""Norms that convert sees to have no activation after them: it replaces them alone, and strict=True
accepts that."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels import convert
from tests.norm_blocks import Block, Ends, HelperThatEnds, outputs


class Added(Block):
    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


class BranchesAdded(Block):
    def forward(self, x):
        y = x
        if self.norm is not None:
            y = self.norm(x)
        if self.training and hasattr(self, "other"):
            y = self.other(y)
        y = y + x
        return F.relu(y)


class Concatenated(Block):
    def forward(self, x):
        return self.act(torch.cat([self.norm(x), x], 1))


class Convolved(Block):
    def forward(self, x):
        y = self.norm(x)
        if y.shape != x.shape or y.dim() != 4:
            raise ValueError(y)
        z = y
        return F.relu(self.conv(z))


class OtherActivation(Block):
    def forward(self, x):
        return F.elu(self.norm(x))


class OtherMethod(Block):
    def forward(self, x):
        return self.act(self.norm(x).abs())


class Dropped(Block):
    def forward(self, x):
        self.norm(x)
        return self.act(x)


class Rounds(Block):
    def forward(self, x):
        for _ in range(2):
            x = self.norm(x)
            x = self.conv(x)
        return F.relu(x)


class Optional(Block):
    def __init__(self):
        super().__init__()
        self.act = None

    def forward(self, x):
        x = self.norm(x)
        if self.act is not None:
            x = self.act(x)
        return x


class ConvolvedInContext(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False), torch.enable_grad():
            y = self.norm(x)
            y = self.conv(y)
        return F.relu(y)


class ConvolvedInTry(Block):
    def forward(self, x):
        try:
            y = self.norm(x)
        except ValueError:
            y = x
        finally:
            self.calls = 1
        y = self.conv(y)
        return F.relu(y)


class ConvolvedInLoop(Block):
    def forward(self, x):
        y = x
        while True:
            y = self.norm(y)
            y = self.conv(y)
            if y is not None:
                break
        else:
            y = x
        return F.relu(y)


class HelperAdded(HelperThatEnds):
    def forward(self, x):
        return F.relu(self.block(x) + x)


class UnderAnotherName(Block):
    def run(self, x):
        return self.norm(self.conv(x))

    forward = run


class AnnotatedOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Ends()

    def forward(self, x):
        y: Tensor = self.block(x)
        z: Tensor = y + x
        return F.relu(z)


class OutsideAdded(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Sequential(Ends()), nn.Identity())

    def forward(self, x):
        return F.relu(self.block(x) + x)


class Reset(Ends):
    @torch.no_grad()
    def reset(self):
        self.norm.weight.fill_(1)


KNOWN = {
    Added: "an addition follows it",
    BranchesAdded: "an addition follows it",
    Concatenated: "torch.cat follows it",
    Convolved: "Conv2d follows it",
    OtherActivation: "F.elu follows it",
    OtherMethod: "`.abs` follows it",
    Dropped: "no layer is called right after it",
    Rounds: "Conv2d follows it",
    ConvolvedInContext: "Conv2d follows it",
    ConvolvedInTry: "Conv2d follows it",
    ConvolvedInLoop: "Conv2d follows it",
    Optional: "Optional returns its output",
    HelperAdded: "an addition follows it",
    Ends: "Ends returns its output",
    UnderAnotherName: "UnderAnotherName returns its output",
    AnnotatedOutside: "an addition follows it",
    OutsideAdded: "an addition follows it",
    Reset: "Reset returns its output",
}


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_known(kind):
    theirs = kind().double()
    ours, report = convert(copy.deepcopy(theirs), strict=True)
    (entry,) = report.alone
    assert entry.why == KNOWN[kind]
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=1e-9, atol=1e-9)
