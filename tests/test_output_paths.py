"""Every option that names a path, for every kind of path that cannot be read or written. It is
refused in one line that names the option, before the first step, and nothing is written."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

import stylekernels.training
from stylekernels.cli.main import main
from stylekernels.training import SettingError, train
from stylekernels.training.checkpoint import save_checkpoint
from tests.pictures import complaints, save, written

TRAIN = ["train", "--art", "painting.png", "--photos", "album", "--backbones", "album"]
STYLIZE = ["stylize", "painting.png", "--style", "style.dat"]
DEMO = ["demo", "--style", "style.dat"]


@pytest.fixture
def place(folder, generator, monkeypatch):
    """A folder with a painting, photos, a style and other things; training itself would fail."""
    for name in ("painting.png", "album/a.png", "album/b.jpg", "album/deeper/c.png"):
        save(name)
    generator.save_pretrained("style.dat")
    generator.save_pretrained("weights.png")  # the content decides, not the name
    Path("note").write_text("a file")
    os.mkfifo("pipe.png")
    os.mkfifo("pipe")
    Path("link.png").symlink_to("painting.png")
    monkeypatch.setattr(stylekernels.training, "train", lambda config: pytest.fail("trained"))
    return folder


def refusal(arguments, capsys):
    before = written(Path())
    assert main(arguments) == 2
    assert written(Path()) == before
    (line,) = complaints(capsys)
    return line


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("album", "album: expected to write a file here, found a folder"),
        (".", ".: expected to write a file here, found a folder"),
        ("note/x.safetensors", "note: this cannot be a folder, because note is a file"),
        ("note/deeper/x", "note/deeper: this cannot be a folder, because note is a file"),
        ("/proc/x.safetensors", "/proc: cannot write in /proc: "),
        ("/proc/new/x.safetensors", "/proc/new: cannot write in /proc: "),
        ("/dev/null", "/dev/null: expected to write a file here, found a device"),
        ("pipe", "pipe: expected to write a file here, found a device"),
        ("n" * 300, "n" * 300 + ": cannot be looked up: File name too long"),
        ("new/" + "n" * 300 + "/x", "new/" + "n" * 300 + ": cannot be looked up: File name"),
        ("painting.png", "painting.png: the result would replace this file, which is one of"),
        ("link.png", "link.png: the result would replace this file, which is one of"),
    ],
)
def test_train_refuses_where_it_cannot_write(place, capsys, path, text):
    assert refusal([*TRAIN, "--output", path], capsys).startswith(f"--output: {text}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--init", "style.dat", "--output", "style.dat"], "--output: style.dat: the result would"),
        (["--run", "note"], "--run: note: this cannot be a folder, because note is a file"),
        (["--run", "note/x"], "--run: note/x: this cannot be a folder, because note is a file"),
        (["--run", "/proc/x"], "--run: /proc/x: cannot write in /proc: "),
        (["--output", "x", "--run", "x"], "--output: expected files outside of "),
        (["--output", "r/x", "--run", "r"], "--output: expected files outside of "),
        (["--run", "album/run"], "--run: expected a folder outside of the photos' album, got"),
        (["--precision", "auto", "--run", "."], "--output: expected files outside of "),
        (["--art", "note/x"], "--art: expected an image file or a folder that exists, got note/x"),
        (["--art", "pipe.png"], "--art: expected an image file or a folder, got a device or a pip"),
        (["--preview", "album"], "--preview: expected an image file that exists, got album"),
        (["--preview", "pipe.png"], "--preview: expected an image file that exists, got pipe.png"),
        (["--photos", "note"], "--photos: expected a folder that exists, got note"),
        (["--photos", "note/x"], "--photos: expected a folder that exists, got note/x"),
        (["--init", "album"], "--init: expected a bundled style"),
    ],
)
def test_train_refuses_other_paths(place, capsys, arguments, text):
    assert refusal([*TRAIN, *arguments], capsys).startswith(text)


@pytest.mark.parametrize("inside", ["photos", "art"])
def test_train_refuses_to_replace_a_picture_it_learns_from(training_config, tmp_path, inside):
    """Known before the loss network is opened, and whatever the paths look like. ``overwrite`` does
    not allow it."""
    (tmp_path / "album").mkdir()
    for i in range(3):
        save(tmp_path / "album" / f"{i}.png")
    (tmp_path / "other").symlink_to(tmp_path / "album")
    config = dataclasses.replace(
        training_config,
        output=tmp_path / "other" / "1.png",
        run=tmp_path / "run",
        backbones=tmp_path / "none",
        **{inside: tmp_path / "album"},
    )
    with pytest.raises(SettingError, match=r"^output: .*1\.png exists; add overwrite"):
        train(config)
    with pytest.raises(SettingError, match=r"^output: .*1\.png: the result would replace"):
        train(dataclasses.replace(config, overwrite=True))
    assert not config.run.exists()


@pytest.mark.parametrize("backbones", ["note", "album", "missing"])
def test_train_refuses_backbones_that_are_none(training_config, tmp_path, backbones):
    (tmp_path / "note").write_text("a file")
    (tmp_path / "album").mkdir()
    for features in ("mixed", "vgg19"):
        config = dataclasses.replace(
            training_config, features=features, backbones=tmp_path / backbones
        )
        with pytest.raises(SettingError, match=rf"^backbones: .*{backbones}"):
            train(config)


@pytest.mark.parametrize(
    ("verb", "path", "text"),
    [
        (STYLIZE, "note/x.png", "note: this cannot be a folder, because note is a file"),
        (STYLIZE, "/proc/x.png", "/proc: cannot write in /proc: "),
        (STYLIZE, "/proc/new/", "/proc/new: cannot write in /proc: "),
        (STYLIZE, "pipe.png", "pipe.png: expected to write a file here, found a device"),
        (STYLIZE, "n" * 300 + ".png", "n" * 300 + ".png: cannot be looked up: File name"),
        (STYLIZE, "link.png", "link.png: the result would replace this file"),
        ([*STYLIZE[:-1], "weights.png"], "weights.png", "weights.png: the result would replace"),
        (DEMO, "note/x.png", "note: this cannot be a folder, because note is a file"),
        (DEMO, "/proc/x.png", "/proc: cannot write in /proc: "),
        (DEMO, "pipe.png", "pipe.png: expected to write a file here, found a device"),
        ([*DEMO[:-1], "weights.png"], "weights.png", "weights.png: the result would replace"),
    ],
)
def test_stylize_and_demo_refuse_where_they_cannot_write(place, capsys, verb, path, text):
    assert refusal([*verb, "--output", path], capsys).startswith(f"--output: {text}")


def test_a_pipe_is_not_waited_for(place, capsys):
    assert main(["stylize", "pipe.png", "--style", "style.dat", "--output", "out"]) == 2
    assert complaints(capsys) == ["pipe.png: expected a picture, got a device or a pipe"]


@pytest.mark.parametrize("culprit", ["log.write_whole", "loop.save_checkpoint"])
def test_a_file_that_fails_to_be_written_on_the_way_does_not_end_the_run(
    training_config, monkeypatch, capsys, culprit
):
    """The disk is full when the run is under way; the style is still written at its end."""

    def fail(path, *rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"stylekernels.training.{culprit}", fail)
    assert train(training_config).steps == 8
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith("cannot be written: No space left on device") for line in lines].count(
        True
    ) == 1
    assert training_config.output.is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_checkpoint_on_a_full_disk_is_an_oserror(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stylekernels.training.checkpoint.write_whole", lambda path, write: write(path)
    )
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(Path("/dev/full"), {"task": torch.rand(1 << 16)})


def test_a_folder_with_other_files_is_no_run_folder(training_config, tmp_path):
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    (tmp_path / "mine" / "samples" / "keep.png").write_text("mine")
    with pytest.raises(SettingError, match=r"^run: .*mine has files and no run; choose another"):
        train(dataclasses.replace(training_config, run=tmp_path / "mine"))
    assert (tmp_path / "mine" / "samples" / "keep.png").read_text() == "mine"
