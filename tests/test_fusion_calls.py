"""Calls of fused networks: with other parameters, and those that the graph is not for, which run
the model's own code and warn."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels import fuse_convolutions
from stylekernels.fusion import NotFusedWarning
from tests.conftest import random
from tests.fusion import Blocks, calls_of, network
from tests.test_fusion_export import pattern, sizes_that_need_padding

X = random(2, 3, 9, 11)
RUNS = (
    r"runs the model's own code, not the fused graph: {}\. To fuse such calls, pass one of them to"
)


class Skipping(Blocks):
    """A forward with an argument that is not required."""

    def forward(self, x: Tensor, y: Tensor, skip: Tensor | None = None) -> Tensor:
        z = self.wide(F.pad(self.norm1(self.conv1(x)), (2, 2, 2, 2))) + y
        return z if skip is None else z + skip


def many_kinds(m, *images, strength, nested):
    z = m.wide(F.pad(m.norm1(m.conv1(images[0])), (2, 2, 2, 2)))
    for image in images[1:]:
        z = z + image
    return z * strength + sum(nested)


REQUIRED = [
    ((X, X, X), {}, "the call has 3 arguments by position, and the graph is for calls with x, y"),
    ((X, X), {"skip": X}, "the call has the argument skip, and the graph is for calls with x, y"),
    ((X, 3.0), {}, "argument y is of type float, not a tensor"),
    ((), {"y": 3.0, "x": X}, "argument y is of type float, not a tensor"),
]


@pytest.mark.parametrize(("args", "options", "difference"), REQUIRED)
def test_calls_with_more_than_the_required_tensors(args, options, difference):
    model = network(Skipping)
    fused, _ = fuse_convolutions(model)
    with torch.no_grad():
        with pytest.warns(NotFusedWarning, match=re.escape(difference)) as warned:
            y = fused(*args, **options)
        torch.testing.assert_close(y, model(*args, **options), rtol=0, atol=0)
    (warning,) = warned
    text = str(warning.message)
    assert text.startswith("the network (Skipping) ")
    assert re.search(RUNS.format(re.escape(difference)), text)
    assert warning.filename == __file__


def test_a_call_that_the_model_refuses():
    fused, _ = fuse_convolutions(network(Skipping))
    with (
        pytest.warns(NotFusedWarning, match="the call lacks the argument y"),
        pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"),
    ):
        fused(X)


OPTIONS = {"strength": 2.0, "nested": [X, X]}
UNLIKE = [
    ((X,), OPTIONS, "the call has 1 arguments by position, the example 2"),
    (
        (X, X),
        OPTIONS | {"nested": [X]},
        "the arguments are nested in another way than the example's",
    ),
    ((X, X), OPTIONS | {"strength": 3.0}, "argument strength is not 2.0, as the example's"),
    ((X, 1.0), OPTIONS, "argument 1 is of type float, the example's of type Tensor"),
    (
        (X, X.double()),
        OPTIONS,
        "argument 1 is a tensor of torch.float64, the example's of torch.float32",
    ),
    (
        (X, X[:1]),
        OPTIONS,
        "argument 1 has a size of 1 at dimension 0, the example's more than 1",
    ),
    ((X, X[0]), OPTIONS, "argument 1 has 3 dimensions, the example's 4"),
    (
        (X, X),
        OPTIONS | {"nested": [X, 1]},
        "a value in argument nested is of type int, the example's of type Tensor",
    ),
]


@pytest.mark.parametrize(("args", "options", "difference"), UNLIKE)
def test_calls_unlike_the_example(args, options, difference):
    model = pattern(many_kinds)
    fused, report = fuse_convolutions(model, (X, X), OPTIONS)
    assert len(report.fused) == 2
    with torch.no_grad():
        with pytest.warns(NotFusedWarning, match=RUNS.format(re.escape(difference))):
            y = fused(*args, **options)
        torch.testing.assert_close(y, model(*args, **options), rtol=0, atol=0)


def test_other_names_and_sizes():
    fused, _ = fuse_convolutions(pattern(many_kinds), (X, X), OPTIONS)
    difference = (
        "the call has the arguments by name strength, the example the arguments by name strength, "
        "nested"
    )
    with pytest.warns(NotFusedWarning, match=difference), pytest.raises(TypeError):
        fused(X, X, strength=2.0)
    fused, _ = fuse_convolutions(pattern(sizes_that_need_padding), (X,))
    difference = "its sizes take other branches of the code than the example's"
    with pytest.warns(NotFusedWarning, match=difference), torch.no_grad():
        fused(X[:, :, :8, :8])


class Around(nn.Module):
    """Fused blocks in a forward that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Skipping(), Skipping()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, x, x if x.sum() > -1e9 else None)
        return x


