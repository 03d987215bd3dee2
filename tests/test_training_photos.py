"""The photos of a training run: which are found, which are skipped, and in what order."""

import dataclasses
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from stylekernels.cli.main import main
from stylekernels.media.paths import find_photos_below
from stylekernels.training import SettingError, data, train
from stylekernels.training.data import RandomCrops, choose_photos, crop_batches, flat_picture
from stylekernels.training.style import StyleTask
from tests.pictures import picture, save
from tests.training_runs import assert_same_weights


def spoil(album):
    """Put files beside photos that are named like photos and are none; returns their names."""
    (album / "._a.jpg").write_bytes(b"\0\5\x16\7 left by another system")
    (album / "empty.jpg").touch()
    whole = save(album / "cut.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), "u1"))
    whole.write_bytes(whole.read_bytes()[:1500])
    (album / "album.jpg").mkdir(exist_ok=True)
    Image.new("1", (20000, 10000)).save(album / "huge.png")
    (album / "nowhere.png").symlink_to("missing.png")
    os.mkfifo(album / "pipe.png")
    save(album / "tiny.png", picture(8, 8))
    return {"._a.jpg", "empty.jpg", "cut.jpg", "huge.png", "nowhere.png", "pipe.png", "tiny.png"}


@pytest.fixture
def album(tmp_path):
    """Five photos of one colour each, from dark to light, one of them inside a folder."""
    for i in range(5):
        name = f"deeper/{i}.png" if i == 3 else f"{i}.png"
        save(tmp_path / "album" / name, np.full((40, 50, 3), 40 * i + 20, np.uint8))
    return tmp_path / "album"


def test_files_that_are_no_photos_are_skipped_and_counted(training_config, album, capsys):
    bad = spoil(album)
    save(album / "album.jpg" / "inside.png")  # a folder's name says nothing about it
    config = dataclasses.replace(training_config, photos=album, steps=6, held_out=12)
    result = train(config)
    assert result.steps == 6
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("photos: ")]
    assert lines == [f"photos: {problem}; skipped" for problem in result.skipped]
    assert {line.split(": ")[1].rpartition("/")[2] for line in lines} == bad
    assert len(lines) == len(bad)
    for name, text in {
        "._a.jpg": "a hidden file",
        "cut.jpg": "cut short: a part of the picture is missing",
        "huge.png": "more than 178 megapixels, the limit against decompression bombs; scale it",
        "nowhere.png": "no file, and no link to one",
        "tiny.png": "expected at least 16 pixels on each side, got 8x8",
    }.items():
        assert any(f"/{name}: {text}" in line for line in lines), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_photo_changes_no_crop_of_another(album, workers):
    """The next photo of the round takes its turn; the others keep theirs."""
    photos = [*find_photos_below(album)[0]]
    whole = [RandomCrops(photos, 32, 1)[i][0] for i in range(10)]
    photos[2].write_text("Dear diary")
    lines = []
    crops = RandomCrops(photos, 32, 1)
    batches = list(crop_batches(crops, 2, 0, 5, workers, lines.append))
    levels = [
        round(crop.mean().item() * 255) for crop in torch.cat([photo for photo, _ in batches])
    ]
    before = [round(crop.mean().item() * 255) for crop in whole]
    bad = [i for i, level in enumerate(before) if level == 40 * 2 + 20]
    assert len(bad) == 2  # once a round
    for i, (now, then) in enumerate(zip(levels, before, strict=True)):
        if i not in bad:
            assert now == then
    assert levels[bad[0]] == before[(bad[0] + 1) % 5]
    assert set(lines) == {f"{photos[2]}: not a picture in a format that can be read"}


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("held_out", [1, 8])
def test_too_few_photos_are_refused_first(training_config, tmp_path, good, held_out):
    """However many files there are: known before the loss network is opened."""
    (tmp_path / "album").mkdir()
    bad = spoil(tmp_path / "album")
    for i in range(good):
        save(tmp_path / "album" / f"{i}.png")
    config = dataclasses.replace(
        training_config, photos=tmp_path / "album", held_out=held_out, backbones=tmp_path / "none"
    )
    with pytest.raises(SettingError, match=rf"^photos: expected at least two .* read, got {good}$"):
        train(config)
    assert bad


@pytest.mark.parametrize("bad", [(0, 1), (1, 2), (3, 4), (0, 4)])
def test_two_photos_are_enough_wherever_they_are(tmp_path, bad):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    for i in bad:
        (tmp_path / f"{i}.png").write_text("Dear diary")
    train_on, held = choose_photos(tmp_path, 2, lambda line: None)
    assert held
    assert not {f"{i}.png" for i in bad} & {path.name for path in held}
    assert {path.name for path in train_on} - {f"{i}.png" for i in bad}
    assert not set(train_on) & set(held)


def test_two_photos_with_a_bad_one_between_them_are_enough(tmp_path) -> None:
    for name in ("a.png", "c.png"):
        save(tmp_path / name)
    (tmp_path / "b.png").touch()
    train_on, held = choose_photos(tmp_path, 1, lambda line: None)
    assert {path.name for path in (*train_on, *held)} >= {"a.png", "c.png"}
    assert len(held) == 1


