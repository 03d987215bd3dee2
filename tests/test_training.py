"""Short training runs on synthetic pictures with a small random loss network."""

import dataclasses
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from stylekernels import hardware
from stylekernels.inference import Stylizer
from stylekernels.media.paths import find_photos_below
from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.training import SettingError, train
from stylekernels.training.color_transfer import ColorTransfer
from stylekernels.training.data import (
    RandomCrops,
    choose_photos,
    crop_batches,
    read_image,
    resized,
    to_tensor,
)
from stylekernels.training.style import StyleTask
from tests.training_runs import assert_same_weights, weights_of


@pytest.fixture
def folder(training_folder):
    return training_folder


@pytest.fixture
def config(training_config):
    return training_config


def test_training_lowers_the_loss_it_reports(config):
    before = train(dataclasses.replace(config, steps=1, learning_rate=1e-9)).held_out
    long = dataclasses.replace(config, steps=200, learning_rate=5e-3, overwrite=True)
    result = train(long)
    assert result.steps == 200
    assert not result.interrupted
    # Seeds and roundings end between 0.57 and 0.76.
    assert result.held_out["total"] < 0.82 * before["total"]
    assert result.held_out["style"] < 0.82 * before["style"]
    for losses in (result.losses, result.held_out):
        styles = [losses[f"style/relu{i}_1"] for i in range(1, 6)]
        contents = [losses[f"content/relu{i}_1"] for i in (2, 3, 4)]
        assert losses["style"] == pytest.approx(np.mean(styles))
        assert losses["content"] == pytest.approx(np.mean(contents))
        total = losses["content"] + config.style_weight * losses["style"] + losses["tv"]
        assert losses["color"] > 0  # measured, though it has no weight
        assert losses["total"] == pytest.approx(total)


def test_losses_aim_at_the_photo_in_the_colors_of_the_painting(config):
    """Colours come closer to the transferred photo's, and nearer still with a weight of their
    own; content is measured against that photo as well."""
    same = dataclasses.replace(config, steps=1, learning_rate=1e-9)
    transferred = {"art_colors": 1.0, "color_weight": 2.0, "overwrite": True}
    as_is = train(same).held_out
    before = train(dataclasses.replace(same, **transferred)).held_out
    for name in ("content", "color"):
        assert before[name] != pytest.approx(as_is[name], rel=0.02), name
    for name in ("style", "tv"):
        assert before[name] == pytest.approx(as_is[name], rel=1e-5), name
    long = dataclasses.replace(config, steps=60, learning_rate=5e-3, **transferred)
    result = train(long)
    for losses in (result.losses, result.held_out):
        style = config.style_weight * losses["style"]
        total = losses["content"] + style + losses["tv"] + 2 * losses["color"]
        assert losses["total"] == pytest.approx(total)
    assert result.held_out["color"] < 0.7 * before["color"]
    # Sixty steps from other roundings end at other colours: a large weight stands out from that.
    heavy, unweighted = (
        train(dataclasses.replace(long, color_weight=weight)).held_out for weight in (20.0, 0.0)
    )
    assert heavy["color"] < 0.7 * unweighted["color"]


