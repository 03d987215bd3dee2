"""fuse_convolutions: published networks and single patterns give the picture of the model, by fused
convolutions, and patterns that must stay apart do."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stylekernels
from benchmarks.networks import models
from stylekernels import fuse_convolutions
from stylekernels.fusion.convolve import Convolve
from tests import networks
from tests.conftest import assert_accurate, random
from tests.fusion import Blocks, calls_of, check, network

# The network, the size of its input, and how many convolutions are fused, norms run alone, and
# convolutions are left.
NETWORKS = {
    "CycleGAN": (lambda: models.cyclegan_resnet(8, 2), (3, 33, 46), (10, 0, 0)),
    "pix2pix": (lambda: models.pix2pix_unet(8, 5), (3, 64, 64), (7, 7, 3)),
    "pix2pix, batch norm": (
        lambda: models.pix2pix_unet(8, 5, nn.BatchNorm2d),
        (3, 32, 64),
        (7, 0, 3),
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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name, layout):
    make, size, counts = NETWORKS[name]
    x = random(2, *size, layout=layout)
    report = check(network(make), x)
    assert (len(report.fused), len(report.alone), len(report.left)) == counts, str(report)


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
    assert report.left == [("last", "Conv2d", "in (model), which was not traced", ())]


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
    assert report.fused[1].why == "with the InstanceNorm2d, leaky_relu before it"


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
    uncalled = {"conv3", "wide", "up"}
    assert [entry.name for entry in report.left if entry.name not in uncalled] == ["conv1"]
    assert [entry.name for entry in report.alone] == ["norm1"]


def test_layers_that_are_not_called_are_told_of():
    def pattern(m, x):
        return m.wide(m.batch(F.conv2d(x, m.conv1.weight, padding=1)))

    model = network(type("Pattern", (Blocks,), {"forward": pattern}))
    model.batch = nn.BatchNorm2d(3, track_running_stats=False).eval()
    report = check(model, random(2, 3, 9, 11))
    left = {entry.name: entry.why for entry in report.left}
    assert left.pop("batch") == "it takes the statistics of the whole batch"
    assert left == dict.fromkeys(("conv1", "conv2", "conv3", "up"), "no call of it was found")
    report = fuse_convolutions(nn.Conv2d(3, 3, 3).eval())[1]
    assert report.left[0].why == "the network is this layer"


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")
def test_arguments_of_the_call():
    """The graph runs for the required arguments, given by position or by name."""

    def pattern(m, x, y, skip=None):
        z = m.wide(F.pad(m.norm1(m.conv1(x)), (2, 2, 2, 2))) + y
        return z if skip is None else z + skip

    model = network(type("Pattern", (Blocks,), {"forward": pattern}))
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 2
    x, y, skip = (random(2, 3, 9, 11, seed=seed) for seed in range(3))
    for args, options in (
        ((x, y), {}),
        ((x,), {"y": y}),
        ((), {"y": y, "x": x}),
        ((x, y, skip), {}),
        ((x, y), {"skip": skip}),
    ):
        with torch.no_grad():
            torch.testing.assert_close(fused(*args, **options), model(*args, **options))
        count = calls_of(lambda *_: fused(*args, **options), x)["convolution"]  # noqa: B023
        assert bool(count) == (len(args) + len(options) == 3)  # else none is PyTorch's
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        fused(x)


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")
def test_a_required_argument_that_is_no_tensor():
    """As the time embedding of diffusers' blocks, which a decoder leaves None."""

    def forward(m, x, y):
        z = m.norm1(m.conv1(x))
        return m.conv2(m.relu(2 * z + 1 if y is None else z + y))

    model = network(type("Pattern", (Blocks,), {"forward": forward}))
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 2
    x = random(2, 3, 9, 11)
    with torch.no_grad():
        for y in (None, x, 3.0):
            torch.testing.assert_close(fused(x, y), model(x, y), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(fused(x, y=y), model(x, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["any number", "any name", "a required name"])
def test_arguments_without_a_position(kind):
    def any_number(m, *images):
        return m.wide(m.norm1(sum(map(m.conv1, images))))

    def any_name(m, x, **options):
        return m.wide(m.norm1(m.conv1(x))) * options.get("scale", 1)

    def a_required_name(m, x, *, scale):
        return m.wide(m.norm1(m.conv1(x))) * scale

    forward, args, options = {
        "any number": (any_number, 2, {}),
        "any name": (any_name, 1, {"scale": 3}),
        "a required name": (a_required_name, 1, {"scale": 3}),
    }[kind]
    model, x = network(type("Pattern", (Blocks,), {"forward": forward})), random(2, 3, 9, 11)
    fused, report = fuse_convolutions(model)
    assert not report.fused
    (entry,) = report.untraced
    assert entry.why == (
        "its forward takes *args, **options or required keywords; pass args, an example of a call, "
        "to try torch.export"
    )
    with torch.no_grad():
        given = [x] * args
        torch.testing.assert_close(fused(*given, **options), model(*given, **options))


def test_a_norm_with_a_hook_stays():
    def pattern(m, x):
        return m.conv1(m.norm1(m.conv2(x)))

    model, seen = network(type("Pattern", (Blocks,), {"forward": pattern})), []
    model.norm1.register_forward_hook(lambda module, args, output: seen.append(output))
    check(model, random(2, 3, 9, 11))
    assert len(seen) == 4  # twice by the model, twice by the fused one


def test_hooks_of_other_modules_run():
    def pattern(m, x):
        return m.wide(m.same(F.pad(m.norm1(m.conv2(x)), (1, 1, 1, 1))))

    x = random(2, 3, 9, 11)
    on_the_layer, on_the_network = (
        network(type("Pattern", (Blocks,), {"forward": pattern})) for _ in range(2)
    )
    on_the_layer.same.register_forward_hook(lambda module, args, output: 2 * output)
    on_the_network.register_forward_pre_hook(lambda module, args: (args[0] * args[0],))
    assert len(check(on_the_layer, x).fused) == 2
    assert not check(on_the_network, x).fused


class Container(nn.Module):
    """Uses a Sequential as a list, and asks what it is."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 3, 5, padding=2), nn.InstanceNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 5)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < -1e9 or not isinstance(self.layers, nn.Sequential):
            return x
        for layer in self.layers[:2]:
            x = layer(x)
        return self.layers(x)


def test_modules_stay_what_they_are():
    model, x = network(Container), random(2, 3, 13, 12)
    assert len(check(model, x).fused) == 2
    fused, _ = fuse_convolutions(model)
    assert type(fused) is Container
    assert fused.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(fused.layers)(x[:, None]).squeeze(1), fused.layers(x))


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
        exact = copy.deepcopy(model).double()(x.double())
        assert_accurate(fused(x), model(x), exact, at_least=1e-5)
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
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.ReflectionPad2d(2),
        nn.Conv2d(8, 8, 5),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 3, 3, padding=1),
    )
    model, x = network(lambda: nn.Sequential(*layers)).to(dtype), random(2, 3, 24, 28).to(dtype)
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 4
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
        layers = nn.InstanceNorm2d(3, affine=True), nn.Conv2d(3, 4, 3)
        norm_first = network(lambda: nn.Sequential(*layers))
        with pytest.raises(ValueError, match="x: expected"):
            fuse_convolutions(norm_first)[0](random(3, 24, 28))
        with pytest.raises(ValueError, match="weight"):
            fused(random(1, 4, 24, 28))
        assert fused(random(0, 3, 24, 28)).shape == (0, 3, 24, 28)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [(40, 32), (16, 32)])
def test_a_norm_alone_takes_an_image_without_a_batch(size, affine):
    """PyTorch's do. As a batch of rows it would be normalised wrongly."""
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=affine), nn.ReLU()
    report = check(network(lambda: nn.Sequential(*layers, nn.MaxPool2d(2))), random(3, *size))
    assert [entry.name for entry in report.alone] == ["1"]


def test_volumes_are_told_of_and_stay_as_convert_made_them():
    layers = nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4), nn.ReLU()
    model = network(lambda: nn.Sequential(*layers))
    stylekernels.convert(model)
    fused, report = fuse_convolutions(model)
    assert [entry.name for entry in report.left] == ["0", "1"]
    assert type(fused[1]) is stylekernels.nn.InstanceNorm3d
    x = random(1, 2, 5, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))


