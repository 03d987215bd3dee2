"""Checkpoints: a resumed run ends where the whole one does, or is refused."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from stylekernels.training import SettingError, train
from stylekernels.training.checkpoint import load_checkpoint, save_checkpoint
from tests.training_runs import assert_same_weights, stop_after


@pytest.fixture
def config(training_config):
    return training_config


def with_everything(config):
    """A run that has all that a state can hold: warm-up, average, discriminator, flat crops."""
    return dataclasses.replace(
        config, init="bilinear", lite=True, warmup_steps=3, crop=64, stroke=0.2, ema=0.9, flat=0.4,
        gan_weight=0.3, gan_start=0.25, art_colors=0.7, batch_size=1, steps=6,
    )  # fmt: skip


def interrupted(config, step=5, **changes):
    """A run stopped in one of its steps; returns the settings that go on from there."""
    first = dataclasses.replace(config, **changes)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        assert train(first).interrupted
    return dataclasses.replace(first, resume=True, overwrite=False)


def test_resumed_run_ends_where_the_whole_one_does(config, tmp_path):
    whole = with_everything(config)
    result = train(whole)
    assert {"discriminator", "accuracy", "generator", "style"} <= result.losses.keys()
    for stop in (5, 8):
        first = dataclasses.replace(whole, output=tmp_path / f"half{stop}")
        result = train(interrupted(first, stop))
        assert result.steps == 6
        assert_same_weights(whole.output, first.output)
        states = [load_checkpoint(c.run_path / "checkpoint.pt")["task"] for c in (whole, first)]
        for name, tensor in states[0]["adversaries"][0]["network"].items():
            assert torch.equal(tensor, states[1]["adversaries"][0]["network"][name]), name
    lines = (first.run_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 4, 6]
    for name, then, now in (("crop", 64, 80), ("art_colors", 0.7, 0.0), ("seed", 0, 1)):
        again = dataclasses.replace(whole, resume=True, **{name: now})
        with pytest.raises(ValueError, match=rf"was trained with {name}={then}, got {name}={now}"):
            train(again)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(config, tmp_path):
    """Killed at any moment, writing included, it loses no more than the steps since then."""
    whole = dataclasses.replace(config, steps=30, checkpoint_every=1, log_every=10)
    train(dataclasses.replace(whole, output=tmp_path / "whole"))
    code = "from pathlib import *\nfrom stylekernels.training import TrainConfig, train\n"
    choose, kills = random.Random(0), 0
    log = whole.run_path / "log.jsonl"
    while kills < 4:
        if log.exists():  # as if the last run had got further than its checkpoint
            log.write_text(log.read_text() + '{"step": 29}\n{"step": 3')
        state = whole.run_path / "checkpoint.pt"
        now = dataclasses.replace(whole, resume=state.exists())
        process = subprocess.Popen(
            [sys.executable, "-c", code + f"train({now!r})"], stderr=subprocess.DEVNULL
        )
        then = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns != then):
            time.sleep(0.01)
        time.sleep(choose.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert load_checkpoint(state)["step"] >= 1  # whole, whatever the moment
    assert train(dataclasses.replace(whole, resume=True)).steps == 30
    assert_same_weights(whole.output, tmp_path / "whole")
    assert os.listdir(whole.run_path).count("checkpoint.pt") == 1
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [10, 20, 30]


def refusal(config):
    """The message that refuses a run, which leaves the one in its folder as it is."""
    files = config.output, config.run_path / "config.json", config.run_path / "log.jsonl"
    before = [file.read_bytes() for file in files]
    with pytest.raises(SettingError) as refused:
        train(config)
    assert [file.read_bytes() for file in files] == before
    return str(refused.value)


def test_a_run_is_replaced_only_if_that_is_asked_for(config):
    new = dataclasses.replace(config, steps=4, log_every=2)
    stopped = interrupted(config)
    ending = "add overwrite to replace it and its output, or choose another output"
    assert refusal(new) == (
        f"run: {config.run_path} has a run that was stopped after 5 steps; add resume to go on, "
        + ending
    )
    assert train(stopped).steps == 8
    assert refusal(new) == (
        f"run: {config.run_path} has a finished run of 8 steps; add resume to train it longer with "
        f"more steps, {ending}"
    )
    result = train(dataclasses.replace(new, overwrite=True))
    assert result.steps == 4
    assert sorted(p.name for p in (result.run / "samples").iterdir()) == [
        "000002.png", "000004.png",
    ]  # fmt: skip
    assert len((result.run / "log.jsonl").read_text().splitlines()) == 2
    with pytest.raises(SettingError, match=r"^overwrite: expected none with resume, got both$"):
        train(dataclasses.replace(new, overwrite=True, resume=True))


def test_a_file_is_replaced_only_if_that_is_asked_for(config):
    """Such as a photo, or the style of another run."""
    new = dataclasses.replace(config, steps=1, run=config.output.parent / "another.run")
    config.output.write_text("mine")
    with pytest.raises(SettingError, match=r"^output: .*out\.safetensors exists; add overwrite"):
        train(new)
    assert config.output.read_text() == "mine"
    assert not new.run.exists()
    assert train(dataclasses.replace(new, overwrite=True)).steps == 1


def test_a_run_goes_on_without_a_setting_that_shapes_no_weights(config):
    """As a version without that setting left it."""
    again = interrupted(config)
    path = config.run_path / "checkpoint.pt"
    state = load_checkpoint(path)
    del state["version"], state["config"]["overwrite"]
    save_checkpoint(path, state)
    assert train(again).steps == 8


def test_an_ended_run_is_made_longer(config):
    train(config)
    result = train(dataclasses.replace(config, steps=10, resume=True))
    assert result.steps == 10


def test_a_finished_style_is_no_checkpoint(config, tmp_path):
    train(config)
    style = config.output.rename(tmp_path / "style.ckpt")
    with pytest.raises(SettingError, match="got a finished style; give it to init instead"):
        load_checkpoint(style)


def test_without_a_checkpoint_there_is_nothing_to_resume(config):
    with pytest.raises(
        SettingError, match=r"^resume: expected a checkpoint, there is no file .*pt"
    ):
        train(dataclasses.replace(config, resume=True))


def test_the_painting_is_known_by_its_content(config, tmp_path):
    """By another path, by a link and from another folder; not another painting at the old path."""
    train(config)
    art = shutil.copy(config.art, tmp_path / "painting.png")
    whole = tmp_path / "whole.safetensors"
    shutil.copy(config.output, whole)
    (tmp_path / "link.png").symlink_to(art)
    (tmp_path / "deeper").mkdir()
    for path in (
        shutil.copy(art, tmp_path / "deeper" / "copy.jpg"),
        tmp_path / "link.png",
        tmp_path / "deeper" / ".." / "painting.png",
    ):
        again = interrupted(dataclasses.replace(config, art=art, overwrite=True))
        train(dataclasses.replace(again, art=path))
        assert_same_weights(config.output, whole)
    again = interrupted(dataclasses.replace(config, art=art, overwrite=True))
    with Image.open(art) as image:
        image.rotate(90).save(art)
    with pytest.raises(SettingError, match=r"^resume: .* was trained on other files than those of"):
        train(again)


@pytest.mark.parametrize("now", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("then", ["float32", "bfloat16", "float16"])
def test_precision_may_change(config, then, now):
    """Gradients of float16 are scaled, and the scale is kept; other runs have none."""
    state = config.run_path / "checkpoint.pt"
    again = interrupted(config, precision=then)
    kept = load_checkpoint(state)["task"]["scaler"]
    assert bool(kept) == (then == "float16")
    result = train(dataclasses.replace(again, precision=now))
    assert result.steps == 8
    scaler = load_checkpoint(state)["task"]["scaler"]
    assert bool(scaler) == (now == "float16")
    if now == "float16":
        begun = kept or torch.amp.GradScaler("cpu").state_dict()
        steps, left = scaler["_growth_tracker"], 3
        # A gradient that overflows halves the scale, and the count of steps since starts again.
        if scaler["scale"] == begun["scale"]:
            assert steps == begun["_growth_tracker"] + left
        else:
            assert scaler["scale"] == begun["scale"] / 2
            assert 0 <= steps < left


@pytest.mark.parametrize("lost", ["step", "minutes", "finished", "config", "inputs", "task"])
def test_a_checkpoint_that_lacks_a_part_is_refused(config, lost):
    again = interrupted(config)
    path = config.run_path / "checkpoint.pt"
    state = load_checkpoint(path)
    del state["version"], state[lost]
    save_checkpoint(path, state)
    with pytest.raises(SettingError, match=r"^resume: .*pt: expected a checkpoint of this trainer"):
        train(again)
