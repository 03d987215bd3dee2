"""Checkpoints: a resumed run ends where the whole one does, or is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image

from stylekernels.training import SettingError, train
from stylekernels.training.checkpoint import load_checkpoint, save_checkpoint
from tests.training_runs import assert_same_weights, stop_after


@pytest.fixture
def config(training_config):
    return training_config


def test_resumed_run_ends_where_the_whole_one_does(config, tmp_path):
    train(config)
    state = tmp_path / "state"
    first = dataclasses.replace(
        config, output=tmp_path / "half", checkpoint=state, checkpoint_every=3
    )
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        assert train(first).interrupted
    result = train(dataclasses.replace(first, checkpoint=None, resume=state))
    assert result.steps == 8
    assert_same_weights(config.output, first.output)
    for name, then, now in (
        ("crop", 32, 48), ("content_colors", "photo", "painting"), ("color_weight", 0.0, 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"was trained with {name}={then}, got {name}={now}"):
            train(dataclasses.replace(first, resume=state, **{name: now}))


def test_the_content_says_what_is_a_checkpoint(config, tmp_path):
    """A style under any name is refused as one; a checkpoint under a style's name resumes."""
    state = tmp_path / "state.safetensors"
    train(dataclasses.replace(config, steps=4, checkpoint=state, checkpoint_every=4))
    assert train(dataclasses.replace(config, steps=5, resume=state)).steps == 5
    style = config.output.rename(tmp_path / "style.ckpt")
    with pytest.raises(SettingError, match="got a finished style; give it to init instead"):
        load_checkpoint(style)


def test_a_checkpoint_older_than_the_color_options_resumes_without_them(config, tmp_path):
    """It is of a run that aimed at the photo's own colours, and is told so where others are
    asked for."""
    state = tmp_path / "state"
    train(dataclasses.replace(config, steps=4, checkpoint=state, checkpoint_every=4))
    old = load_checkpoint(state)
    del old["version"]
    settings = json.loads(old["config"])
    assert settings.pop("content_colors") == "photo"
    assert settings.pop("color_weight") == 0
    save_checkpoint(state, {**old, "config": json.dumps(settings)})
    assert train(dataclasses.replace(config, resume=state)).steps == 8
    for changes in ({"content_colors": "painting"}, {"color_weight": 2.0}):
        (name,) = changes
        with pytest.raises(ValueError, match=rf"was trained with {name}=(photo|0\.0), got {name}="):
            train(dataclasses.replace(config, resume=state, **changes))


def interrupted(config, state, **changes):
    """A run stopped in its fifth step, with its checkpoint written to ``state``."""
    first = dataclasses.replace(config, checkpoint=state, **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        assert train(first).interrupted
    return dataclasses.replace(first, checkpoint=None, resume=state)


def test_the_painting_is_known_by_its_content(config, tmp_path):
    """By another path, by a link and from another folder; not another painting at the old path."""
    train(config)
    style = shutil.copy(config.style, tmp_path / "painting.png")
    whole = tmp_path / "whole.safetensors"
    shutil.copy(config.output, whole)
    again = interrupted(dataclasses.replace(config, style=style), tmp_path / "state")
    (tmp_path / "link.png").symlink_to(style)
    (tmp_path / "deeper").mkdir()
    for path in (
        shutil.copy(style, tmp_path / "deeper" / "copy.jpg"),
        tmp_path / "link.png",
        tmp_path / "deeper" / ".." / "painting.png",
    ):
        train(dataclasses.replace(again, style=path))
        assert_same_weights(config.output, whole)
    with Image.open(style) as image:
        image.rotate(90).save(style)
    with pytest.raises(
        SettingError, match=r"^resume: .*state was trained on another painting, .*p"
    ):
        train(again)


def test_a_checkpoint_older_than_the_digest_knows_the_paintings_path(config, tmp_path):
    again = interrupted(config, tmp_path / "state")
    state = load_checkpoint(tmp_path / "state")
    del state["version"], state["painting"]
    save_checkpoint(tmp_path / "state", state)
    assert train(again).steps == 8
    copy = shutil.copy(config.style, tmp_path / "copy.png")
    with pytest.raises(
        SettingError, match=r"was trained on another painting, .*style\.png, got .*c"
    ):
        train(dataclasses.replace(again, style=copy))


@pytest.mark.parametrize("now", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("then", ["float32", "bfloat16", "float16"])
def test_precision_may_change(config, tmp_path, then, now):
    """Gradients of float16 are scaled, and the scale is kept; other runs have none."""
    again = interrupted(config, tmp_path / "state", precision=then)
    kept = load_checkpoint(tmp_path / "state")["scaler"]
    assert bool(kept) == (then == "float16")
    final = tmp_path / "final"
    result = train(dataclasses.replace(again, precision=now, checkpoint=final))
    assert result.steps == 8
    scaler = load_checkpoint(final)["scaler"]
    assert bool(scaler) == (now == "float16")
    if now == "float16":
        fresh = torch.amp.GradScaler("cpu").state_dict()
        steps = 8 if then == "float16" else 3
        assert scaler["_growth_tracker"] == steps
        assert scaler["scale"] == (kept or fresh)["scale"]


@pytest.mark.parametrize("lost", ["network", "generator", "optimizer", "scaler", "step", "config"])
def test_a_checkpoint_that_lacks_a_part_is_refused(config, tmp_path, lost):
    again = interrupted(config, tmp_path / "state")
    state = load_checkpoint(tmp_path / "state")
    del state["version"], state[lost]
    save_checkpoint(tmp_path / "state", state)
    with pytest.raises(SettingError, match=r"^resume: .*state: expected a checkpoint of this"):
        train(again)
