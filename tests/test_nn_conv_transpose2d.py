"""ConvTranspose2d against torch.nn's own."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from stylekernels import convert, revert
from stylekernels.nn import ConvTranspose2d
from tests.conftest import Recorder, assert_accurate, assert_op_accurate, random

pytestmark = pytest.mark.usefixtures("implementation")

# Those that double the size, and those of each option that PyTorch runs.
OURS = (
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
)
PYTORCHS = (
    {"kernel_size": 4},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 3},
    {"kernel_size": 4, "stride": 2, "padding": 1, "dilation": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (4, 3), "stride": 2, "padding": 1},
    {"kernel_size": (3, 4), "stride": (2, 1), "padding": (1, 2), "output_padding": (1, 0)},
)


def twins(cin: int, cout: int, **options) -> tuple[ConvTranspose2d, nn.ConvTranspose2d]:
    ours, theirs = (kind(cin, cout, **options) for kind in (ConvTranspose2d, nn.ConvTranspose2d))
    with torch.no_grad():
        for seed, parameter in enumerate(theirs.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed, scale=0.3))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def convolves_in_pytorch(module: nn.Module, x: torch.Tensor) -> bool:
    with Recorder() as recorder:
        module(x)
    assert ("convolution" in recorder.ops) != ("upsample_conv2d" in recorder.ops), recorder.ops
    return "convolution" in recorder.ops


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [*OURS, *PYTORCHS], ids=str)
def test_outputs_and_gradients(options, bias, dtype, layout) -> None:
    ours, theirs = (module.to(dtype) for module in twins(6, 9, bias=bias, **options))
    exact = copy.deepcopy(theirs).double()
    tensors = {"x": random(2, 6, 5, 7, dtype=dtype, layout=layout, shift=0.2)}
    tensors |= {name: p.detach() for name, p in theirs.named_parameters()}

    def caller(module: nn.Module):
        return lambda x, **parameters: torch.func.functional_call(module, parameters, (x,))

    assert_op_accurate(caller(ours), caller(theirs), caller(exact), tensors, image_result=False)


@pytest.mark.parametrize("options", PYTORCHS, ids=str)
def test_all_others_are_pytorchs(options) -> None:
    ours, _ = twins(6, 9, **options)
    assert convolves_in_pytorch(ours, random(2, 6, 48, 48))


@pytest.mark.parametrize(
    ("x", "output_size"),
    [
        (random(6, 5, 7), None),
        (random(0, 6, 5, 7), None),
        (random(2, 6, 5, 7), (10, 14)),
        (random(2, 6, 5, 7), (2, 9, 9, 13)),
    ],
    ids=["no batch", "no images", "size", "shape"],
)
def test_calls_of_torchs_module(x, output_size) -> None:
    ours, theirs = twins(6, 9, kernel_size=3, stride=2, padding=1, output_padding=1)
    assert torch.equal(ours(x, output_size), theirs(x, output_size))


@pytest.mark.parametrize(
    "x", [random(2, 5, 4, 4), random(2, 6, 4, 4).double(), random(2, 6, 4), random(2, 6, 0, 4)]
)
def test_what_torch_refuses_is_refused_in_its_words(x) -> None:
    ours, theirs = twins(6, 9, kernel_size=4, stride=2, padding=1)
    with pytest.raises(RuntimeError) as error:
        theirs(x)
    with pytest.raises(RuntimeError) as ours_error:
        ours(x)
    assert str(ours_error.value) == str(error.value)


def test_autocast() -> None:
    ours, theirs = twins(6, 9, kernel_size=4, stride=2, padding=1)
    x = random(2, 6, 32, 33)
    with torch.autocast("cpu", torch.bfloat16):
        y, in_torch = ours(x), theirs(x)
    assert y.dtype == in_torch.dtype == torch.bfloat16
    assert_accurate(y, in_torch, copy.deepcopy(theirs).double()(x.double()))


def test_signature_repr_state_and_pickle_are_torchs() -> None:
    ours, theirs = twins(6, 9, kernel_size=4, stride=2, padding=1, bias=False)
    signatures = [inspect.signature(type(module).__init__) for module in (ours, theirs)]
    assert signatures[0] == signatures[1]
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    again = pickle.loads(pickle.dumps(ours))
    x = random(2, 6, 5, 7)
    assert torch.equal(again(x), ours(x))


def test_convert_and_revert() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(6, 8, 4, 2, 1)
            self.norm = nn.InstanceNorm2d(8)
            self.other = nn.ConvTranspose2d(8, 3, 2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(torch.relu(self.norm(self.up(x))))

    model, x = Decoder().eval(), random(2, 6, 40, 40)
    before, exact = model(x), copy.deepcopy(model).double()(x.double())
    weight = model.up.weight
    _, report = convert(model, strict=True)
    assert [(entry.name, entry.why) for entry in report.alone] == [
        ("up", "our kernel convolves where it is faster")
    ]
    assert [entry.name for entry in report.fused] == ["norm"]
    (left,) = report.left
    assert (left.name, left.what) == ("other", "ConvTranspose2d")
    assert type(model.up) is ConvTranspose2d
    assert model.up.weight is weight
    assert_accurate(model(x), before, exact)
    assert [entry.name for entry in convert(model)[1].left] == ["up", "norm", "other"]
    revert(model)
    assert type(model.up) is nn.ConvTranspose2d
    assert "converted" not in vars(model.up)
    assert torch.equal(model(x), before)
    built = nn.Sequential(ConvTranspose2d(6, 8, 4, 2, 1))
    assert type(revert(built)[0]) is ConvTranspose2d


def test_it_is_no_norm_of_convert() -> None:
    """Built with our class, or converted before: it is left, whatever follows it."""
    activation = nn.ReLU()
    activation.register_forward_hook(lambda *_: None)
    for built in (ConvTranspose2d, nn.ConvTranspose2d):
        model = nn.Sequential(built(6, 8, 4, 2, 1), activation)
        convert(model, strict=True)
        _, report = convert(model, strict=True)
        assert [(entry.name, entry.what) for entry in report.left] == [("0", "ConvTranspose2d")]
        assert not report.fused + report.alone + report.missed
        assert type(model) is nn.Sequential


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.int32, torch.float32),
    ],
)
def test_autocast_refuses_what_torchs_refuses(x, weight) -> None:
    ours, theirs = (m.to(weight) for m in twins(6, 9, kernel_size=4, stride=2, padding=1))
    image = torch.ones(1, 6, 8, 8, dtype=x)
    with torch.autocast("cpu", torch.bfloat16):
        for module in (theirs, ours):
            with pytest.raises(RuntimeError):
                module(image)


def test_compiles() -> None:
    ours, theirs = twins(6, 9, kernel_size=4, stride=2, padding=1)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = random(2, 6, 40, 40)
    exact = copy.deepcopy(theirs).double()(x.double())
    assert_accurate(compiled(x), theirs(x), exact)
