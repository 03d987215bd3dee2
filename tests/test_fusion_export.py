"""fuse_convolutions where torch.fx cannot follow a forward and torch.export can, with an example:
the same pictures for other sizes too, and the model's own forward for calls of another kind."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stylekernels import convert, fuse_convolutions, revert
from tests.conftest import assert_accurate, random
from tests.fusion import Blocks, calls_of, check, network
from tests.test_fusion_patterns import PATTERNS

ARGUMENTS = "its forward takes *args, **options or required keywords"
BRANCH = r"its code branches on values or sizes of tensors \(test_fusion_export\.py:\d+\)"


def any_number(m, *images):
    return m.wide(m.relu(m.norm1(sum(map(m.conv1, images)))))


def a_required_name(m, x, *, scale):
    return m.wide(m.relu(m.norm1(m.conv1(x)))) * scale


def sizes_that_need_padding(m, x):
    """As a network has it whose images must have multiples of 4 pixels."""
    height, width = x.shape[2:]
    if height % 4 or width % 4:
        x = F.pad(x, (0, -width % 4, 0, -height % 4), "reflect")
    return m.conv2(m.relu(m.norm1(m.conv1(x))))[:, :, :height, :width]


def a_skip_of_another_size(m, x):
    """As in a U-Net for images of any size."""
    y = m.up(m.relu(m.norm1(F.avg_pool2d(m.conv1(x), 2))))
    if y.shape[2:] != x.shape[2:]:
        y = F.interpolate(y, size=x.shape[2:])
    return m.conv3(m.norm2(torch.cat([y, x], 1)[:, :3]))


def a_dictionary(m, given):
    y = m.relu_(m.norm1(m.conv1(given["photo"])))
    return {"picture": m.wide(y), "rest": [y.mean((2, 3)), None, 3]}


def layers_in_a_list(m, x, chosen):
    for index in chosen:
        x = (m.conv1, m.norm1, m.relu, m.wide)[index](x)
    return x


def a_branch_on_a_number(m, x, strength):
    return m.wide(m.relu(m.norm1(m.conv1(x)))) if strength > 0.5 else m.conv2(x)


def image(*size: int, seed: int = 0) -> Tensor:
    return random(*size, seed=seed)


# The forward, an example of a call, other calls for its graph, and calls for the model's own.
KINDS = {
    any_number: (
        [image(2, 3, 9, 11), image(2, 3, 9, 11, seed=1)],
        {},
        [([image(3, 3, 20, 12, seed=n) for n in range(2)], {})],
        [([image(1, 3, 9, 11)] * 2, {}), ([image(2, 3, 9, 11)] * 3, {})],
    ),
    a_required_name: (
        [image(1, 3, 9, 11)],
        {"scale": 3},
        [([image(1, 3, 30, 12)], {"scale": 3})],
        [([image(1, 3, 9, 11)], {"scale": 3.5}), ([image(2, 3, 9, 11)], {"scale": 3})],
    ),
    sizes_that_need_padding: (
        [image(2, 3, 9, 11)],
        {},
        [([image(2, 3, 17, 22)], {}), ([image(3, 3, 10, 9)], {})],
        [([image(2, 3, 8, 12)], {})],
    ),
    a_skip_of_another_size: (
        [image(2, 3, 9, 12)],
        {},
        [([image(3, 3, 21, 30)], {})],
        [([image(2, 3, 12, 12)], {})],
    ),
    a_dictionary: (
        [{"photo": image(2, 3, 9, 11)}],
        {},
        [([{"photo": image(2, 3, 18, 7)}], {})],
        [([{"photo": image(2, 3, 9, 11), "note": "x"}], {})],
    ),
    layers_in_a_list: (
        [image(2, 3, 9, 11), [0, 1, 2, 3]],
        {},
        [([image(2, 3, 18, 7), [0, 1, 2, 3]], {})],
        [([image(2, 3, 9, 11), [0, 3]], {})],
    ),
    a_branch_on_a_number: (
        [image(2, 3, 9, 11)],
        {"strength": 0.7},
        [([image(2, 3, 18, 7)], {"strength": 0.7})],
        [([image(2, 3, 18, 7)], {"strength": 0.3})],
    ),
}


def pattern(forward) -> nn.Module:
    return network(type("Pattern", (Blocks,), {"forward": forward}))


class Nested(Blocks):
    forward = a_dictionary


def doubled(values: object) -> object:
    return pytree.tree_map_only(Tensor, Tensor.double, values)


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")
@pytest.mark.parametrize("forward", KINDS, ids=lambda forward: forward.__name__)
def test_networks_that_only_export_follows(forward):
    args, options, alike, others = KINDS[forward]
    model = pattern(forward)
    fused, report = fuse_convolutions(model, tuple(args), options)
    (entry,) = report.traced
    assert entry[:2] == ("", "Pattern")
    assert entry.why.startswith("by torch.export, for calls like the example")
    assert ("where a size of 1 stays 1" in entry.why) == (forward is a_required_name)
    assert "; not by torch.fx: " in entry.why
    assert str(report).startswith("traced: 1\n  (model)")
    assert len(report.fused) >= 1
    exact_model, runs = copy.deepcopy(model).double(), []
    for args_, options_ in [(args, options), *alike, *others]:
        with torch.no_grad():
            theirs, structure = pytree.tree_flatten(model(*args_, **options_))
            ours, structure_of_ours = pytree.tree_flatten(fused(*args_, **options_))
            exact = pytree.tree_leaves(exact_model(*doubled(args_), **doubled(options_)))
        assert structure_of_ours == structure
        for y, reference, each in zip(ours, theirs, exact, strict=True):
            if isinstance(y, Tensor):
                assert_accurate(y, reference, each, at_least=5e-6)
            else:
                assert y == reference
        counts = [
            calls_of(lambda _, run=run: run(*args_, **options_), args)["convolution"]  # noqa: B023
            for run in (fused, model)
        ]
        runs.append(counts[0] < counts[1])
    assert runs == [True] * (1 + len(alike)) + [False] * len(others)


@pytest.mark.parametrize("forward", PATTERNS, ids=lambda forward: forward.__name__)
def test_patterns(forward):
    """The patterns of torch.fx, with what ATen's ops are in its graphs. There, a value that was
    changed in place is another one, so that fewer norms have to be written."""
    x = random(2, 3, 9, 11)
    model = pattern(lambda m, *images: forward(m, *images))
    report = check(model, x, (x,))
    assert [entry.why.partition(";")[2] for entry in report.traced] == [
        f" not by torch.fx: {ARGUMENTS}"
    ]
    by_fx = fuse_convolutions(pattern(forward))[1]
    if by_fx.traced:
        assert [entry.name for entry in report.fused] == [entry.name for entry in by_fx.fused]
    written = calls_of(fuse_convolutions(model, (x,))[0], x)["instance_norm"]
    assert written == PATTERNS[forward] or (
        written == 0 and forward.__name__.startswith("in_place")
    )


class Blind(nn.Module):
    """A forward that depends on values, around blocks of which one depends on sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 5))
        self.padding = type("Pattern", (Blocks,), {"forward": sizes_that_need_padding})()
        self.uncalled = type("Pattern", (Blocks,), {"forward": any_number})()
        self.last = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.padding(self.plain(x)) if x.sum() > -1e9 else x)


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")
def test_modules_of_a_network_that_neither_can_trace():
    model, x = network(Blind), random(2, 3, 17, 19)
    report = check(model, x, (x,))
    traced = {entry.name: entry.why for entry in report.traced}
    assert traced.keys() == {"plain", "padding"}
    assert traced["plain"] == "by torch.fx"
    how = f"by torch.export, for calls like the example; not by torch.fx: {BRANCH}"
    assert re.fullmatch(how, traced["padding"])
    network_itself, uncalled = report.untraced
    assert network_itself[:2] == ("", "Blind")
    assert re.fullmatch(
        f"torch.fx: {BRANCH}; torch.export: {BRANCH.replace(' or sizes', '')}", network_itself.why
    )
    why = f"{ARGUMENTS}; the example does not call it, pass one that does"
    assert uncalled == ("uncalled", "Pattern", why, ())
    left = {entry.name: entry.why for entry in report.left}
    assert left["last"] == "in (model), which was not traced"
    assert left["uncalled.conv1"] == "in uncalled, which was not traced"
    fused, _ = fuse_convolutions(model, (x,))
    other = random(3, 3, 31, 26)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(other.double())
        assert_accurate(fused(other), model(other), exact, at_least=5e-6)


