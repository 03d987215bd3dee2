"""The bundled styles: their pictures, their size, and the commands in their cards."""

import shlex

import pytest
import torch

from stylekernels.cli.main import parse
from stylekernels.losses import PerceptualLoss
from stylekernels.models import (
    GeneratorConfig,
    MultiStyleGenerator,
    StyleGenerator,
    bundled_styles,
    load_features,
)
from stylekernels.models.styles import BASE, LITE_BASE, WEIGHTS, bundled_file, find_style
from stylekernels.training import TrainConfig
from stylekernels.training.data import read_image, resized, to_tensor

# Styles with a painting among the test data.
PAINTED = sorted({*bundled_styles()} - {"van_gogh"})
LITE = sorted({*PAINTED} - {"the_scream"})
# A style of the base, or one with a file of its own, has a card of the file's name.
CARDS = sorted({find_style(name).path.stem for name in bundled_styles()} | {LITE_BASE})


@pytest.mark.parametrize("style", [*PAINTED, *(f"{LITE_BASE}:{name}" for name in LITE)])
def test_bundled_style_paints_a_photo_it_never_saw(style, data_dir):
    """The picture is closer to the painting's Gram matrices than the photo, at every layer, and its
    content is closer to this photo's than to another's."""
    generator, name = StyleGenerator.from_pretrained(style), style.removeprefix(f"{LITE_BASE}:")
    photos = sorted((data_dir / "photos" / "eval").glob("*.png"))[2::10]
    photos = [to_tensor(resized(read_image(p), 256))[None, :, :160, :160] for p in photos]
    painting = to_tensor(resized(read_image(data_dir / "styles" / f"{name}.jpg"), 512))[None]
    features = load_features("mixed", data_dir / "backbones")
    config = TrainConfig(art=data_dir, photos=data_dir)
    loss = PerceptualLoss(features, [painting], **config.loss_weights())
    # The lite styles are weaker, and have bounds of their own.
    most, of_layer = (0.7, 0.95) if style.startswith(LITE_BASE) else (0.55, 0.8)
    with torch.no_grad():
        pictures = [generator(photo) for photo in photos]
        for i, photo in enumerate(photos):
            as_is, painted = loss(photo, photo), loss(photo, pictures[i])
            assert painted["style"] < most * as_is["style"]
            for layer in features.style_layers:
                # The deepest layer has 10 x 10 places of these photos, too few for a close match.
                share = 0.95 if layer == "relu5_1" else of_layer
                assert painted[f"style/{layer}"] < share * as_is[f"style/{layer}"], layer
            other = loss(photo, pictures[i - 1])
            assert painted["content/relu4_1"] < 0.9 * other["content/relu4_1"]


@pytest.mark.parametrize("name", CARDS)
def test_bundled_style_has_a_card_and_is_small(name):
    assert bundled_file(name).stat().st_size < 5e6
    card = (WEIGHTS / f"{name}.md").read_text()
    for word in ("stylekernels train", "steps", "machine", "Held-out"):
        assert word in card


@pytest.mark.parametrize("name", [BASE, LITE_BASE])
def test_card_of_a_base_names_its_styles(name):
    card = (WEIGHTS / f"{name}.md").read_text()
    base = MultiStyleGenerator.from_pretrained(name)
    assert {*base.styles} <= {*bundled_styles()}
    expected = GeneratorConfig.lite if name == LITE_BASE else GeneratorConfig
    assert base.config == expected(upsample="nearest")
    for style in base.styles:
        assert f"| {style} |" in card


@pytest.mark.parametrize("name", CARDS)
def test_commands_in_a_card_are_those_of_today(name):
    card = (WEIGHTS / f"{name}.md").read_text().replace("\\\n", " ")
    commands = [line for line in card.splitlines() if line.startswith("    stylekernels train")]
    configs = [parse(shlex.split(command)[1:]) for command in commands]
    assert configs
    assert configs[-1].output.stem == name
    if name in (BASE, LITE_BASE):
        assert all(config.multi_style for config in configs)
    else:
        assert configs[-1].art.stem == name
        assert configs[-1].start in ("base", f"base:{name}")
