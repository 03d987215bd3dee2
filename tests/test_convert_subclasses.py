"""convert on subclasses of torch's layers: those that add nothing are replaced, others stay."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import stylekernels
from stylekernels import convert, revert
from tests.conftest import Recorder, assert_accurate, random


class Empty(nn.InstanceNorm2d):
    """A name of its own."""


class Defaults(nn.GroupNorm):
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-3)
        self.note = "one group"

    def extra_repr(self) -> str:
        return f"note={self.note}"


class Twice(Defaults):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.init.normal_(self.weight)


class Running(nn.InstanceNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True, track_running_stats=True)


class Signal(nn.InstanceNorm1d):
    pass


class Volume(nn.InstanceNorm3d):
    pass


class Lazy(nn.LazyInstanceNorm2d):
    def __init__(self, _channels: int) -> None:
        super().__init__()


class Upsampling(nn.ConvTranspose2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, 2, 1)


NORMS = (Empty, Defaults, Twice, Running, Signal, Volume, Lazy)


def x_of(kind: type[nn.Module], dtype: torch.dtype = torch.float64) -> Tensor:
    size = {Signal: (9,), Volume: (4, 5, 6)}.get(kind, (5, 7))
    return random(2, 3, *size, dtype=dtype)


def model_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(kind(3), nn.ReLU()).double()
    if kind is Lazy:
        model(x_of(kind))
    return model


@pytest.mark.parametrize("kind", NORMS)
class TestReplaced:
    def test_outputs_gradients_and_state_stay(self, kind):
        theirs = model_of(kind)
        ours, report = convert(copy.deepcopy(theirs), strict=True)
        before, after = type(theirs[0]), type(ours[0])
        assert report.fused == [("0", before.__name__, "one op with the ReLU after it", ())]
        assert issubclass(after, before)
        assert after.__name__ == before.__name__
        for model in (theirs, ours):
            model.train()
        xs = [x_of(kind).requires_grad_() for _ in range(2)]
        ys = [model(x) for model, x in zip((theirs, ours), xs, strict=True)]
        for y in ys:
            (y * random(*y.shape, dtype=y.dtype, seed=3)).sum().backward()
        torch.testing.assert_close(ys[1], ys[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(xs[1].grad, xs[0].grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.eval()(xs[0]), theirs.eval()(xs[0]), rtol=1e-9, atol=1e-9)

    def test_float32_is_as_accurate(self, kind):
        theirs = model_of(kind).float()
        ours, _ = convert(copy.deepcopy(theirs))
        x = x_of(kind, torch.float32)
        assert_accurate(ours(x), theirs(x), copy.deepcopy(theirs).double()(x.double()))

    def test_one_op(self, kind):
        model, _ = convert(model_of(kind))
        with Recorder() as recorder:
            model.eval()(x_of(kind))
        assert recorder.ops.count("instance_norm") == 1
        assert "relu" not in recorder.ops

    def test_copies_and_revert(self, kind):
        theirs = model_of(kind)
        ours, _ = convert(copy.deepcopy(theirs))
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(copied[0]) is type(ours[0])
            torch.testing.assert_close(copied.eval()(x_of(kind)), theirs.eval()(x_of(kind)))
            revert(copied)
            assert type(copied[0]) is type(theirs[0])
            assert vars(copied[0]).keys() == vars(theirs[0]).keys()
            assert repr(copied) == repr(theirs)

    def test_a_second_time_changes_nothing(self, kind):
        model, _ = convert(model_of(kind))
        before = [type(module) for module in model.modules()]
        _, report = convert(model, strict=True)
        assert [type(module) for module in model.modules()] == before
        assert [entry.why for entry in report.left] == ["a stylekernels module already"]

    def test_compiles_to_one_graph(self, kind):
        torch._dynamo.reset()
        model = convert(model_of(kind))[0].eval()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x_of(kind)), model(x_of(kind)))


def test_a_lazy_one_that_has_not_run():
    theirs, ours = (nn.Sequential(Lazy(3), nn.ReLU()).double() for _ in range(2))
    convert(ours)
    for _ in range(2):
        torch.testing.assert_close(ours(x_of(Lazy)), theirs(x_of(Lazy)))
    assert type(ours[0]) is stylekernels.nn.InstanceNorm2d
    assert type(revert(ours)[0]) is type(theirs[0]) is nn.InstanceNorm2d


def test_a_transposed_convolution():
    theirs = nn.Sequential(Upsampling(3)).double()
    ours, report = convert(copy.deepcopy(theirs))
    assert report.alone == [
        ("0", "Upsampling", "our kernel convolves where it is faster", ()),
    ]
    assert isinstance(ours[0], stylekernels.nn.ConvTranspose2d)
    torch.testing.assert_close(ours(x_of(Upsampling)), theirs(x_of(Upsampling)))
    assert type(revert(ours)[0]) is Upsampling


class Forward(nn.InstanceNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


class Check(nn.InstanceNorm2d):
    def _check_input_dim(self, input):
        raise ValueError


class Call(Empty):
    def __call__(self, input):
        return 2 * super().__call__(input)


class Attribute(nn.InstanceNorm2d):
    eps = 0.5


class Doubling:
    def forward(self, input):
        return 2 * super().forward(input)


class Mixed(Doubling, nn.InstanceNorm2d):
    pass


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Forward, "forward"),
        (Check, "_check_input_dim"),
        (Call, "__call__"),
        (Attribute, "eps"),
        (Mixed, "forward"),
    ],
)
def test_left(kind, name):
    theirs = nn.Sequential(kind(3), nn.ReLU())
    ours, report = convert(copy.deepcopy(theirs))
    (entry,) = report.left
    assert entry == ("0", kind.__name__, f"a subclass of InstanceNorm2d that defines {name}", ())
    assert report.missed == [entry]
    assert type(ours[0]) is kind
    if kind is not Check:
        assert torch.equal(ours(x_of(kind)), theirs(x_of(kind)))


def test_a_subclass_of_ours_is_left():
    class Own(stylekernels.nn.InstanceNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(Own(3), nn.ReLU(), nn.InstanceNorm2d(3), nn.ReLU())
    expected = model(x_of(Own))
    _, report = convert(model, strict=True)
    assert [entry.why for entry in report.left] == ["a stylekernels module already"]
    torch.testing.assert_close(model(x_of(Own)), expected)
