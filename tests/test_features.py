"""Feature networks against a straightforward computation of the same layers."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from stylekernels import use_impl
from stylekernels.models import load_features
from stylekernels.models.features import VGG, MixedVGG19, ReflectVGG19, SqueezeNet
from tests.conftest import assert_accurate

# torchvision's configuration of the two networks: output channels, M for pooling.
VGG_LAYOUTS = {
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
# As in tests/convolutions.py: Winograd's method in float32.
WINOGRAD = 5e-6
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]


def vgg_weights(name):
    """Random weights under torchvision's names, scaled so that values neither die nor explode."""
    torch.manual_seed(0)
    weights, index, channels = {}, 0, 3
    for token in VGG_LAYOUTS[name].split():
        if token == "M":
            index += 1
            continue
        width = int(token)
        scale = (2 / (9 * channels)) ** 0.5
        weights[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * scale
        weights[f"features.{index}.bias"] = torch.randn(width) * 0.1
        channels, index = width, index + 2
    return weights


def in_float64(weights):
    return {name: tensor.double() for name, tensor in weights.items()}


def vgg_activations(name, weights, x):
    """Return relu<block>_<i> of every layer, by walking torchvision's Sequential by index."""
    x = (x - IMAGENET[0]) / IMAGENET[1]
    found, index, block, i = {}, 0, 1, 1
    for token in VGG_LAYOUTS[name].split():
        if token == "M":
            x, index, block, i = F.max_pool2d(x, 2), index + 1, block + 1, 1
            continue
        weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        x = F.conv2d(x, weight, bias, padding=1).relu()
        found[f"relu{block}_{i}"] = x
        index, i = index + 2, i + 1
    return found


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg(tmp_path, name):
    weights = vgg_weights(name)
    path = tmp_path / "weights.pth"
    torch.save({**weights, "classifier.0.weight": torch.zeros(2, 2)}, path)
    features = load_features(name, path)
    x = torch.rand(1, 3, 32, 48)
    expected = vgg_activations(name, weights, x)
    assert set(features.layers) == set(expected)
    with use_impl("reference"):
        plain = features(x, features.layers)
    got = features(x, features.layers)
    exact = vgg_activations(name, in_float64(weights), x.double())
    for layer, value in expected.items():
        torch.testing.assert_close(plain[layer], value, msg=lambda m, layer=layer: f"{layer}: {m}")
        assert_accurate(got[layer], value, exact[layer], layer, at_least=WINOGRAD)
    assert set(features(x)) == {"relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"}
    assert set(features(x, ["relu2_2"])) == {"relu2_2"}


def reflect_vgg(weights, x, layers):
    """The narrow network's layers in order, as the data folder's page describes them."""

    def conv(name, x, padding):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv2d(F.pad(x, [padding] * 4, "reflect"), weight, bias)

    x, found = conv("conv0", x, 0), {}
    for layer in layers:
        if layer == "pool":
            x = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
            continue
        x = conv(f"conv{layer}", x, 1).relu()
        wide = f"conv{layer}_wide"
        found[f"relu{layer}"] = conv(wide, x, 0).relu() if f"{wide}.weight" in weights else x
    return found


SHALLOW = ["1_1", "1_2", "pool", "2_1", "2_2", "pool", "3_1"]
DEEP = [
    "1_1",
    "1_2",
    "pool",
    "2_1",
    "2_2",
    "pool",
    "3_1",
    "3_2",
    "3_3",
    "3_4",
    "pool",
    "4_1",
    "4_2",
    "4_3",
    "4_4",
    "pool",
    "5_1",
]


def test_mixed_and_slim_networks(data_dir):
    folder = data_dir / "backbones"
    shallow = load_file(folder / "vgg19_to_relu3_1.safetensors")
    deep = load_file(folder / "vgg19_slim_to_relu5_1.safetensors")
    x = torch.rand(2, 3, 37, 50)  # odd: the pooling rounds up

    def expected(shallow, deep, x):
        low, high = reflect_vgg(shallow, x, SHALLOW), reflect_vgg(deep, x, DEEP)
        return {**high, **{name: low[name] for name in ("relu1_1", "relu2_1", "relu3_1")}}, high

    mixed, slim = load_features("mixed", folder), load_features("slim", folder)
    with use_impl("reference"):
        plain = mixed(x), slim(x)
    got = mixed(x)
    assert set(got) == set(slim(x)) == set(mixed.layers)
    torchs = expected(shallow, deep, x)
    exact = expected(in_float64(shallow), in_float64(deep), x.double())
    for name in got:
        for network in (0, 1):
            torch.testing.assert_close(plain[network][name], torchs[network][name])
        assert_accurate(got[name], torchs[0][name], exact[0][name], name, at_least=WINOGRAD)
        assert got[name].shape[1] == min(64 * 2 ** (int(name[4]) - 1), 512)


@pytest.mark.parametrize("name", ["mixed", "slim"])
def test_a_missing_backbone_says_which_file_and_where_it_comes_from(name, monkeypatch, tmp_path):
    monkeypatch.delenv("STYLEKERNELS_DATA", raising=False)
    files = {"mixed": "vgg19_to_relu3_1.safetensors and ", "slim": ""}[name]
    files += "vgg19_slim_to_relu5_1.safetensors"
    for path, got in ((None, "none"), (tmp_path, tmp_path)):
        with pytest.raises(FileNotFoundError) as error:
            load_features(name, path)
        assert str(error.value).startswith(
            f"path: expected a folder with {files}, which {name!r} is read from, got {got}; they "
            "are not downloaded: docs/training.md, section Loss networks, says"
        )


def test_environment_variable_names_the_backbones(data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEKERNELS_DATA", str(data_dir))
    assert isinstance(load_features("mixed"), MixedVGG19)
    monkeypatch.setenv("STYLEKERNELS_DATA", str(tmp_path))
    with pytest.raises(OSError, match=r"got .*backbones; they are not"):
        load_features("mixed")


def squeezenet(weights, x):
    """Every fire module's output, by torchvision's Sequential."""
    conv = lambda n, x, **k: F.conv2d(x, weights[n + ".weight"], weights[n + ".bias"], **k).relu()  # noqa: E731
    x = conv("features.0", x, stride=2)
    found = [x]
    for i in range(2, 13):
        if i in (2, 5, 8):
            x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            continue
        squeezed = conv(f"features.{i}.squeeze", x)
        small = conv(f"features.{i}.expand1x1", squeezed)
        x = torch.cat([small, conv(f"features.{i}.expand3x3", squeezed, padding=1)], 1)
        found.append(x)
    return found


def test_squeezenet(data_dir, tmp_path):
    path = data_dir / "backbones" / "squeezenet1_1_features.safetensors"
    weights = load_file(path)
    x = torch.rand(1, 3, 61, 70)
    caffe = x[:, [2, 1, 0]] * 255 - torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    features = load_features("squeezenet", path)
    got = features(x, features.layers)
    for name, value in zip(features.layers, squeezenet(weights, caffe), strict=True):
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-3)

    # Without the header the same weights are read as torchvision's, which need other colours.
    save_file(weights, tmp_path / "plain.safetensors")
    features = load_features("squeezenet", tmp_path / "plain.safetensors")
    got = features(x, features.layers)
    normalized = (x - IMAGENET[0]) / IMAGENET[1]
    for name, value in zip(features.layers, squeezenet(weights, normalized), strict=True):
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-3)
    assert isinstance(features, SqueezeNet)