@pytest.mark.parametrize("art_colors", [0.0, 1.0])
def test_warm_up_learns_the_photo(config, folder, art_colors):
    """New weights see the photo through, in the colours asked for, before the style comes in."""
    photo = to_tensor(read_image(sorted((folder / "photos").glob("*.png"))[0]))[None]
    target = photo
    if art_colors:
        target = ColorTransfer(to_tensor(read_image(folder / "style.png")))(photo)
    errors = []
    for steps in (0, 40):
        new = dataclasses.replace(
            config, init="bilinear", lite=True, warmup_steps=steps, steps=1, learning_rate=1e-9,
            art_colors=art_colors, overwrite=True,
        )  # fmt: skip
        train(new)
        generator = StyleGenerator.from_pretrained(config.output)
        assert generator.config == GeneratorConfig.lite(upsample="nearest")
        with torch.no_grad():
            errors.append((generator(photo) - target).abs().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_same_seed_same_weights_and_another_seed_others(config, tmp_path):
    train(config)
    again = dataclasses.replace(config, output=tmp_path / "again", workers=1)
    train(again)
    assert_same_weights(config.output, again.output)
    train(dataclasses.replace(again, seed=1, workers=0, overwrite=True))
    name = "to_rgb.weight"
    assert not torch.equal(weights_of(config.output)[name], weights_of(again.output)[name])


def test_the_log_tells_of_the_warm_up_and_the_losses(config, capsys):
    new = dataclasses.replace(config, init="bilinear", lite=True, warmup_steps=9, steps=2)
    result = train(dataclasses.replace(new, log_every=4))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {n}" for n in (-8, -4, 0, 2)]
    assert all(" warm-up 0." in line for line in lines[:3])
    assert " style " in lines[3]
    assert "relu" not in lines[3]
    logged = [json.loads(line) for line in (result.run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [-8, -4, 0, 2]
    assert logged[3]["total"] == pytest.approx(result.losses["total"])
    assert all(entry["images/s"] > 0 for entry in logged)


def test_minutes_end_a_run(config):
    result = train(dataclasses.replace(config, steps=10**6, minutes=0.02))
    assert 0 < result.steps < 10**5
    assert not result.interrupted


def test_the_run_folder_has_settings_environment_curves_and_samples(config, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(dataclasses.replace(config, preview=folder / "style.png"))
    assert result.run == config.output.with_suffix(".run")
    events = EventAccumulator(str(result.run / "tensorboard")).Reload()
    curve = events.Scalars("train/style/relu1_1")
    assert [point.step for point in curve] == [4, 8]
    assert curve[-1].value == pytest.approx(result.losses["style/relu1_1"], rel=1e-5)
    assert [image.step for image in events.Images("samples")] == [4, 8]
    assert sorted(p.name for p in (result.run / "samples").iterdir()) == [
        "000004.png",
        "000008.png",
    ]
    settings = json.loads((result.run / "config.json").read_text())
    assert settings == dataclasses.replace(config, preview=folder / "style.png").to_dict()
    environment = json.loads((result.run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["cpu_threads"] == 1


def test_samples_show_the_photo_and_its_picture(config, folder):
    """By the weights that are saved, beside the photo, scaled up to the size of samples."""
    photo = folder / "photos" / "0.png"
    result = train(dataclasses.replace(config, preview=photo))
    sheet = np.asarray(Image.open(result.run / "samples" / "000008.png"))
    small = resized(read_image(photo), 384)
    picture = Stylizer(StyleGenerator.from_pretrained(config.output), torch.float32)(
        np.asarray(small)
    )
    height, width = picture.shape[:2]
    for expected, left in ((np.asarray(small), 40), (picture, 40 + width + 24)):
        shown = sheet[40 : 40 + height, left : left + width].astype(int)
        assert np.abs(shown - expected).max() <= 1


def test_an_average_of_the_weights_is_saved(config):
    """It lags behind the weights, and is their mean: of a decay that grows to the one asked for."""
    seen = []
    take = StyleTask.step

    def step(task, *arguments):
        losses = take(task, *arguments)
        seen.append({k: v.clone() for k, v in task.generator.state_dict().items()})
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StyleTask, "step", step)
        train(dataclasses.replace(config, ema=0.3))
    average = weights_of(config.init)
    for number, weights in enumerate(seen):
        decay = min(0.3, (1 + number) / (10 + number))
        average = {k: decay * v + (1 - decay) * weights[k] for k, v in average.items()}
    found = weights_of(config.output)
    for name, tensor in average.items():
        torch.testing.assert_close(found[name], tensor)
    assert not torch.equal(found["to_rgb.weight"], seen[-1]["to_rgb.weight"])


def test_accumulated_passes_are_one_batch(config, tmp_path):
    """Four passes of one photo make the steps of one pass of four, to rounding."""
    config = dataclasses.replace(config, steps=3, precision="float32", tv_weight=0.0)
    train(dataclasses.replace(config, batch_size=4))
    whole = weights_of(config.output)
    parts = dataclasses.replace(config, batch_size=1, accumulate=4, output=tmp_path / "parts")
    train(parts)
    moved = weights_of(config.init)
    for name, tensor in weights_of(parts.output).items():
        if name.startswith("to_rgb"):
            change = (whole[name] - moved[name]).norm()
            assert change > 0
            assert (tensor - whole[name]).norm() < 0.02 * change, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"crop": 16}, "crop: expected at least 32 pixels, got 16"),
        ({"style_weight": -1.0}, "style_weight: expected 0 or more, got -1.0"),
        ({"color_weight": math.nan}, "color_weight: expected 0 or more, got nan"),
        ({"art_colors": 1.5}, "art_colors: expected from 0 to 1, got 1.5"),
        ({"stroke": 0.0}, "stroke: expected from 0.05 to 8, got 0.0"),
        ({"ema": 1.0}, "ema: expected at least 0 and below 1, got 1.0"),
        ({"gan_loss": "kl"}, "gan_loss: expected one of hinge, lsgan, log, got kl"),
        ({"gan_weight": 0.3}, "crop: expected at least 64 pixels, got 32"),
        ({"gan_rate": 0.0}, "gan_rate: expected above 0 and at most 1e38, got 0.0"),
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        ({"learning_rate": math.inf}, "learning_rate: expected above 0 and at most 1e38, got inf"),
        ({"minutes": 0.0}, r"minutes: expected above 0, got 0\.0"),
        ({"lite": True}, "lite: the network's shape comes from init="),
        ({"upsample": "transpose"}, "upsample: the network's shape comes from init="),
        ({"init": "mona_lisa"}, "^init: expected a bundled style .* got 'mona_lisa'"),
        ({"device": "abacus"}, "device: expected cpu or cuda, got 'abacus'"),
    ],
)
def test_settings_are_checked(config, changes, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, **changes))