def test_models_that_are_refused():
    with pytest.raises(TypeError, match=r"model: expected an eager torch\.nn\.Module, got str"):
        fuse_convolutions("model")
    with pytest.raises(ValueError, match=r"evaluation mode.*model\.eval\(\)"):
        fuse_convolutions(small().train())


def test_a_network_of_neither_convolutions_nor_norms_is_a_copy():
    model = nn.Sequential(nn.Identity(), nn.ReLU()).eval()
    fused, report = fuse_convolutions(model)
    assert fused is not model
    assert type(fused) is nn.Sequential
    assert report == stylekernels.conversion.Report()


def test_norms_without_a_convolution_run_as_one_op_with_their_activation():
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()).eval()
    report = check(model, random(2, 3, 5, 7))
    assert [entry.name for entry in report.alone] == ["0"]
    assert not report.fused + report.left


def test_norms_in_a_module_that_cannot_be_traced_are_reported():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.norm(x) if x.sum() != 0 else x)

    model = nn.Sequential(Block(), nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()))
    report = check(model.eval(), random(2, 3, 5, 7))
    found = [(entry.name, entry.what) for entry in report.left]
    assert found == [("0.norm", "InstanceNorm2d"), ("0.conv", "Conv2d")]
    assert [entry.name for entry in report.alone] == ["1.0"]


def test_only_fused_convolutions_are_added():
    fused, report = fuse_convolutions(network(lambda: models.cyclegan_resnet(8, 1)))
    assert fused.state_dict().keys() == type(fused)(*fused).state_dict().keys()
    graph = fused.forward.args[1]
    found = [module for module in graph.modules() if isinstance(module, Convolve)]
    assert len(found) == len(report.fused) == 8
    assert not list(found[0].parameters())