def test_gradients_reach_the_image_and_nothing_else():
    torch.manual_seed(0)
    weights = {}
    for name, shape in {"conv0": (3, 3, 1, 1), "conv1_1": (8, 3, 3, 3)}.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = (
            torch.randn(shape),
            torch.rand(shape[0]),
        )
    features = ReflectVGG19(weights)
    assert features.layers == features.style_layers == ("relu1_1",)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    features(x, ["relu1_1"])["relu1_1"].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in features.parameters())
    assert all(p.grad is None for p in features.parameters())
    with pytest.raises(ValueError, match=r"layers: expected names from relu1_1, got \['relu9_1'\]"):
        features(x, ["relu9_1"])


def test_what_is_no_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of vgg19, vgg16"):
        load_features("resnet", tmp_path)
    with pytest.raises(OSError, match="got a folder; a folder is what the networks mixed and slim"):
        load_features("vgg19", tmp_path)
    with pytest.raises(OSError, match="no such file"):
        load_features("vgg19", tmp_path / "missing.pth")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match=r"weights\.pth: expected a safetensors file or a PyTorch"):
        load_features("vgg19", path)
    weights = vgg_weights("vgg16")
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"features\.16\.weight.*missing"):
        load_features("vgg19", path)
    weights["features.2.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"features\.2\.weight of shape \(64, 64, 3, 3\)"):
        load_features("vgg16", path)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 15)])
def test_other_images_are_refused(shape):
    network = VGG("vgg16", vgg_weights("vgg16"))
    with pytest.raises(ValueError, match=r"x: expected RGB images \(N, 3, H, W\) of at least 16"):
        network(torch.rand(shape))


def test_an_unknown_vgg_is_refused():
    with pytest.raises(ValueError, match="name: expected one of vgg16, vgg19, got 'vgg11'"):
        VGG("vgg11", {})


def test_in_precision_rounds_weights_and_normalised_images():
    """Not the images before: near white, the deviations are smaller than bfloat16 tells apart.
    Autocast changes nothing, for it rounds what is float32 here."""
    x = 0.97 + 0.01 * torch.randn(1, 3, 32, 48)
    exact = VGG("vgg19", vgg_weights("vgg19"))(x, ["relu1_1"])["relu1_1"]
    weights = vgg_weights("vgg19")
    features = VGG("vgg19", weights).in_precision(torch.bfloat16)
    found = features(x, ["relu1_1"])["relu1_1"]
    assert found.dtype == torch.bfloat16
    normalised = ((x - IMAGENET[0]) / IMAGENET[1]).bfloat16().float()
    kernel, bias = (weights[f"features.0.{kind}"].bfloat16().float() for kind in ("weight", "bias"))
    rounded = F.conv2d(normalised, kernel, bias, padding=1).relu()
    torch.testing.assert_close(found.float(), rounded, rtol=2**-8, atol=1e-3)
    assert (found.float() - exact).norm() < 0.01 * exact.norm()
    plain = VGG("vgg19", weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x, ["relu1_1"])["relu1_1"], exact)
