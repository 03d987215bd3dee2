"""convert on the forms in which a module's code may call a norm and its activation as one op."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels import convert, revert
from stylekernels.tensors import ACTIVATIONS
from tests.conftest import Recorder, assert_accurate
from tests.norm_blocks import Block, outputs, x_of


class Method(Block):
    def forward(self, x):
        return self.norm(x).relu()


class MethodInPlace(Block):
    def forward(self, x):
        y = self.norm(x)
        y = y.relu_()
        return y.exp()


class StatementInPlace(Block):
    def forward(self, x):
        y = self.norm(x)
        y.tanh_()
        return y - 1


class FunctionInPlace(Block):
    def forward(self, x):
        y = self.norm(x)
        F.leaky_relu_(y, 0.2)
        return y - 1


class OptionInPlace(Block):
    def forward(self, x):
        y = self.norm(x)
        F.relu(y, inplace=True)
        return y - 1


class Keywords(Block):
    def forward(self, x):
        return F.leaky_relu(negative_slope=0.2, input=self.norm(input=x))


class ComputedSlope(Block):
    slope = 0.2

    def forward(self, x):
        return F.leaky_relu(self.norm(x), self.slope if self.training else 0.1)


class KeywordOfModule(Block):
    def forward(self, x):
        return self.act(input=self.norm(x))


class NewModule(Block):
    def forward(self, x):
        return nn.LeakyReLU(0.1)(self.norm(x))


class Annotated(Block):
    def forward(self, x):
        if x.dim() > 3:
            y: Tensor = self.norm(x)
        else:
            y: Tensor = x
        z: Tensor = y
        y: Tensor = self.norm(z)
        y: Tensor = self.act(y)
        return y


class Private(Block):
    def __init__(self):
        super().__init__()
        self.__norm, self.__act = self.norm, nn.Sigmoid()

    def forward(self, x):
        return self.__act(self.__norm(x))


class ByPosition(Block):
    def forward(self, x, /):
        return self.act(self.norm(x))


class Super(Block):
    def extra_repr(self):
        return super().extra_repr()

    def forward(self, x):
        super().extra_repr()
        return self.act(self.norm(x))


class Helper(Block):
    def forward(self, x):
        return self.block(self.conv(x)) + self.block(x)

    def block(self, x, slope=0.5, *, shift=0.25):
        return self.act(self.norm(x)) * slope + shift


class HelperOfBase(Helper):
    def forward(self, x):
        return 2 * super().forward(x)


class Tried(Block):
    def forward(self, x):
        try:
            return self.act(self.norm(x))
        except ValueError:
            return x


class Comprehension(Block):
    def forward(self, x):
        return torch.cat([self.act(self.norm(image)) for image in x.split(1)])


class StoredFunction(Block):
    def __init__(self):
        super().__init__()
        del self.act
        self.act = torch.relu

    def forward(self, x):
        return self.act(self.norm(x))


class Optional(Block):
    """As in MUNIT's Conv2dBlock."""

    def forward(self, x):
        y = self.conv(x)
        if self.norm:
            y = self.norm(y)
        if self.act is not None and hasattr(self, "act"):
            y = self.act(y)
        return y


class EitherBranch(Block):
    def forward(self, x):
        y = self.norm(x)
        if not self.training:
            return torch.tanh(y)
        elif isinstance(self.act, nn.ReLU):
            return F.relu(y)
        else:
            y = self.act(y)
            y = y + 1
        return y


def marked(function):
    function.marked = True
    return function


class Marked(Block):
    @marked
    def forward(self, x):
        return self.act(self.norm(x))


def closures() -> list[type[nn.Module]]:
    functional, shift = F, 0.25

    class Closure(Block):
        def forward(self, x):
            y = functional.relu(self.norm(x))
            return y + shift

    class ClosureAndSuper(Closure):
        def forward(self, x, add=shift):
            def plus(y):
                return y + add + shift

            super().extra_repr()
            y = self.norm(x)
            y = self.act(y)
            return plus(y)

    return [Closure, ClosureAndSuper]


FUSED = (
    Method,
    MethodInPlace,
    StatementInPlace,
    FunctionInPlace,
    OptionInPlace,
    Keywords,
    ComputedSlope,
    KeywordOfModule,
    NewModule,
    Annotated,
    Private,
    ByPosition,
    Super,
    Helper,
    HelperOfBase,
    Tried,
    Comprehension,
    StoredFunction,
    Optional,
    EitherBranch,
    Marked,
    *closures(),
)


@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.__name__)
class TestFused:
    def test_outputs_and_gradients_stay(self, kind):
        theirs = kind().double()
        ours, report = convert(copy.deepcopy(theirs), strict=True)
        assert len(report.fused) == 1
        torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=1e-9, atol=1e-9)

    def test_float32_is_as_accurate(self, kind):
        theirs = kind()
        ours, _ = convert(copy.deepcopy(theirs))
        exact = copy.deepcopy(theirs).double()(x_of(torch.float32).double())
        assert_accurate(ours(x_of(torch.float32)), theirs(x_of(torch.float32)), exact)

    def test_no_activation_remains(self, kind):
        model = convert(kind().double())[0]
        with Recorder() as recorder:
            model(x_of())
        assert "instance_norm" in recorder.ops
        assert not {op.removesuffix("_") for op in recorder.ops} & {*ACTIVATIONS}

    def test_copies_and_revert(self, kind):
        theirs = kind().double()
        ours, _ = convert(copy.deepcopy(theirs))
        copies = [copy.deepcopy(ours)]
        if "<locals>" not in kind.__qualname__:  # pickle cannot find the others
            copies.append(pickle.loads(pickle.dumps(ours)))
        for copied in copies:
            assert type(copied) is type(ours)
            assert torch.equal(copied(x_of()), ours(x_of()))
            assert type(revert(copied)) is kind
            assert torch.equal(copied(x_of()), theirs(x_of()))

    def test_compiles_to_one_graph(self, kind):
        torch._dynamo.reset()
        model = convert(kind().double())[0].eval()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x_of()), model(x_of()))


def test_a_rewritten_method_is_described_as_the_original():
    before, after = Helper.block, type(convert(Helper())[0]).block
    assert after is not before
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__"):
        assert getattr(after, name) == getattr(before, name)
    assert after.__kwdefaults__ == before.__kwdefaults__
    assert type(convert(Marked())[0]).forward.marked


def test_a_helper_that_is_called_from_outside():
    model, _ = convert(Helper().double())
    with Recorder() as recorder:
        y = model.block(x_of(), 2.0)
    assert "leaky_relu" not in recorder.ops
    torch.testing.assert_close(y, Helper().double().block(x_of(), 2.0))


def test_a_closure_follows_its_variables():
    slope = 0.5

    class Scaled(Block):
        def forward(self, x):
            return self.act(self.norm(x)) * slope

    model, report = convert(Scaled().double())
    assert report.fused
    before = model(x_of())
    slope = 2.0
    torch.testing.assert_close(model(x_of()), 4 * before)


def test_an_optional_activation_that_is_none():
    theirs = Optional()
    theirs.act = None
    ours, report = convert(copy.deepcopy(theirs), strict=True)
    assert [entry.why for entry in report.alone] == ["Optional returns its output"]
    torch.testing.assert_close(ours(x_of(torch.float32)), theirs(x_of(torch.float32)))
    ours.act = theirs.act = nn.Tanh()
    torch.testing.assert_close(ours(x_of(torch.float32)), theirs(x_of(torch.float32)))
    _, report = convert(ours)
    assert [entry.why for entry in report.fused] == ["one op with the Tanh after it"]