def test_a_link_that_cannot_be_looked_up_is_a_line(tmp_path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("x" * 300)
    found, problems = find_photos_below(tmp_path)
    assert [path.name for path in found] == ["a.png"]
    assert len(problems) == 1
    assert "link.png: cannot be looked up" in problems[0]


def test_links_are_followed_and_loops_are_not(album, tmp_path):
    expected = {path.resolve() for path in find_photos_below(album)[0]}
    assert len(expected) == 5
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "photos").symlink_to(album)
    (linked / "again").symlink_to(album / "deeper")
    (album / "loop").symlink_to(album.parent)
    (album / "deeper" / "self").symlink_to("self")
    (linked / "one.png").symlink_to(album / "1.png")
    for folder in (linked, tmp_path / "link"):
        if folder.name == "link":
            folder.symlink_to(linked)
        found, problems = find_photos_below(folder)
        assert {path.resolve() for path in found} == expected
        assert len(found) == 5  # once each, though two are reached twice
        assert problems == []
    (album / ".thumbnails").mkdir()
    save(album / ".thumbnails" / "small.png")
    assert len(find_photos_below(album)[0]) == 5


def test_a_link_to_a_folder_trains_as_the_folder_does(training_config, tmp_path):
    train(training_config)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "photos").symlink_to(training_config.photos)
    linked = dataclasses.replace(
        training_config, photos=tmp_path / "all", output=tmp_path / "linked.safetensors"
    )
    train(linked)
    assert_same_weights(training_config.output, linked.output)


def test_a_round_is_shuffled_once(monkeypatch, tmp_path):
    """A crop of a collection as large as COCO costs no more than one of a small one."""
    count, shuffled = 118_287, []
    path = save(tmp_path / "a.png")
    crops = RandomCrops([path] * count, 32, 0)
    shuffle = random.Random.shuffle
    monkeypatch.setattr(
        random.Random, "shuffle", lambda self, x: (shuffled.append(len(x)), shuffle(self, x))
    )
    for i in (0, 1, 2, 70_000, count - 1, count, count + 1):
        crops[i]
    assert shuffled == [count, count]


def test_the_order_of_photos_is_that_of_older_versions(album):
    """So that a run begun before resumes with the crops that it would have seen."""
    photos = find_photos_below(album)[0]
    crops = RandomCrops(photos, 32, 7)
    for index in range(15):
        order = list(range(5))
        random.Random(f"7 round {index // 5}").shuffle(order)
        level = round(crops[index][0].mean().item() * 255)
        assert level == 40 * int(photos[order[index % 5]].stem) + 20


def test_the_command_counts_skipped_files(training_config, album, tmp_path, capsys):
    bad = spoil(album)
    command = [
        "train", "--art", training_config.art, "--photos", album, "--init",
        training_config.init, "--output", tmp_path / "out", "--backbones",
        training_config.backbones, "--features", "mixed", "--steps", "4", "--crop", "32",
        "--stroke", "0.125", "--gan-weight", "0", "--held-out", "9", "--threads", "1",
        "--batch-size", "2",
    ]  # fmt: skip
    assert main([str(part) for part in command]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{len(bad)} files among the photos left out"


def test_a_photo_that_vanishes_before_the_measuring_is_skipped(training_config, album, monkeypatch):
    """The style is written all the same."""
    measure = StyleTask.measure

    def without_one(run):
        run.held_out[0].unlink()
        return measure(run)

    monkeypatch.setattr(StyleTask, "measure", without_one)
    result = train(dataclasses.replace(training_config, photos=album))
    assert result.held_out["total"] > 0
    assert len(result.skipped) == 1
    assert result.skipped[0].endswith(": no such file")


def test_a_share_of_the_crops_is_flat(album):
    """Colours, gradients and smooth noise, each with a grain; the photos among them stay."""
    photos = find_photos_below(album)[0]
    crops, plain = RandomCrops(photos, 128, 1, flat=0.25), RandomCrops(photos, 128, 1)
    seen = [crops[i] for i in range(200)]
    share = sum(flat for _, flat, _ in seen) / len(seen)
    assert 0.15 < share < 0.35
    for i, (crop, flat, _) in enumerate(seen):
        assert crop.shape == (3, 128, 128)
        if not flat:
            assert torch.equal(crop, plain[i][0])
    ours = [crop for crop, flat, _ in seen if flat]
    assert len({crop.mean().item() for crop in ours}) == len(ours)
    for crop in ours:
        cells = F.interpolate(F.avg_pool2d(crop[None], 4), (128, 128))[0]
        assert (crop - cells).std() < 0.09
        assert crop.flatten(1).std(1).min() >= 0.9 / 255  # instance norm divides by it
    torch.testing.assert_close(
        flat_picture(random.Random(5), 48), flat_picture(random.Random(5), 48), rtol=0, atol=0
    )


def test_photos_are_decoded_once(album, monkeypatch):
    photos = find_photos_below(album)[0]
    crops = RandomCrops(photos, 32, 1)
    first = [crops[i][0] for i in range(15)]
    again = RandomCrops(photos, 32, 1)
    opened = []
    read = data.read_image
    monkeypatch.setattr(data, "read_image", lambda path: (opened.append(path), read(path))[1])
    assert all(torch.equal(again[i][0], crop) for i, crop in enumerate(first))
    assert sorted(opened) == photos
    opened.clear()
    cache = data.PhotoCache(megabytes=0)
    assert cache.read(photos[0]).size == cache.read(photos[0]).size
    assert opened == [photos[0]] * 2
