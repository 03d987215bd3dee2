"""fuse_convolutions: published networks and single patterns give the picture of the model, by fused
convolutions, and patterns that must stay apart do."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stylekernels
from benchmarks.networks import models
from stylekernels import fuse_convolutions
from stylekernels.fusion.convolve import Convolve
from tests import networks
from tests.conftest import Recorder, assert_accurate, random

# The network, the size of its input, and how many convolutions are fused, norms run alone, and
# convolutions are left.
NETWORKS = {
    "CycleGAN": (lambda: models.cyclegan_resnet(8, 2), (3, 33, 46), (10, 0, 0)),
    "pix2pix": (lambda: models.pix2pix_unet(8, 5), (3, 64, 64), (5, 7, 5)),
    "pix2pix, batch norm": (
        lambda: models.pix2pix_unet(8, 5, nn.BatchNorm2d),
        (3, 32, 64),
        (5, 0, 5),
    ),
    "PatchGAN": (lambda: models.patchgan(8), (3, 64, 72), (4, 0, 1)),
    "Transformer": (lambda: models.Transformer(8, 2), (3, 37, 45), (10, 0, 0)),
    "AdaIN": (lambda: models.adain_decoder(8), (64, 6, 7), (7, 0, 2)),
    "AnimeGAN": (lambda: models.AnimeGan(8), (3, 32, 41), (20, 6, 5)),
    "TransformerNet": (networks.TransformerNet, (3, 41, 33), (6, 0, 0)),
    "CycleGAN, running": (networks.ResnetGenerator, (3, 33, 46), (6, 0, 0)),
    "one ReLU": (lambda: networks.ResnetGenerator(True), (3, 33, 46), (6, 0, 0)),
    "MONAI": (networks.ResidualUnit, (3, 20, 21), (2, 2, 2)),
}


def network(make) -> nn.Module:
    """Return a network in evaluation mode with random parameters and statistics."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
    return model


def calls_of(model: nn.Module, x: Tensor) -> Counter:
    """Return how often each op runs that makes a tensor."""
    with Recorder() as recorder, torch.no_grad():
        model(x)
    return Counter(recorder.ops)


def check(model: nn.Module, x: Tensor) -> stylekernels.conversion.Report:
    """Check the picture of a fused model, and that the model did not change."""
    before, state = x.clone(), copy.deepcopy(model.state_dict())
    fused, report = fuse_convolutions(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double().clone())
        theirs = model(x.clone())
        for _ in range(2):  # the second with packed weights
            assert_accurate(fused(x), theirs, exact)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    return report


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name, layout):
    make, size, counts = NETWORKS[name]
    x = random(2, *size, layout=layout)
    report = check(network(make), x)
    assert (len(report.fused), len(report.alone), len(report.left)) == counts, str(report)