def test_missing_and_broken_images_are_named(config, tmp_path):
    with pytest.raises(ValueError, match=r"art: expected an image file .*nowhere\.jpg"):
        train(dataclasses.replace(config, art=tmp_path / "nowhere.jpg"))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(SettingError, match=r"^art: .*broken\.jpg: not a picture"):
        train(dataclasses.replace(config, art=tmp_path / "broken.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"^photos: expected at least two photos"):
        train(dataclasses.replace(config, photos=tmp_path / "empty"))
    (tmp_path / "out.run").mkdir()
    (tmp_path / "broken.jpg").rename(tmp_path / "out.run" / "checkpoint.pt")
    with pytest.raises(SettingError, match=r"^resume: .*expected a checkpoint of this trainer"):
        train(dataclasses.replace(config, resume=True))


def test_photos_are_split_for_good(folder):
    photos, _ = find_photos_below(folder / "photos")
    assert len(photos) == 6
    for count, expected in ((1, 1), (2, 2), (3, 3), (50, 3)):
        train_on, held_out = choose_photos(folder / "photos", count, pytest.fail)
        assert len(held_out) == expected
        assert sorted([*train_on, *held_out]) == photos


def test_crops_show_every_photo_in_each_round(folder):
    photos, _ = find_photos_below(folder / "photos")
    crops = RandomCrops(photos, 32, seed=3)
    batches = list(crop_batches(crops, 2, start=0, stop=6, workers=0, skip=pytest.fail))
    assert torch.stack([photo for photo, _ in batches]).shape == (6, 2, 3, 32, 32)
    torch.testing.assert_close(batches[4][0][1], crops[9][0])
    assert not torch.cat([flat for _, flat in batches]).any()
    plain = []
    for i, photo in enumerate(photos):
        Image.new("RGB", (60, 50), (40 * i, 0, 0)).save(path := photo.with_suffix(".bmp"))
        plain.append(path)
    crops = RandomCrops(plain, 32, 3)
    seen = [round(crops[i][0][0].mean().item() * 255 / 40) for i in range(12)]
    for path in plain:
        path.unlink()
    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 3, 4, 5]
    assert seen[:6] != seen[6:]


def test_configuration_can_be_stored(config):
    assert json.loads(json.dumps(config.to_dict()))["art"] == str(config.art)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept():
    """A training run's tensors come from memory that it has used before, without page faults."""
    code = """
import resource, sys, torch
from stylekernels.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.ones(1 << 25)
print(min(faults() for _ in range(4)))
"""

    def fewest_faults(how):
        command = [sys.executable, "-c", code, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    keep, leave = fewest_faults("keep"), fewest_faults("leave")
    assert keep < 100 < leave


@pytest.mark.parametrize("most", [1 << 30, 32 << 20, 0])
def test_older_versions_of_malloc_are_asked_for_what_they_have(monkeypatch, most):
    """Alone, the threshold for what is given back would end the adjustment of the other."""
    taken = {}

    def mallopt(option, value):
        if option == hardware._M_MMAP_THRESHOLD and value > most:
            return 0
        taken[option] = value
        return 1

    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    hardware.keep_freed_memory()
    thresholds = (hardware._M_MMAP_THRESHOLD, hardware._M_TRIM_THRESHOLD)
    assert taken == (dict(zip(thresholds, (most, (1 << 31) - 1), strict=True)) if most else {})


def test_networks_photos_and_targets_are_channels_last(config, monkeypatch):
    """Convolutions are fastest so; the colour transfer's pictures are channels_last as well."""
    run, seen = StyleTask.pass_style, []

    def watch(task, style, photo, *rest):
        weights = [w for w in task.optimise.network.working.parameters() if w.dim() == 4]
        seen.extend([photo, style.objective.target(photo), *weights])
        return run(task, style, photo, *rest)

    monkeypatch.setattr(StyleTask, "pass_style", watch)
    train(dataclasses.replace(config, art_colors=1.0, steps=1))
    assert len(seen) == 2 + 8  # photo, target, kernels
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
