"""Image generator and discriminator: against plain PyTorch, labels and codes, files."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from stylekernels import native, use_impl
from stylekernels.models import (
    GeneratorConfig,
    ImageDiscriminator,
    ImageGenerator,
    ImageGeneratorConfig,
    StyleGenerator,
)
from stylekernels.models.dcgan import Codes, interpolate_noise, to_pixels
from tests.conftest import Recorder

FULL = ImageGeneratorConfig(noise=7, labels=("cat", "dog", "owl"), categories=4, continuous=2)


def generator(config=None, seed=0):
    """A generator whose norms have weights and statistics of their own."""
    torch.manual_seed(seed)
    network = ImageGenerator(config)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.startswith("norm") and not name.endswith("mean"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(std=0.3)
            else:
                tensor.mul_(2)
    return network


def drawn(network, count=3, seed=1):
    numbers = torch.Generator().manual_seed(seed)
    return network.draw(count, device="cpu", generator=numbers)


def plain(network):
    """The same network of PyTorch's own layers, for noise alone."""
    layers = [nn.Linear(network.config.noise, 256 * 64), nn.Unflatten(1, (8, 8, 256))]
    layers[0].load_state_dict(network.dense.state_dict())
    rest = []
    for norm, up in zip(network.norm, network.up, strict=True):
        batch_norm = nn.BatchNorm2d(up.in_channels)
        batch_norm.load_state_dict(norm.state_dict(), strict=False)
        rest += [batch_norm, nn.LeakyReLU(0.2)]
        up_conv = nn.ConvTranspose2d(
            up.in_channels, up.out_channels, 4, 2, padding=1, bias=up.bias is not None
        )
        up_conv.load_state_dict(up.state_dict())
        rest.append(up_conv)
    return nn.Sequential(*layers), nn.Sequential(*rest, nn.Tanh())


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("training", [True, False])
def test_the_generator_is_pytorchs(training, implementation):
    """Pictures, gradients of every weight, and running statistics."""
    if implementation == "native" and native.cpu_missing:
        pytest.skip(native.cpu_missing)
    network = generator().train(training)
    dense, rest = (part.train(training).double() for part in plain(network))
    noise = drawn(network, 4).noise
    expected = (1 + rest(dense(noise.double()).permute(0, 3, 1, 2))) / 2
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).double()
    expected.backward(cotangent)
    with use_impl(implementation):
        found = network(noise)
        found.backward(cotangent.float())
    assert found.shape == (4, 3, 64, 64)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.std() > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    theirs = {"dense": dense[0]}
    for i in range(3):
        theirs |= {f"norm.{i}": rest[3 * i], f"up.{i}": rest[3 * i + 2]}
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        exact = getattr(theirs[layer], kind).grad
        error = (parameter.grad.double() - exact).norm() / exact.norm()
        assert error < 1e-4, name
    for i, norm in enumerate(network.norm):
        for kind in ("running_mean", "running_var"):
            exact = getattr(rest[3 * i], kind)
            torch.testing.assert_close(getattr(norm, kind).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(native.cpu_missing is not None, reason="the library is not built")
def test_upsampling_and_norms_run_our_kernels():
    network = generator()
    with Recorder() as recorder, torch.no_grad():
        network(*drawn(network))
    assert recorder.ops.count("upsample_conv2d") == 3
    assert recorder.ops.count("instance_norm") == 3
    assert not {"convolution", "native_batch_norm", "leaky_relu"} & {*recorder.ops}


def test_the_discriminator_is_pytorchs():
    torch.manual_seed(0)
    network = ImageDiscriminator(FULL).eval()
    convolutions = [layer for layer in network.trunk if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 128]
    x = torch.rand(3, 3, 64, 64)
    label = torch.tensor([2, 0, 2])
    y = 2 * x.double() - 1
    for c in convolutions:
        y = nn.functional.conv2d(y, c.weight.double(), c.bias.double(), stride=2, padding=1)
        y = torch.where(y > 0, y, 0.2 * y)
    features = y.flatten(1)
    assert features.shape == (3, 8192)
    vectors = network.head.weight.double() + network.label.weight.double()[label]
    found = network(x, label)
    expected = (vectors * features).sum(1)
    torch.testing.assert_close(found.logits.double()[:, 0], expected, rtol=1e-5, atol=1e-5)
    first, _, last = network.recognition
    hidden = features @ first.weight.double().T
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    codes = hidden @ last.weight.double().T
    torch.testing.assert_close(found.category.double(), codes[:, :4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.continuous.double(), codes[:, 4:], rtol=1e-5, atol=1e-6)
    assert len({*found.logits.flatten().tolist()}) == 3


def test_dropout_is_for_training():
    torch.manual_seed(0)
    network, x = ImageDiscriminator(), torch.rand(2, 3, 64, 64)
    assert not torch.equal(network(x).logits, network(x).logits)
    network.eval()
    assert torch.equal(network(x).logits, network(x).logits)
    assert network(x).category is None


def test_gradients_reach_every_weight():
    network, judge = generator(FULL), ImageDiscriminator(FULL)
    codes = drawn(network, 12)
    judged = judge(network(*codes), codes.label)
    (judged.logits.sum() + judged.category.square().sum() + judged.continuous.sum()).backward()
    for name, parameter in [*network.named_parameters(), *judge.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_every_code_changes_the_picture():
    network = generator(FULL).eval()
    codes = drawn(network, 2)
    before = network(*codes)
    for name, code in codes._asdict().items():
        changed = code + 1 if code.is_floating_point() else (code + 1) % 3
        after = network(*codes._replace(**{name: changed}))
        difference = (after - before).abs().mean((1, 2, 3))
        assert (difference > 1e-3).all(), (name, difference)


def test_draws():
    network = generator(FULL)
    codes = drawn(network, 500)
    assert codes.noise.shape == (500, 7)
    assert codes.noise.std() == pytest.approx(1, abs=0.05)
    assert {*codes.label.tolist()} == {0, 1, 2}
    assert {*codes.category.tolist()} == {0, 1, 2, 3}
    assert codes.continuous.shape == (500, 2)
    assert -1 <= codes.continuous.min() < -0.9
    assert 0.9 < codes.continuous.max() <= 1
    for one, other in zip(codes, drawn(network, 500), strict=True):
        assert torch.equal(one, other)
    assert ImageGenerator().draw(2, device="cpu")[1:] == (None, None, None)


def test_interpolation_is_an_arc():
    first, last = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    path = interpolate_noise(first, last, 5)
    torch.testing.assert_close(path[0], first)
    torch.testing.assert_close(path[-1], last)
    norms = path.norm(dim=1)
    assert norms.min() > 0.97 * min(first.norm(), last.norm())
    steps = (path[1:] - path[:-1]).norm(dim=1)
    assert steps.max() < 1.2 * steps.min()
    torch.testing.assert_close(interpolate_noise(first, first, 3)[1], first)


def test_pixels_are_rounded():
    x = torch.tensor([-0.2, 0.5, 1.3])[None, :, None, None].expand(1, 3, 2, 2)
    assert to_pixels(x).tolist() == [[[[0, 128, 255]] * 2] * 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": torch.rand(2, 8)}, r"noise: expected a tensor of shape \(2, 7\), got \(2, 8\)"),
        ({"label": None}, r"label: expected a tensor of shape \(2,\), got None"),
        ({"label": torch.tensor([0])}, r"label: expected a tensor of shape \(2,\), got \(1,\)"),
        ({"category": None}, r"category: expected a tensor of shape \(2,\), got None"),
        ({"continuous": torch.rand(2, 1)}, r"continuous: expected .* \(2, 2\), got \(2, 1\)"),
    ],
)
def test_codes_that_do_not_fit(change, message):
    network = generator(FULL)
    with pytest.raises(ValueError, match=message):
        network(*drawn(network, 2)._replace(**change))


def test_codes_that_are_not_expected():
    codes = drawn(generator(FULL), 2)
    network = ImageGenerator(ImageGeneratorConfig(noise=7))
    for name in Codes._fields[1:]:
        only = Codes(codes.noise)._replace(**{name: getattr(codes, name)})
        with pytest.raises(ValueError, match=f"{name}: expected None, as the config has no {name}"):
            network(*only)


def test_a_discriminators_inputs_that_do_not_fit():
    network = ImageDiscriminator(FULL)
    with pytest.raises(ValueError, match=r"x: expected RGB images \(N, 3, 64, 64\), got \(2, 3, 3"):
        network(torch.rand(2, 3, 32, 64), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"label: expected a tensor of shape \(2,\), got None"):
        network(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": 0}, r"^noise: expected an integer of at least 1, got 0$"),
        ({"noise": 2.5}, r"^noise: expected an integer of at least 1, got 2\.5$"),
        ({"categories": -1}, r"^categories: expected an integer of at least 0, got -1$"),
        ({"categories": 1}, r"^categories: expected 0 or at least 2, got 1"),
        ({"continuous": True}, r"^continuous: expected an integer of at least 0, got True$"),
        ({"labels": ("a",)}, r"^labels: expected none or at least two different, got \('a',\)$"),
        ({"labels": ("a", "a")}, r"^labels: expected none or at least two different"),
        ({"labels": ("a", "")}, r"^labels: expected names"),
        (
            {"width": 3},
            r"^config: expected fields among categories, continuous, labels, noise, got",
        ),
    ],
)
def test_configs_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImageGeneratorConfig.from_dict(values)


# ---- files --------------------------------------------------------------------------------------


def test_a_file_holds_weights_statistics_and_config(tmp_path):
    network = generator(FULL)
    codes = drawn(network)
    network(*codes)  # in training mode: the statistics move
    network.save_pretrained(tmp_path / "g.safetensors")
    opened = ImageGenerator.from_pretrained(tmp_path / "g.safetensors")
    assert opened.config == FULL
    assert not opened.training
    assert torch.equal(opened(*codes), network.eval()(*codes))


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "g.safetensors"
    StyleGenerator(GeneratorConfig(channels=(6, 8, 12), residual_blocks=1)).save_pretrained(path)
    with pytest.raises(
        ValueError, match=r"got 'stylekernels\.StyleGenerator'; stylekernels train-"
    ):
        ImageGenerator.from_pretrained(path)
    for missing, what in ((tmp_path / "no", "not there"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"path: expected the file .*, which is {what}; styl"):
            ImageGenerator.from_pretrained(missing)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"p\.png: expected a whole safetensors file"):
        ImageGenerator.from_pretrained(tmp_path / "p.png")

    network = generator()
    network.save_pretrained(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"expected a whole safetensors file.*truncated"):
        ImageGenerator.from_pretrained(path)

    path.write_bytes(content)
    tensors = load_file(path)
    del tensors["norm.1.running_var"]
    form = {"format": "stylekernels.ImageGenerator"}
    save_file(tensors, path, form | {"config": json.dumps({"noise": 100})})
    with pytest.raises(ValueError, match=r"'norm\.1\.running_var' should be \(128,\), got nothing"):
        ImageGenerator.from_pretrained(path)
    save_file(tensors, path, form | {"config": json.dumps({"noise": 0})})
    with pytest.raises(ValueError, match="not an image generator of this library: noise: expected"):
        ImageGenerator.from_pretrained(path)
    save_file(tensors, path, form)
    with pytest.raises(ValueError, match="not an image generator of this library: config: expecte"):
        ImageGenerator.from_pretrained(path)


def test_a_style_is_not_opened_from_it(tmp_path):
    generator().save_pretrained(tmp_path / "g.safetensors")
    with pytest.raises(
        ValueError,
        match=r"not a style generator of this library: expected .*, got 'stylekernels\.Image"
        r"Generator'; it makes pictures from noise: stylekernels generate$",
    ):
        StyleGenerator.from_pretrained(tmp_path / "g.safetensors")