def test_each_module_warns_and_so_do_copies():
    fused, report = fuse_convolutions(network(Around))
    assert [entry.name for entry in report.traced] == ["blocks.0", "blocks.1"]
    with torch.no_grad():
        for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            with pytest.warns(NotFusedWarning) as warned:
                each(X)
            names = [str(warning.message).partition(" runs")[0] for warning in warned]
            assert names == ["blocks.0 (Skipping)", "blocks.1 (Skipping)"]
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("default", NotFusedWarning)
            for _ in range(3):
                fused(X)
        assert len(shown) == 2  # once for each place of a call and text


def test_the_warning_as_an_error():
    """It is raised at each such call, and calls like the example run."""
    fused, _ = fuse_convolutions(network(Skipping))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", NotFusedWarning)
        for _ in range(2):
            with pytest.raises(NotFusedWarning, match="argument skip"):
                fused(X, X, skip=X)
        fused(X, X)


def test_training_mode():
    layers = nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    fused, report = fuse_convolutions(nn.Sequential(*layers, nn.Dropout(1.0)).eval())
    assert report.fused
    with torch.no_grad():
        assert fused(X).any()
        fused.train()
        with pytest.warns(NotFusedWarning, match=r"in training mode\. Call eval\(\)$"):
            assert not fused(X).any()  # all is dropped


def test_an_error_after_a_warning():
    fused, _ = fuse_convolutions(network(Skipping))
    with torch.no_grad():
        with pytest.warns(NotFusedWarning):
            fused(X, X, skip=X)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotFusedWarning)
            with pytest.raises(NotFusedWarning):
                fused(X, X, skip=X)


def test_nothing_is_said_of_a_call_that_is_traced():
    fused, _ = fuse_convolutions(network(Skipping))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", NotFusedWarning)
        compiled = torch.compile(fused, fullgraph=True, backend="eager")
        expected = compiled(X, X, X)
        exported = torch.export.export(fused, (X, X, X)).module()
        torch.testing.assert_close(exported(X, X, X), expected, rtol=0, atol=0)
    with torch.no_grad(), pytest.warns(NotFusedWarning):
        torch.testing.assert_close(fused(X, X, X), expected, rtol=0, atol=0)


def test_arguments_may_have_any_name():
    def forward(m, module, graph, name, args):
        return m.wide(m.norm1(m.conv1(module))) + graph.mean() + name.mean() + args.mean()

    model = pattern(forward)
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 2
    options = {"module": X, "graph": 2 * X, "name": 3 * X, "args": 4 * X}
    with torch.no_grad():
        expected = model(**options)
        torch.testing.assert_close(fused(**options), expected, rtol=1e-4, atol=1e-4)
    assert calls_of(lambda _: fused(**options), X)["convolution"] == 0


class Standardized(nn.Module):
    """Has parameters and buffers of layers, and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", random(1, 3, 1, 1))
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x - self.mean))))


def test_other_parameters_and_buffers_are_seen():
    """A fused network that is cast, loaded or moved has other tensors."""
    model, x = Standardized().eval(), random(2, 3, 24, 28)
    fused, report = fuse_convolutions(model)
    assert report.fused
    model, fused = copy.deepcopy(model).double(), copy.deepcopy(fused).double()
    values = {
        name: random(*value.shape, dtype=value.dtype, seed=seed).abs()
        if value.is_floating_point()
        else value
        for seed, (name, value) in enumerate(model.state_dict().items())
    }
    model.load_state_dict(values)
    fused.load_state_dict(values)
    with torch.no_grad():
        torch.testing.assert_close(fused(x.double()), model(x.double()))
        assert fused.to("meta")(x.double().to("meta")).shape == (2, 32, 24, 28)
