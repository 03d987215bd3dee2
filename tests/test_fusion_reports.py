"""fuse_convolutions: what its report says, what becomes of modules that cannot be traced, and that
nothing else is printed."""

import copy
import logging
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from stylekernels import convert, fuse_convolutions
from tests.conftest import random
from tests.fusion import Blocks, calls_of, check, network
from tests.test_fusion_export import pattern

X = random(2, 3, 9, 11)


class Loop(nn.Module):
    """A forward that depends on values, with its layers in a list, after a block."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU()
        self.head = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1))
        self.norm, self.act = nn.InstanceNorm2d(8, affine=True), nn.ReLU()
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.head(x)))
        for layer in self.layers:
            x = layer(x) if x.mean() < 1e9 else x
        return x


def test_a_network_of_which_only_a_block_can_be_traced():
    text = str(check(network(Loop), X, (X,)))
    with open(__file__, encoding="utf-8") as file:
        line = next(n for n, line in enumerate(file, 1) if "if x.mean() < 1e9" in line)
    place = f"(test_fusion_reports.py:{line})"
    assert text.splitlines() == [
        "not traced: 1",
        "  (model)   Loop            torch.fx: its code branches on values or sizes of tensors "
        f"{place}; torch.export: its code branches on values of tensors {place}",
        "traced: 1",
        "  head      Sequential      by torch.fx",
        "fused: 2",
        "  head.0    Conv2d          takes the statistics for the norm after it",
        "  head.3    Conv2d          with the InstanceNorm2d, relu before it",
        "replaced alone: nothing",
        "left: 3",
        "  norm      InstanceNorm2d  in (model), which was not traced",
        "  layers.0  Conv2d          in (model), which was not traced",
        "  layers.1  GroupNorm       in (model), which was not traced",
    ]


def test_what_convert_did_stays_where_nothing_can_be_traced():
    """The norms of the list and of the forward run by our ops, with their activations."""
    model = network(Loop)
    before = fuse_convolutions(model)[1]
    convert(model)
    fused, report = fuse_convolutions(model)
    assert report.fused == before.fused
    assert report.traced == before.traced
    assert report.untraced == before.untraced
    stays = "in (model), which was not traced"
    assert {entry.name: entry.why for entry in report.left} == {
        "norm": f"{stays}; it runs as `convert` made it",
        "layers.0": stays,
        "layers.1": f"{stays}; it runs as `convert` made it",
    }
    check(model, X)
    assert [type(each) for each in fused.modules()] == [type(each) for each in model.modules()]
    theirs, ours = calls_of(model, X), calls_of(fused, X)
    assert theirs["instance_norm"] == 3  # a group norm is the same op
    assert ours["instance_norm"] == 2  # the other one is a convolution's
    assert ours["relu"] == theirs["relu"] == ours["native_group_norm"] == 0


def test_a_call_unlike_the_example_runs_what_convert_made():
    class Skipping(Blocks):
        def forward(self, x, skip=None):
            return self.wide(self.relu(self.norm1(self.conv1(x)))) + (0 if skip is None else skip)

    model, _ = convert(network(Skipping))
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 2
    with pytest.warns(UserWarning, match="argument skip"):
        calls = calls_of(lambda x: fused(x, skip=1.0), X)
    assert calls["instance_norm"] == 1
    assert calls["relu"] == 0


def test_a_norm_that_two_modules_call_stays_converted_in_the_other():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            norm = nn.InstanceNorm2d(3)
            self.first = nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), norm, nn.Conv2d(3, 3, 5))
            self.norm, self.act = norm, nn.ReLU()

        def forward(self, x):
            x = self.first(x) if x.sum() != 0 else x
            return self.act(self.norm(x))

    model, _ = convert(network(Shared))
    fused, report = fuse_convolutions(model)
    check(model, X)
    assert len(report.fused) == 2
    assert calls_of(fused, X)["instance_norm"] == 1


def test_reasons_that_are_the_same_are_said_once():
    model = pattern(lambda m, *images: m.wide(m.norm1(m.conv1(images[0]))))
    model.register_forward_hook(lambda *_: None)
    why = "it has hooks; remove them first"
    for args in (None, (X,)):
        report = fuse_convolutions(model, args)[1]
        assert report.untraced == [("", "Pattern", why, ())]


def test_a_forward_of_the_instance_runs():
    """torch.fx would follow that of the class."""
    model = pattern(lambda m, x: m.wide(m.norm1(m.conv1(x))))
    model.forward = lambda x: 3 * model.conv2(model.norm1(x))
    for args in (None, (X,)):
        fused, report = fuse_convolutions(model, args)
        why = "its forward was replaced on the instance; define it in a class"
        assert report.untraced == [("", "Pattern", why, ())]
        with torch.no_grad():
            torch.testing.assert_close(fused(X), model(X), rtol=0, atol=0)


def test_a_fused_network_is_fused_anew():
    model = pattern(lambda m, *images: m.wide(m.norm1(m.conv1(images[0]))))
    fused, report = fuse_convolutions(model, (X,))
    again, of_it = fuse_convolutions(fused, (X[:1],))
    assert of_it.fused == report.fused
    assert "where a size of 1 stays 1" in of_it.traced[0].why
    without, of_it = fuse_convolutions(fused)
    assert not of_it.fused
    with torch.no_grad():
        expected = model(X)
        torch.testing.assert_close(without(X), expected, rtol=0, atol=0)
        torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(X[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_the_model_runs_only_for_modules_in_one_that_cannot_be_traced():
    runs = []

    def following(m, x):
        runs.append(type(x))
        return m.wide(m.norm1(m.conv1(x)))

    assert fuse_convolutions(pattern(following), (X,))[1].fused
    assert Tensor not in runs
    model = network(Loop)
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append(args))
    fuse_convolutions(model, (X,))
    assert len(seen) == 1


def assigning(m, *images):
    m.last = m.norm1(m.conv1(images[0]))
    return m.wide(m.last)


def branching(m, *images):
    count = images[0].nonzero().shape[0]
    return m.wide(m.norm1(m.conv1(images[0]))) * (2 if count > 3 else 1)


@pytest.mark.parametrize("make", [Loop, lambda: pattern(assigning), lambda: pattern(branching)])
def test_nothing_is_printed(make, capfd, caplog):
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export._trace")]
    levels = [logger.level for logger in loggers]
    filters = copy.copy(warnings.filters)
    model = network(make)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        report = fuse_convolutions(model, (X,))[1]
    assert report.traced or report.untraced
    assert capfd.readouterr() == ("", "")
    assert not warned
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [logger.level for logger in loggers] == levels
    assert warnings.filters == filters
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


def test_errors_of_the_model_are_raised():
    def failing(m, *images):
        if images[0].sum() != 0:
            raise ValueError("no such picture")
        return m.wide(m.norm1(m.conv1(images[0])))

    with pytest.raises(ValueError, match="no such picture"):
        fuse_convolutions(pattern(failing), (X,))


def test_norms_that_stay_have_a_reason():
    def forward(m, x):
        return m.wide(m.group(m.batch(m.norm2(m.norm1(x)))))

    model = pattern(forward)
    own = {"forward": lambda self, x: 2 * nn.InstanceNorm2d.forward(self, x)}
    model.norm1 = type("Mine", (nn.InstanceNorm2d,), own)(3).eval()
    model.norm2.register_forward_hook(lambda *_: None)
    model.batch = nn.BatchNorm2d(3, track_running_stats=False).eval()
    left = {entry.name: entry.why for entry in check(model, X).left}
    assert left["norm1"] == "a subclass of InstanceNorm2d that defines forward"
    assert left["norm2"] == "it has hooks or a forward of its own; remove them first"
    assert left["batch"] == "it takes the statistics of the whole batch"
    assert "group" not in left


def test_a_subclass_that_adds_nothing_is_a_norm():
    model = pattern(lambda m, x: m.wide(m.norm1(x)))
    model.norm1 = type("Mine", (nn.InstanceNorm2d,), {})(3).eval()
    assert [entry.why for entry in check(model, X).fused] == ["with the Mine before it"]


def test_convolutions_without_a_norm_have_a_reason():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Conv2d(8, 64, 1)
    model = network(lambda: nn.Sequential(nn.Conv2d(3, 3, 5), *layers, nn.Conv2d(64, 64, 1)))
    report = check(model, X)
    assert {entry.name: entry.why for entry in report.fused + report.left} == {
        "0": "alone: faster than PyTorch's",
        "1": "takes the statistics for the norm after it",
        "3": "with the InstanceNorm2d before it",
        "4": "no norm before it: PyTorch is as fast",
    }


def test_weights_made_in_inference_mode() -> None:
    """PyTorch counts no changes of them: none is missed, and the report tells what that costs."""
    with torch.inference_mode():
        model = network(Loop).head
        fused, report = fuse_convolutions(model)
        assert all("made in inference mode" in entry.why for entry in report.fused)
        torch.testing.assert_close(fused(X), model(X))
        model[3].weight.mul_(2.0)
        torch.testing.assert_close(fused(X), model(X))


def test_many_layers_that_are_left_for_one_reason_are_one_line():
    class Volumes(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.first = nn.Conv3d(1, 2, 3)
            self.layers = nn.Sequential(*(nn.Conv3d(2, 2, 3) for _ in range(count)))
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.dim() == 4 else self.layers(self.first(x))

    why = "not of images (N, C, H, W); `convert` runs such norms"
    report = fuse_convolutions(Volumes(4).eval())[1]
    assert len(report.left) == 7
    assert str(report).splitlines()[-4:] == [
        "left: 7",
        f"  (5 modules)  Conv3d          {why}: first, layers.0, layers.1, ...",
        "  conv         Conv2d          in (model), which was not traced",
        "  norm         InstanceNorm2d  in (model), which was not traced",
    ]
    few = fuse_convolutions(Volumes(2).eval())[1]
    assert [line.split()[0] for line in str(few).splitlines()[-5:]] == [
        "first",
        "layers.0",
        "layers.1",
        "conv",
        "norm",
    ]


class Named(nn.Module):
    """A block whose convolution and norms are in a module of a name."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.part = nn.Module()
        self.part.conv = nn.Conv2d(3, channels, 5)
        self.part.norm1, self.part.norm2 = (nn.InstanceNorm2d(3, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.part.norm2(self.part.conv(self.part.norm1(x)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("gradients", r"^part\.conv: norm_conv2d has no gradient, but weight"),
        ("channels", r"^part\.conv: weight: expected shape \(Cout, Cin"),
        ("image", r"^part\.norm1: x: expected shape \(N, C, H, W\)"),
    ],
)
def test_errors_of_a_fused_network_name_the_layer(changed, message):
    model = network(Named)
    fused, report = fuse_convolutions(model)
    assert {entry.name for entry in report.fused} == {"part.conv"}
    x = X
    if changed == "channels":
        model.part.conv.weight.data = random(3, 4, 5, 5)
    if changed == "image":
        x = X[0]
    errors = RuntimeError, ValueError
    recorded = torch.set_grad_enabled(changed == "gradients")
    with recorded, pytest.raises(errors, match=message) as caught:
        fused(x)
    assert type(caught.value.__cause__) is type(caught.value)
    assert str(caught.value).endswith(str(caught.value.__cause__))