class Blocks(nn.Module):
    """Layers for the patterns below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.wide = nn.Conv2d(3, 3, 5)
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)
        self.norm1, self.norm2 = (nn.InstanceNorm2d(3, affine=True) for _ in range(2))
        self.group, self.batch = nn.GroupNorm(3, 3), nn.BatchNorm2d(3)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.drop, self.same = nn.Dropout(0.5), nn.Identity()


def two_readers(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    return m.conv2(y) + m.wide(F.pad(y, (2, 2, 2, 2), "replicate"))


def a_use_before_the_convolution(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    z = y.mean((2, 3), keepdim=True)
    return m.conv2(y) * z


def a_use_after_the_convolution(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    z = m.conv2(y)
    return z * y.mean((2, 3), keepdim=True)


def a_chain_of_sums(m, x):
    y = F.silu(m.norm1(m.conv1(x)))
    y = y + m.norm2(m.conv2(y))
    y = m.norm1(m.conv3(y)) + y
    return m.conv1(y) + y


def a_sum_before_the_activation(m, x):
    y = m.relu(m.norm1(m.conv1(x)) + x)
    return m.conv2(y) + y


def a_sum_of_two_norms(m, x):
    return m.conv3(m.norm1(m.conv1(x)) + m.norm2(m.conv2(x)))


def a_smaller_term(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + x.mean((2, 3), keepdim=True))


def a_number(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + 0.5)


def twice_itself(m, x):
    y = m.norm1(m.conv1(x))
    return m.conv2(y + y)


def in_place_on_a_value_in_use(m, x):
    y = m.norm1(m.conv1(x))
    z = m.conv2(m.relu_(y))
    return y + z  # y is the activated value


def in_place_on_what_was_normalised(m, x):
    y = m.conv1(x)
    z = m.norm1(y)
    y *= -2
    return m.conv2(z) + y


def in_place_on_a_view(m, x):
    y = m.conv1(x)
    return m.conv2(m.relu_(y[:, :3])) + m.conv3(m.relu_((x - y).detach())) + y


def in_place_on_a_detached_value(m, x):
    y = m.conv1(x)
    return m.conv2(m.relu_(y.detach())) + y


def in_place_sum_of_a_value_in_use(m, x):
    y = m.conv1(x)
    z = y
    z += m.norm1(m.conv2(x))
    return m.conv3(z) + y


def a_term_in_use(m, x):
    y = m.norm1(m.conv1(x))
    return F.relu(y + x) * y


def in_place_on_a_term(m, x):
    y = m.conv1(x)
    z = m.norm1(m.conv2(x)) + y
    y.mul_(2)
    return m.conv3(z) + y


def in_place_on_what_was_padded(m, x):
    y = m.conv1(x)
    z = F.pad(y, (2, 2, 2, 2), mode="reflect")
    y.mul_(2)
    return m.wide(z) + y


def in_place_sum(m, x):
    y = m.norm1(m.conv1(x))
    y += x
    return m.conv2(y) + y


def two_norms_of_one_value(m, x):
    y = m.conv1(x)
    return m.conv2(F.relu(m.norm1(y))) + m.conv3(m.norm2(y))


def one_layer_twice(m, x):
    return m.conv1(m.norm1(m.conv1(m.norm1(m.conv1(x)))))


def groups_and_running_statistics(m, x):
    return m.conv3(F.gelu(m.batch(m.conv2(F.leaky_relu(m.group(m.conv1(x)), 0.3)))))


def idle_layers_between(m, x):
    return m.conv2(m.same(m.relu(m.drop(m.norm1(m.same(m.conv1(x)))))))


def upsampled_and_padded(m, x):
    y = F.interpolate(m.relu(m.norm1(m.conv1(x))), scale_factor=2)
    return m.wide(F.pad(y, (2, 2, 2, 2), mode="reflect"))


def upsampled_otherwise(m, x):
    y = F.interpolate(m.norm1(m.conv1(x)), scale_factor=2, mode="bilinear")
    y = F.interpolate(m.norm2(m.conv2(y)), size=(20, 30))
    return m.conv3(F.interpolate(y, scale_factor=3))


def padded_otherwise(m, x):
    y = F.pad(m.norm1(m.conv1(x)), (1, 2, 1, 2), mode="reflect")
    y = m.conv2(F.pad(m.norm2(y), (1, 1, 1, 1)))  # conv2 pads as well
    return m.wide(F.pad(y, (2, 2, 2, 2), value=1.0))


def transposed(m, x):
    return m.up(m.relu(m.norm1(m.up(m.norm2(x)))))


def a_size_of_its_own(m, x):
    return m.up(m.relu(m.norm1(x)), output_size=[2 * n + 1 for n in (9, 11)])


# The pattern, and how many norms run before the convolutions that read them.
PATTERNS = {
    two_readers: 0,
    a_use_before_the_convolution: 1,
    a_use_after_the_convolution: 0,
    a_chain_of_sums: 0,
    a_sum_before_the_activation: 1,
    a_sum_of_two_norms: 1,
    a_smaller_term: 0,
    a_number: 1,
    twice_itself: 1,
    in_place_on_a_value_in_use: 1,
    in_place_on_what_was_normalised: 0,
    in_place_on_a_view: 0,
    in_place_on_a_detached_value: 0,
    in_place_sum_of_a_value_in_use: 1,
    a_term_in_use: 1,
    in_place_on_a_term: 1,
    in_place_on_what_was_padded: 0,
    in_place_sum: 0,
    two_norms_of_one_value: 0,
    one_layer_twice: 0,
    groups_and_running_statistics: 0,
    idle_layers_between: 0,
    upsampled_and_padded: 0,
    upsampled_otherwise: 2,
    padded_otherwise: 2,
    transposed: 0,
    a_size_of_its_own: 1,
}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_patterns(pattern):
    kind = type("Pattern", (Blocks,), {"forward": pattern})
    model, x = network(kind), random(2, 3, 9, 11)
    check(model, x)
    materialised = calls_of(fuse_convolutions(model)[0], x)
    assert materialised["instance_norm"] == PATTERNS[pattern], materialised


class Branching(nn.Module):
    """A forward that `torch.fx` cannot follow, around blocks that it can."""

    def __init__(self) -> None:
        super().__init__()
        block = models.Residual(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3), nn.ReLU())
        self.blocks = nn.ModuleList(
            [block, models.Residual(*block, nn.Conv2d(3, 3, 5, 1, 2)), block]
        )
        self.last = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if x.sum() > -1e9 else x
        return self.last(x)


def test_blocks_of_a_network_that_cannot_be_traced():
    report = check(network(Branching), random(2, 3, 9, 11))
    assert [entry.name for entry in report.fused] == ["blocks.0.0", "blocks.1.0", "blocks.1.3"]
    assert {entry.name: entry.why for entry in report.left} == {
        "last": "its caller cannot be traced",
    }


def test_a_converted_network_and_one_of_our_norms():
    model = network(lambda: models.cyclegan_resnet(8, 1))
    plain, x = fuse_convolutions(model)[1], random(1, 3, 20, 24)
    converted, _ = stylekernels.convert(copy.deepcopy(model))
    assert fuse_convolutions(converted)[1] == plain
    check(converted, x)
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        stylekernels.nn.InstanceNorm2d(8, activation="leaky_relu", negative_slope=0.3),
        nn.Conv2d(8, 3, 3),
    ).eval()
    report = check(ours, x)
    assert report.fused[1].why == "with the leaky_relu, InstanceNorm2d before it"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv1.register_forward_hook(lambda *args: None),
        lambda m: nn.utils.parametrizations.spectral_norm(m.conv1),
        lambda m: nn.utils.parametrizations.weight_norm(m.conv1),
        lambda m: setattr(m, "conv1", nn.Conv2d(3, 3, 3, padding=2, dilation=2)),
        lambda m: setattr(m, "conv1", nn.Conv2d(3, 3, 3, padding=1, groups=3)),
        lambda m: setattr(m, "conv1", nn.Conv2d(3, 3, 3, 3, padding=11)),
        lambda m: setattr(m, "conv1", nn.Conv2d(3, 3, (3, 1), padding=(1, 0))),
        lambda m: setattr(m, "conv1", nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")),
        lambda m: setattr(m, "conv1", type("Mine", (nn.Conv2d,), {})(3, 3, 3, padding=1)),
        lambda m: setattr(m.conv1, "forward", lambda x: 2 * x),
    ],
)
def test_convolutions_that_stay(change):
    def pattern(m, x):
        return m.conv1(m.norm1(m.conv2(x)))

    model = network(type("Pattern", (Blocks,), {"forward": pattern}))
    change(model.train())
    report = check(model.eval(), random(2, 3, 9, 11))
    assert [entry.name for entry in report.fused] == ["conv2"]
    assert [entry.name for entry in report.left] == ["conv1"]
    assert [entry.name for entry in report.alone] == ["norm1"]


def test_a_norm_with_a_hook_stays():
    def pattern(m, x):
        return m.conv1(m.norm1(m.conv2(x)))

    model, seen = network(type("Pattern", (Blocks,), {"forward": pattern})), []
    model.norm1.register_forward_hook(lambda module, args, output: seen.append(output))
    check(model, random(2, 3, 9, 11))
    assert len(seen) == 4  # twice by the model, twice by the fused one


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings(padding):
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 8, 5, padding=padding)).eval()
    assert len(check(model, random(2, 3, 9, 11)).fused) == 1


def small() -> nn.Module:
    return network(lambda: models.Transformer(4, 1))


def test_changed_weights_are_noticed():
    model, x = small(), random(1, 3, 24, 28)
    fused, _ = fuse_convolutions(model)
    with torch.no_grad():
        before = fused(x)
        for parameter in model.parameters():  # those of the fused network as well
            parameter.mul_(1.1)
        assert_accurate(fused(x), model(x), copy.deepcopy(model).double()(x.double()))
        assert (fused(x) - before).abs().max() > 0.01
        model.load_state_dict(network(lambda: models.Transformer(4, 1)).state_dict())
        torch.testing.assert_close(fused(x), before)


def test_weights_are_packed_once():
    model, x = small(), random(1, 3, 24, 28)
    fused, report = fuse_convolutions(model)
    assert calls_of(fused, x)["norm_conv2d_pack"] == len(report.fused) == 8
    assert calls_of(fused, x)["norm_conv2d_pack"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model, x = small().to(dtype), random(2, 3, 24, 28).to(dtype)
    fused, _ = fuse_convolutions(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert_accurate(fused(x), model(x), exact)


def test_copies_files_and_compilers():
    model, x = small(), random(2, 3, 24, 28)
    fused, _ = fuse_convolutions(model)
    with torch.no_grad():
        y = fused(x)
        for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            torch.testing.assert_close(copied(x), y, rtol=0, atol=0)
            assert not {p.data_ptr() for p in copied.parameters()} & {
                p.data_ptr() for p in fused.parameters()
            }
        torch.testing.assert_close(torch.compile(fused, fullgraph=True)(x), y)
        exported = torch.export.export(fused, (x,)).module()
        torch.testing.assert_close(exported(x), y)
        with stylekernels.use_impl("reference"):
            torch.testing.assert_close(fused(x), y, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert fused(x).dtype == torch.bfloat16
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), y, rtol=0, atol=0)


def test_gradients_are_refused():
    fused, _ = fuse_convolutions(small())
    with pytest.raises(RuntimeError, match=r"no gradient.*torch\.no_grad\(\)"):
        fused(random(1, 3, 24, 28))


def test_wrong_inputs_are_refused():
    fused, _ = fuse_convolutions(small())
    with torch.no_grad():
        with pytest.raises(ValueError, match="x: expected"):
            fused(random(3, 24, 28))
        with pytest.raises(ValueError, match="weight"):
            fused(random(1, 4, 24, 28))
        assert fused(random(0, 3, 24, 28)).shape == (0, 3, 24, 28)


def test_models_that_are_refused():
    with pytest.raises(TypeError, match=r"model: expected an eager torch\.nn\.Module, got str"):
        fuse_convolutions("model")
    with pytest.raises(ValueError, match=r"evaluation mode.*model\.eval\(\)"):
        fuse_convolutions(small().train())


def test_a_network_without_convolutions_is_a_copy():
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()).eval()
    fused, report = fuse_convolutions(model)
    assert fused is not model
    assert type(fused) is nn.Sequential
    assert report == stylekernels.conversion.Report()


def test_only_fused_convolutions_are_added():
    fused, report = fuse_convolutions(network(lambda: models.cyclegan_resnet(8, 1)))
    found = [module for module in fused.modules() if isinstance(module, Convolve)]
    assert len(found) == len(report.fused) == 8
    assert not list(found[0].parameters())