def test_the_report_without_an_example():
    report = fuse_convolutions(pattern(any_number))[1]
    why = f"{ARGUMENTS}; pass args, an example of a call, to try torch.export"
    assert report.untraced == [("", "Pattern", why, ())]
    assert {entry.why for entry in report.left} == {"in (model), which was not traced"}


def a_constant_tensor(m, *images):
    return m.wide(m.norm1(m.conv1(images[0]))) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]


def another_precision(m, *images):
    with torch.autocast("cpu", torch.bfloat16):
        return m.wide(m.norm1(m.conv1(images[0])))


@pytest.mark.parametrize("forward", [a_constant_tensor, another_precision])
def test_graphs_that_are_not_taken(forward):
    model, x = pattern(forward), random(2, 3, 9, 11)
    fused, report = fuse_convolutions(model, (x,))
    assert not report.traced
    assert report.untraced[0].why == (
        f"torch.fx: {ARGUMENTS}; torch.export: its forward makes a constant tensor, which can be a "
        "buffer, or it changes autocast or gradients inside"
    )
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)


def test_hooks_run():
    def forward(m, *images):
        return m.wide(m.norm1(m.same(m.conv1(images[0]))))

    model, x, seen = pattern(forward), random(2, 3, 9, 11), []
    model.same.register_forward_hook(lambda *args: seen.append(args))
    fused, report = fuse_convolutions(model, (x,))
    assert report.untraced[0].why.endswith("torch.export: same has hooks; remove them first")
    seen.clear()
    with torch.no_grad():
        fused(x)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")
