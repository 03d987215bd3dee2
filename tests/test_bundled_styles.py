"""The bundled styles: their pictures, their size, and the commands in their cards."""

import shlex

import pytest
import torch

from stylekernels.cli.main import parse
from stylekernels.losses import PerceptualLoss
from stylekernels.models import StyleGenerator, bundled_styles, load_features
from stylekernels.models.styles import WEIGHTS
from stylekernels.training import TrainConfig
from stylekernels.training.data import read_image, resized, to_tensor

# The part of the painting that each learnt from (None for all of it) and the size, from its card.
LEARNT_FROM = {"starry_night": (None, 512), "wave": ((0, 44, 560, 508), 896)}


@pytest.mark.parametrize("name", LEARNT_FROM)
def test_bundled_style_paints_a_photo_it_never_saw(name, data_dir):
    """The picture is closer to the painting's Gram matrices than the photo, at every layer, and its
    content is closer to this photo's than to another's."""
    assert name in bundled_styles()
    generator = StyleGenerator.from_pretrained(name)
    photos = sorted((data_dir / "photos" / "eval").glob("*.png"))[2::10]
    photos = [to_tensor(resized(read_image(p), 256))[None, :, :160, :160] for p in photos]
    part, size = LEARNT_FROM[name]
    painting = read_image(data_dir / "styles" / f"{name}.jpg").crop(part)
    painting = to_tensor(painting.resize((size, size * painting.height // painting.width)))[None]
    features = load_features("mixed", data_dir / "backbones")
    config = TrainConfig(art=data_dir, photos=data_dir)
    loss = PerceptualLoss(features, [painting], **config.loss_weights())
    with torch.no_grad():
        pictures = [generator(photo) for photo in photos]
        for i, photo in enumerate(photos):
            as_is, painted = loss(photo, photo), loss(photo, pictures[i])
            assert painted["style"] < 0.55 * as_is["style"]
            for layer in features.style_layers:
                # The deepest layer has 10 x 10 places of these photos, too few for a close match.
                share = 0.95 if layer == "relu5_1" else 0.8
                assert painted[f"style/{layer}"] < share * as_is[f"style/{layer}"], layer
            other = loss(photo, pictures[i - 1])
            assert painted["content/relu4_1"] < 0.9 * other["content/relu4_1"]


@pytest.mark.parametrize("name", LEARNT_FROM)
def test_bundled_style_has_a_card_and_is_small(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 5e6
    card = (WEIGHTS / f"{name}.md").read_text()
    for word in ("stylekernels train", "steps", "machine", "Held-out"):
        assert word in card


@pytest.mark.parametrize("name", LEARNT_FROM)
def test_commands_in_a_card_are_those_of_today_or_say_whose(name):
    card = (WEIGHTS / f"{name}.md").read_text().replace("\\\n", " ")
    if "These are the commands of an earlier version" in card:
        return
    lines = [
        line.split(maxsplit=1)[1] for line in card.splitlines() if "stylekernels train" in line
    ]
    stages = [parse(shlex.split(line)) for line in lines]
    assert stages[-1].art.stem == name
    first, *later = (stage.init for stage in stages)
    assert first in ("base", "bilinear")
    assert later == [str(stage.output) for stage in stages[:-1]]
    assert stages[0].upsample == StyleGenerator.from_pretrained(name).config.upsample
