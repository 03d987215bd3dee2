"""Training of image generators: what is learnt, resuming, divergence, photos and labels."""

import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from stylekernels.models import ImageGenerator
from stylekernels.models.batch_norm import BatchNorm
from stylekernels.training import DcganConfig, DivergedError, SettingError, loop, train_dcgan
from stylekernels.training.averages import Average
from stylekernels.training.dcgan import DcganTask
from stylekernels.training.loop import Loop
from stylekernels.training.pictures import load_pictures
from tests.training_runs import blobs

COLORS = {"blue": (30, 60, 200), "red": (210, 50, 40)}


def colored(folder, name, count=6):
    """Write pictures in tints of a colour, with a little structure."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.asarray(blobs(i, 70, 66), float) - 128
        pixels = np.clip(np.array(COLORS[name]) + 0.2 * noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two folders of six pictures, red and blue."""
    root = tmp_path_factory.mktemp("photos")
    for name in COLORS:
        colored(root / name, name)
    return root


@pytest.fixture
def config(photos, tmp_path):
    return DcganConfig(
        photos=photos,
        output=tmp_path / "out.safetensors",
        steps=4,
        batch_size=4,
        log_every=2,
        threads=1,
    )


def drawn(path, count=32, **changes):
    """Mean colours of pictures of a generator, (count, 3), in 0..255."""
    generator = ImageGenerator.from_pretrained(path)
    codes = generator.draw(count, device="cpu", generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pictures = generator(*codes._replace(**changes))
    return pictures.mean((2, 3)).numpy() * 255


def assert_same_weights(one, other):
    weights, others = (ImageGenerator.from_pretrained(p).state_dict() for p in (one, other))
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


def stop_in(patch, step, number=signal.SIGINT):
    """Send this process a signal while a step runs."""
    take = DcganTask.step

    def counted(self, at, *rest):
        if at == step:
            os.kill(os.getpid(), number)
        return take(self, at, *rest)

    patch.setattr(DcganTask, "step", counted)


# ---- what is learnt -----------------------------------------------------------------------------


def test_the_colors_of_labels_are_learnt(config):
    """The pictures of one label become redder than those of the other."""
    train_dcgan(
        dataclasses.replace(
            config,
            conditional=True,
            steps=30,
            batch_size=8,
            learning_rate=1e-3,
            discriminator_rate=1e-3,
            augment=0.0,
            ema=0.7,
            log_every=30,
        )
    )
    (blue, red) = (
        drawn(config.output, label=torch.full((32,), label)).mean(0) for label in range(2)
    )
    assert red[0] - blue[0] > 20, (red, blue)
    assert blue[2] - red[2] > 20, (red, blue)


@pytest.mark.parametrize("gan_loss", ["hinge", "lsgan", "log"])
def test_every_loss_trains(config, gan_loss):
    result = train_dcgan(dataclasses.replace(config, gan_loss=gan_loss, r1=1.0))
    assert result.losses.keys() == {"discriminator", "generator", "accuracy"}
    assert all(math.isfinite(value) for value in result.losses.values())
    assert 0 < result.losses["accuracy"] <= 1
    lines = [json.loads(line) for line in (config.run_path / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["r1"] > 0
    assert "r1" not in lines[1]  # it comes in the first step of four
    sheet = np.asarray(Image.open(config.run_path / "samples" / "000004.png"))
    assert sheet.shape == (530, 530, 3)
    assert drawn(config.output).std(0).min() > 0.01  # no two pictures are the same


def test_codes_are_recognised(config):
    """Better than by chance after some steps; the file has the codes."""
    result = train_dcgan(
        dataclasses.replace(
            config,
            categories=3,
            continuous=2,
            info_weight=10.0,
            steps=30,
            batch_size=8,
            learning_rate=1e-3,
            discriminator_rate=1e-3,
            augment=0.0,
            log_every=10,
        )
    )
    lines = [json.loads(line) for line in (config.run_path / "log.jsonl").open()]
    chance = math.log(3) + 2 / 6  # the entropy of a category, half the variances
    assert lines[0]["info"] == pytest.approx(chance, abs=0.4)
    assert result.losses["info"] < 0.85 * chance
    shape = ImageGenerator.from_pretrained(config.output).config
    assert (shape.categories, shape.continuous, shape.labels) == (3, 2, ())


def test_passes_of_a_step_are_averaged(config, monkeypatch):
    """Two passes see twice the photos, and losses are means over both."""
    seen, judge = [], DcganTask._judging

    def recorded(self, index, step):
        parts, total = judge(self, index, step)
        seen.append((index, step, parts["discriminator"].item()))
        return parts, total

    monkeypatch.setattr(DcganTask, "_judging", recorded)
    result = train_dcgan(dataclasses.replace(config, accumulate=2, steps=2))
    assert [step[:2] for step in seen] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert result.losses["discriminator"] == pytest.approx(np.mean([step[2] for step in seen]))


def test_the_learning_rate_does_not_fall(config, monkeypatch):
    """After the ramp at the start, all steps have the one that was asked for."""
    rates, take = [], DcganTask.step

    def recorded(self, *arguments):
        losses = take(self, *arguments)
        rates.append([each.param_groups[0]["lr"] for each in self._optimizers.values()])
        return losses

    monkeypatch.setattr(DcganTask, "step", recorded)
    monkeypatch.setattr(loop, "_RAMP_STEPS", 2)
    train_dcgan(config)
    asked = [config.learning_rate, config.discriminator_rate]
    assert rates == [[rate / 2 for rate in asked], asked, asked, asked]


def test_what_is_saved_is_the_average(config):
    train_dcgan(config)
    average = ImageGenerator.from_pretrained(config.output).state_dict()
    state = torch.load(config.run_path / "checkpoint.pt")["task"]
    for name, tensor in state["average"].items():
        assert torch.equal(average[name], tensor), name
        assert not torch.equal(average[name], state["generator"][name]), name


def test_the_average():
    network = BatchNorm(2, negative_slope=0.2)
    average = Average(network, 0.5)
    with torch.no_grad():
        for step, value in enumerate((4.0, 8.0, 2.0)):
            network.weight.fill_(value)
            network.running_mean.fill_(-value)
            average.update(network, step)
    weight, mean = 1.0, 0.0
    for decay, value in zip((1 / 10, 2 / 11, 3 / 12), (4.0, 8.0, 2.0), strict=True):
        weight = decay * weight + (1 - decay) * value
        mean = decay * mean - (1 - decay) * value
    assert average.network.weight.tolist() == pytest.approx([weight] * 2)
    assert average.network.running_mean.tolist() == pytest.approx([mean] * 2)


# ---- resuming, stopping, diverging --------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"conditional": True, "categories": 2, "continuous": 1}])
def test_a_resumed_run_is_bit_for_bit_the_whole_one(config, tmp_path, changes):
    config = dataclasses.replace(config, steps=3, r1=1.0, batch_size=2, **changes)
    train_dcgan(config)
    parts = dataclasses.replace(config, output=tmp_path / "parts.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, 1)
        stopped = train_dcgan(parts)
    assert stopped.interrupted
    assert stopped.steps == 2
    with pytest.raises(
        SettingError, match=r"^run: .* has a run that was stopped after 2 steps; add resume"
    ):
        train_dcgan(parts)
    resumed = train_dcgan(dataclasses.replace(parts, resume=True))
    assert not resumed.interrupted
    assert resumed.steps == 3
    assert_same_weights(config.output, parts.output)


def test_resuming_on_other_pictures_or_settings_is_refused(config, tmp_path):
    train_dcgan(config)
    with pytest.raises(SettingError, match=r"with gan_loss=log, got gan_loss=hinge; use the same$"):
        train_dcgan(dataclasses.replace(config, resume=True, gan_loss="hinge"))
    colored(tmp_path / "others", "red")
    with pytest.raises(SettingError, match=r"other files than those of photos; use the same$"):
        train_dcgan(dataclasses.replace(config, resume=True, photos=tmp_path / "others"))


def test_a_signal_before_the_first_step_writes_nothing(config, monkeypatch):
    take = Loop.run
    monkeypatch.setattr(Loop, "run", lambda loop: loop.stop(signal.SIGINT, None) or take(loop))
    with pytest.raises(KeyboardInterrupt, match="no generator yet, nothing is written"):
        train_dcgan(config)
    assert not config.output.exists()


@pytest.mark.parametrize("term", ["discriminator", "generator"])
def test_a_loss_that_is_not_finite_is_named_with_its_step(config, monkeypatch, term):
    take = DcganTask.step

    def broken(self, number, *rest):
        losses = take(self, number, *rest)
        if number == 3:
            losses[term] = losses[term] * torch.inf
        return losses

    monkeypatch.setattr(DcganTask, "step", broken)
    with pytest.raises(
        DivergedError,
        match=rf"^learning_rate: at step 3 {term} became inf; lower learning_rate; "
        r".*out\.safetensors has the generator of step 2$",
    ):
        train_dcgan(config)
    assert np.isfinite(drawn(config.output)).all()


def test_a_learning_rate_that_is_too_large(config):
    with pytest.raises(
        DivergedError, match=r"^learning_rate: at step \d .*became nan; lower learn"
    ):
        train_dcgan(dataclasses.replace(config, learning_rate=1e30, discriminator_rate=1e30))


# ---- photos and settings ------------------------------------------------------------------------


def test_photos_of_every_kind_and_files_that_are_none(tmp_path):
    colored(tmp_path / "deeper", "red", 2)
    blobs(5, 300, 65).convert("L").save(tmp_path / "grey.png")
    blobs(6, 40, 30).save(tmp_path / "small.png")
    blobs(7, 90, 90).convert("CMYK").save(tmp_path / "cmyk.jpg")
    blobs(8, 15, 90).save(tmp_path / "tiny.png")
    whole = (tmp_path / "cmyk.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no photo")
    (tmp_path / "notes.txt").write_text("not even named like one")
    skipped = []
    pictures = load_pictures(tmp_path, 64, 0, skipped.append)
    assert pictures.pixels.shape == (5, 64, 64, 3)
    assert pictures.names == ()
    assert sorted(line.partition(": ")[0].rpartition("/")[2] for line in skipped) == [
        "broken.jpg", "text.png", "tiny.png",
    ]  # fmt: skip
    cmyk, red, _, grey, small = pictures.pixels.float()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert grey.std() > 10
    assert red.mean((0, 1)).numpy() == pytest.approx(COLORS["red"], abs=20)
    for picture, original in ((cmyk, blobs(7, 90, 90)), (small, blobs(6, 40, 30))):
        expected = np.asarray(original).mean((0, 1))
        assert picture.mean((0, 1)).numpy() == pytest.approx(expected, abs=25)


def test_labels_are_names_of_folders(tmp_path):
    colored(tmp_path / "b" / "deep", "blue", 2)
    colored(tmp_path / "a", "red", 1)
    colored(tmp_path, "blue", 1)
    (tmp_path / "empty").mkdir()
    skipped = []
    pictures = load_pictures(tmp_path, 64, 0, skipped.append, labelled=True)
    assert pictures.names == ("a", "b")
    assert pictures.labels.tolist() == [0, 1, 1]
    (line,) = skipped
    assert line.endswith("blue0.png: in no sub-folder, whose name would be its label")
    with pytest.raises(
        SettingError, match=r"^conditional: .*at least two folders.* got one, deep$"
    ):
        load_pictures(tmp_path / "b", 64, 0, skipped.append, labelled=True)


def test_every_picture_comes_once_in_a_round(photos):
    pictures = load_pictures(photos, 64, 5, print)
    torch.manual_seed(0)
    pixels = torch.cat([pictures.batch(i, 4)[0] for i in range(6)])
    originals = pictures.pixels.permute(0, 3, 1, 2) / 255
    found, mirrored = [], 0
    for x in pixels:
        same = (originals == x).all(-1).all(-1).all(-1)
        flipped = (originals == x.flip(-1)).all(-1).all(-1).all(-1)
        found += (same | flipped).nonzero()[:, 0].tolist()
        mirrored += int(flipped.any())
    assert sorted(found[:12]) == sorted(found[12:]) == list(range(12))
    assert found[:12] != found[12:]
    assert 3 < mirrored < 21
    again = load_pictures(photos, 64, 5, print)
    torch.manual_seed(1)
    assert torch.equal(again.batch(4, 4)[1], pictures.batch(4, 4)[1])
    assert again.digest() == pictures.digest()


def test_folders_without_photos(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"^photos: expected at least two photos in .*, got 0$"):
        train_dcgan(dataclasses.replace(config, photos=tmp_path / "empty"))
    with pytest.raises(SettingError, match=r"^photos: expected a folder that exists, got .*none$"):
        train_dcgan(dataclasses.replace(config, photos=tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gan_loss": "wgan"}, "gan_loss: expected one of hinge, lsgan, log, got wgan"),
        ({"discriminator_rate": 0.0}, "discriminator_rate: expected above 0 and at most 1e38, got"),
        ({"noise": 0}, "noise: expected at least 1, got 0"),
        ({"categories": 1}, "categories: expected 0 or at least 2, got 1"),
        ({"continuous": -1}, "continuous: expected 0 or more, got -1"),
        ({"info_weight": -1.0}, "info_weight: expected 0 or more, got -1.0"),
        ({"r1": math.inf}, "r1: expected 0 or more, got inf"),
        ({"augment": 1.5}, "augment: expected from 0 to 1, got 1.5"),
        ({"device": "tpu"}, "device: expected cpu or cuda, got 'tpu'"),
    ],
)
def test_settings_that_are_refused(config, changes, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        train_dcgan(dataclasses.replace(config, **changes))
    assert not config.output.exists()
