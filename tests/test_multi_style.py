"""A generator of several styles: its training, its files, and mixtures of its styles."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylekernels.cli.main import main
from stylekernels.models import (
    GeneratorConfig,
    MultiStyleGenerator,
    StyleGenerator,
    bundled_styles,
    styles,
)
from stylekernels.models.files import open_multi_style
from stylekernels.models.styles import StyleSource, find_style
from stylekernels.models.tensor_files import read_safetensors
from stylekernels.training import SettingError, train
from tests.pictures import complaints
from tests.training_runs import assert_same_weights, blobs, stop_after

NARROW = GeneratorConfig(channels=(3, 4, 5), residual_blocks=1, kernel_size=3, upsample="nearest")


@pytest.fixture
def several():
    torch.manual_seed(0)
    network = MultiStyleGenerator(NARROW, ["ink", "oil", "chalk"]).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network


@pytest.fixture
def file(several, tmp_path):
    several.save_pretrained(tmp_path / "several.safetensors")
    return tmp_path / "several.safetensors"


@pytest.fixture
def photo():
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_style_is_a_generator_of_its_own(several, file, photo):
    pictures = []
    for index, name in enumerate(several.styles):
        generator = StyleGenerator.from_pretrained(f"{file}:{name}")
        pictures.append(generator(photo))
        torch.testing.assert_close(pictures[-1], several(photo, index), rtol=0, atol=0)
        expected = several.shared.down[0].norm.bias + several.offsets["down/0/norm/bias"][index]
        assert torch.equal(generator.down[0].norm.bias, expected)
        assert torch.equal(generator.residual[0].first.conv.weight,
                           several.shared.residual[0].first.conv.weight)  # fmt: skip
    assert (pictures[0] - pictures[1]).abs().max() > 0.1


@torch.no_grad()
def test_mixtures_are_weighted_means_of_the_styles_vectors(several, file):
    name = "down.1.norm.weight"
    shared, table = several.shared.state_dict()[name], several.offsets[name.replace(".", "/")]
    for text, rows in (
        ("ink:1,oil:3", 0.25 * table[0] + 0.75 * table[1]),
        ("oil:0.6, ink:0.2", 0.25 * table[0] + 0.75 * table[1]),
        ("chalk,ink", (table[2] + table[0]) / 2),
    ):
        found = StyleGenerator.from_pretrained(f"{file}:{text}").state_dict()[name]
        torch.testing.assert_close(found, shared + rows, rtol=1e-6, atol=1e-6)
    start = StyleGenerator.from_base(file).state_dict()[name]
    torch.testing.assert_close(start, shared + table.mean(0), rtol=1e-6, atol=1e-6)


def test_each_style_has_gradients_of_its_own(several, photo):
    several(photo, 1).square().mean().backward()
    for table in several.offsets.values():
        assert table.grad[1].abs().max() > 0
        assert not table.grad[[0, 2]].any()
    assert all(p.grad.abs().max() > 0 for p in several.shared.parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{file}", "holds the styles ink, oil, chalk; name one after a colon, {file}:ink"),
        ("{file}:pen", "expected styles among ink, oil, chalk, which can be mixed, got 'pen'"),
        ("{file}:ink:much", "expected a number as the share of 'ink', got 'much'"),
        ("{file}:ink:1,ink:2", "name_or_path: expected each style once, got 'ink' twice"),
        ("none.safetensors:ink", "got 'ink'; there is no file 'none.safetensors' either"),
        ("{file}:ink:0", "expected a positive share of ink, got 0.0"),
        ("{file}:ink:-1,oil:2", "expected a positive share of ink, got -1.0"),
        ("{file}:ink:nan", "expected a positive share of ink, got nan"),
        ("{single}:ink", "holds one style; leave out what follows the colon"),
        ("pen:0.3", "expected a bundled style"),
        ("{broken}:ink", "{broken}: not a network of several styles: 'styles'"),
        ("{smaller}:ink", "{smaller}: expected a network of 3 styles: tensor 'offsets."),
    ],
)
def test_what_cannot_be_opened_is_refused(file, tmp_path, text, message, monkeypatch):
    monkeypatch.setattr(styles, "WEIGHTS", tmp_path / "none")
    single = tmp_path / "single.safetensors"
    StyleGenerator(NARROW).save_pretrained(single)
    broken, smaller = tmp_path / "broken.safetensors", tmp_path / "smaller.safetensors"
    metadata, tensors = read_safetensors(file)
    values = json.loads(metadata["config"])
    save_file(tensors, broken, metadata | {"config": json.dumps({"generator": {}})})
    values["generator"]["channels"] = [3, 4, 6]
    save_file(tensors, smaller, metadata | {"config": json.dumps(values)})
    paths = {"file": file, "single": single, "broken": broken, "smaller": smaller}
    with pytest.raises(ValueError, match=re.escape(message.format(**paths))):
        StyleGenerator.from_pretrained(text.format(**paths))
    with pytest.raises(ValueError, match="not a network of several styles: expected the format"):
        MultiStyleGenerator.from_pretrained(single)


def test_names_paths_and_mixtures_are_told_apart(file, tmp_path, monkeypatch):
    assert find_style(file) == find_style(str(file)) == StyleSource(file)
    assert find_style(f"{file}:ink") == StyleSource(file, {"ink": 1.0})
    odd = tmp_path / "oil:2"
    shutil.copy(file, odd)
    assert find_style(str(odd)) == StyleSource(odd)
    assert find_style(f"{odd}:oil:2") == StyleSource(odd, {"oil": 2.0})
    assert find_style(odd) == StyleSource(odd)
    with pytest.raises(ValueError, match="name_or_path"):
        find_style(tmp_path / "several.safetensors:ink")  # a path object is no mixture


def test_bundled_styles_are_files_and_those_of_the_base(file, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    monkeypatch.setattr(styles, "WEIGHTS", bundled)
    assert bundled_styles() == []
    base, oil = bundled / "base.safetensors", bundled / "oil.safetensors"
    for name in ("base", "base_lite", "oil", "wash"):
        shutil.copy(file, bundled / f"{name}.safetensors")
    assert bundled_styles() == ["chalk", "ink", "oil", "wash"]
    assert find_style("base") == find_style(base) == StyleSource(base)
    assert find_style("ink") == StyleSource(base, {"ink": 1.0})
    assert find_style("oil") == StyleSource(oil)  # a style of its own comes first
    assert find_style("base:oil") == StyleSource(base, {"oil": 1.0})
    assert find_style("ink:0.3,oil:0.7") == StyleSource(base, {"ink": 0.3, "oil": 0.7})


def test_styles_have_different_names():
    for names in ([], ["ink", "ink"]):
        with pytest.raises(ValueError, match="styles: expected different names, at least one"):
            MultiStyleGenerator(NARROW, names)


@pytest.fixture
def paintings(tmp_path):
    """Two paintings, and an artist with two."""
    folder = tmp_path / "paintings"
    (folder / "artist").mkdir(parents=True)
    for seed, name in enumerate(("ink.png", "oil,late.jpg", "artist/a.png", "artist/b.png")):
        blobs(20 + seed, 60, 50).save(folder / name)
    return folder


def test_several_styles_are_learnt_together(training_config, paintings, tmp_path, capsys):
    config = dataclasses.replace(
        training_config, art=paintings, multi_style=True, init="bilinear", lite=True, steps=9,
        warmup_steps=3, gan_weight=0.2, gan_start=0.0, crop=64, stroke=0.2,
    )  # fmt: skip
    result = train(config)
    assert result.steps == 9
    styles = [StyleGenerator.from_pretrained(f"{config.output}:{name}").state_dict()
              for name in ("artist", "ink", "oil_late")]  # fmt: skip
    for name, tensor in styles[0].items():
        same = [torch.equal(tensor, other[name]) for other in styles[1:]]
        assert all(same) if tensor.dim() == 4 else not any(same), name
    sheet = next(result.run.joinpath("samples").glob("*.png"))
    assert Image.open(sheet).width > Image.open(sheet).height > 400  # four pictures
    again = dataclasses.replace(config, output=tmp_path / "again.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        assert train(again).interrupted
    train(dataclasses.replace(again, resume=True))
    for style in ("artist", "ink"):
        assert_same_weights(f"{config.output}:{style}", f"{again.output}:{style}")
    photo = next(config.photos.glob("*.png"))
    out = tmp_path / "painted.png"
    style = f"{config.output}:ink:0.5,artist:0.5"
    assert main(["stylize", str(photo), "--style", style, "--output", str(out)]) == 0
    assert Image.open(out).size == Image.open(photo).size
    capsys.readouterr()
    assert main(["stylize", str(photo), "--style", str(config.output), "--output", str(out)]) == 2
    assert "holds the styles artist, ink, oil_late" in complaints(capsys)[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "art: expected a folder, for multi_style"),
        ({"art": "none"}, "art: expected paintings in"),
        ({"art": "twice"}, "art: expected different names of styles, got 'ink' twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    training_config, paintings, tmp_path, changes, message
):
    (tmp_path / "none").mkdir()
    shutil.copytree(paintings, tmp_path / "twice")
    blobs(1, 40, 40).save(tmp_path / "twice" / "ink.jpg")
    if "art" in changes:
        changes = changes | {"art": tmp_path / changes["art"]}
    config = dataclasses.replace(
        training_config, **{"init": "bilinear", "multi_style": True, **changes}
    )
    with pytest.raises(SettingError, match=message):
        train(config)


def test_training_starts_from_the_base_that_has_the_wanted_shape(
    training_config, several, file, monkeypatch
):
    folder = file.parent / "bundled"
    folder.mkdir()
    shutil.copy(file, folder / "base.safetensors")
    monkeypatch.setattr(styles, "WEIGHTS", folder)
    config = dataclasses.replace(training_config, init="auto", learning_rate=1e-12, steps=1, ema=0)
    assert config.start == "base"
    assert dataclasses.replace(config, upsample="transpose").start == "bilinear"
    assert dataclasses.replace(config, multi_style=True).start == "base"
    assert dataclasses.replace(config, lite=True).start == "bilinear"
    with pytest.raises(SettingError, match="init: expected a bundled style"):
        train(dataclasses.replace(config, lite=True, init="base"))
    train(config)
    trained = StyleGenerator.from_pretrained(config.output).state_dict()
    for name, tensor in several.mixed().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6)


def test_several_styles_start_from_those_of_the_same_name(
    training_config, several, file, paintings
):
    config = dataclasses.replace(
        training_config, art=paintings, multi_style=True, init=str(file), learning_rate=1e-12,
        steps=1, ema=0,
    )  # fmt: skip
    train(config)
    trained = MultiStyleGenerator.from_pretrained(config.output)
    assert trained.styles == ("artist", "ink", "oil_late")
    for name in trained.styles:
        known = name in several.styles
        expected = several.mixed({name: 1.0} if known else None)
        for key, tensor in trained.mixed({name: 1.0}).items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-6)


def test_several_styles_start_from_one_style_of_a_file(several, file):
    started = open_multi_style(f"{file}:{several.styles[1]}", ["x", "y"])
    expected = several.mixed({several.styles[1]: 1.0})
    for shares in ({"x": 1.0}, {"y": 1.0}, None):
        for key, tensor in started.mixed(shares).items():
            torch.testing.assert_close(tensor, expected[key])