def test_other_dtypes_run_the_model():
    """The graph would have the example's dtype."""

    def forward(m, *images):
        scale = torch.full((3, 1, 1), 2.0, dtype=images[0].dtype)
        return m.wide(m.norm1(m.conv1(images[0]))) * scale

    model, x = pattern(forward), random(2, 3, 9, 11)
    fused, report = fuse_convolutions(model, (x,))
    assert len(report.fused) == 2
    fused.double()  # the model as well
    with torch.no_grad():
        y = fused(x.double())
        assert y.dtype == torch.float64
        torch.testing.assert_close(y, model(x.double()), rtol=0, atol=0)


def test_a_forward_that_changes_the_module():
    def counting(m, *images):
        m.count += 1
        m.last = m.norm1(m.conv1(images[0]))
        return m.wide(m.last) * m.count

    model, x = pattern(counting), random(2, 3, 9, 11)
    fused, report = fuse_convolutions(model, (x,))
    assert len(report.fused) == 2
    assert model.count == 0
    assert not hasattr(model, "last")
    with torch.no_grad():
        once, twice = fused(x), model(x)
    assert model.count == fused.count == 2
    torch.testing.assert_close(once * 2, twice, rtol=1e-4, atol=1e-4)


def test_converted_and_reverted():
    """fuse_convolutions leaves the model to convert and revert, before and after it."""
    model, x = pattern(any_number), random(2, 3, 9, 11)
    classes = [type(module) for module in model.modules()]
    plain = fuse_convolutions(model, (x, x))[1]
    converted = [type(module) for module in convert(model)[0].modules()]
    fused, report = fuse_convolutions(model, (x, x))
    assert (report.fused, report.traced) == (plain.fused, plain.traced)
    assert [type(module) for module in fused.modules()] == converted != classes
    assert [type(module) for module in revert(model).modules()] == classes
    assert fused.load_state_dict(model.state_dict())
    with torch.no_grad():
        before = fused(x, x)
        torch.testing.assert_close(before, model(x, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(revert(fused)(x, x), before, rtol=0, atol=0)


def test_copies_files_and_compilers():
    model = network(Nested)
    (given,), _, [(other, _)], _ = KINDS[a_dictionary]
    fused, _ = fuse_convolutions(model, (given,))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        expected = fused(*other)["picture"]
        for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            torch.testing.assert_close(copied(*other)["picture"], expected, rtol=0, atol=0)
            assert calls_of(lambda x: copied(x), other[0])["convolution"] == 0  # noqa: B023
        compiled = torch.compile(fused, fullgraph=True)
        torch.testing.assert_close(compiled(*other)["picture"], expected)
        exported = torch.export.export(fused, tuple(other)).module()
        torch.testing.assert_close(exported(*other)["picture"], expected)


def test_wrong_examples_are_refused():
    model, x = pattern(any_number), random(2, 3, 9, 11)
    with pytest.raises(TypeError, match=r"args: expected a tuple, got Tensor; pass .* \(photo,\)"):
        fuse_convolutions(model, x)
    with pytest.raises(TypeError, match=r"kwargs: expected a dict, got list; pass .* by name"):
        fuse_convolutions(model, (x,), [x])
    with pytest.raises(TypeError, match=r"kwargs: expected names as keys, got 3; pass .* by name"):
        fuse_convolutions(model, (x,), {3: x})
    with pytest.raises(RuntimeError, match="channels"):  # the model's own
        fuse_convolutions(model, (x[:, :2],))
