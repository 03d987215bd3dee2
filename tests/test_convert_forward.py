"""convert on modules whose forward calls a norm and then an activation: the two become one op where
that cannot change a result, and only there."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stylekernels
from stylekernels import convert, revert
from tests.conftest import Recorder
from tests.norm_blocks import outputs, x_of


class Block(nn.Module):
    """Calls of the layers below, in a subclass's forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.InstanceNorm2d(3, affine=True)
        self.other_norm = nn.GroupNorm(1, 3)
        self.act = nn.LeakyReLU(0.3, inplace=True)
        self.flag = False
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)


class Nested(Block):
    def forward(self, x):
        return self.act(self.norm(x)) + self.act(self.other_norm(2 * x))


class Statements(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = self.act(y)
        if y.dim() > 3:
            y = self.other_norm(y - 0.5)
            y = self.act(y)
        return y


class Returned(Block):
    def forward(self, x):
        y = self.act(self.norm(x))
        y = self.other_norm(y)
        return F.silu(y)


class Functions(Block):
    def forward(this, x, *, slope=0.2):  # noqa: N805
        y = torch.tanh(this.norm(x))
        return F.leaky_relu(this.other_norm(y), 0.1, inplace=True)


class Gelu(Block):
    def forward(self, x):
        return F.gelu(self.norm(x), approximate="tanh") + F.relu(self.other_norm(x))


class Toggled(Block):
    def forward(self, x):
        y = self.act(self.norm(x))
        return torch.sigmoid(self.other_norm(y)) if self.flag or self.training else y


class Branches(Block):
    def forward(self, x):
        y = x
        if self.flag:
            y = x - 1
        elif x.dim() > 3:
            y = self.norm(x)
        y = F.relu(y)
        if not self.flag:
            y = self.other_norm(y - 0.5)
        return self.act(y)


FUSED = (Nested, Statements, Returned, Functions, Gelu, Toggled, Branches)


class UsedAgain(Block):
    def forward(self, x):
        y = self.norm(x)
        z = F.relu(y)
        return y + z


class OtherVariable(Block):
    def forward(self, x):
        y = self.norm(x)
        x = F.relu(x)
        return x + y


class BothArguments(Block):
    def forward(self, x):
        y = self.norm(x)
        y = torch.where(y > 0, y, x)
        return y


class Between(Block):
    def forward(self, x):
        y = self.norm(x)
        y = y + x
        return self.act(y)


class Captured(Block):
    def forward(self, x):
        y = x
        self.peek = lambda: y
        y = self.norm(x)
        return F.relu(y)


relu = torch.relu


class Shadowed(Block):
    def forward(self, x, relu=torch.cos):
        return relu(self.norm(x))


class Decorated(Block):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return self.act(self.norm(x))


class Tried(Block):
    def forward(self, x):
        y = x
        try:
            y = self.norm(x)
            return self.act(y.abs())
        finally:
            self.seen = y


class Rebound(Block):
    def forward(self, x):
        self, other = copy.deepcopy(self), self
        return self.act(self.norm(x)) + other.norm(x)


APART = (
    UsedAgain,
    OtherVariable,
    BothArguments,
    Between,
    Captured,
    Shadowed,
    Decorated,
    Tried,
    Rebound,
)


@pytest.mark.parametrize("kind", FUSED + APART, ids=lambda kind: kind.__name__)
def test_outputs_and_gradients_stay(kind):
    theirs = kind().double()
    ours, report = convert(copy.deepcopy(theirs))
    assert len(report.fused) == (2 if kind in FUSED else 0), report
    assert isinstance(ours, kind)
    assert (type(ours) is kind) == (kind in APART)
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.__name__)
def test_no_activation_remains(kind):
    model, x = convert(kind().double())[0], x_of()
    with Recorder() as recorder:
        model(x)
    assert recorder.ops.count("instance_norm") == 2
    assert not {
        op for op in recorder.ops if op.removesuffix("_") in {*stylekernels.tensors.ACTIVATIONS}
    }


@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.__name__)
def test_copies_compile_and_revert(kind):
    torch._dynamo.reset()
    theirs = kind().double()
    ours, _ = convert(copy.deepcopy(theirs))
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours)
        assert torch.equal(copied(x_of()), ours(x_of()))
        assert type(revert(copied)) is kind
        assert torch.equal(copied(x_of()), theirs(x_of()))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x_of()), theirs(x_of()))


def test_a_variable_that_another_function_reads():
    model, _ = convert(Captured().double())
    model(x_of())
    torch.testing.assert_close(model.peek(), model.norm(x_of()))


@pytest.mark.parametrize("kind", [Toggled, Branches])
def test_an_attribute_that_the_forward_reads_may_change(kind):
    theirs = kind().double().eval()
    ours, _ = convert(copy.deepcopy(theirs))
    for flag in (True, False, True):
        ours.flag = theirs.flag = flag
        torch.testing.assert_close(ours(x_of()), theirs(x_of()))


def test_layers_that_change_afterwards():
    theirs = Nested().double()
    ours, _ = convert(copy.deepcopy(theirs))
    for model in (theirs, ours):
        model.act = nn.ELU()
    torch.testing.assert_close(ours(x_of()), theirs(x_of()))
    for model in (theirs, ours):
        del model.act
        model.act = torch.tanh
        model.norm = nn.InstanceNorm2d(3)
    torch.testing.assert_close(ours(x_of()), theirs(x_of()))
    convert(ours)
    torch.testing.assert_close(ours(x_of()), theirs(x_of()))


@pytest.mark.parametrize("where", ["norm", "act"])
def test_hooks_see_what_they_saw(where):
    seen = []
    for model in (Nested().double(), convert(Nested().double())[0]):
        seen.append([])
        getattr(model, where).register_forward_hook(
            lambda module, given, y, seen=seen[-1]: seen.append(y.clone())
        )
        model(x_of())
    assert seen[0]
    torch.testing.assert_close(seen[1], seen[0])


def test_a_hook_at_the_time_of_conversion():
    model = Nested()
    model.act.register_forward_hook(lambda *_: None)
    before = type(model)
    with pytest.raises(
        ValueError, match=r"(?s)strict=True expects .* the LeakyReLU after it has hooks"
    ):
        convert(model, strict=True)
    _, report = convert(model)
    assert [entry.name for entry in report.missed] == ["norm", "other_norm"]
    assert type(model) is before


def test_a_file_that_changed_after_its_import(tmp_path, monkeypatch):
    source = """from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.InstanceNorm2d(3), nn.ReLU()
    def forward(self, x):
        return self.act(self.norm(x))
"""
    path = tmp_path / "a_model_that_changes.py"
    path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import a_model_that_changes as imported

    assert len(convert(imported.Model())[1].fused) == 1
    path.write_text(source.replace("(self.norm(x))", "(self.norm(x)) - self.norm(x)"))
    stylekernels.nn.forward_calls._fusing.cache_clear()
    assert not convert(imported.Model())[1].fused
