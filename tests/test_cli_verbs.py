"""The command line's other verbs, its help, and the whole as a process."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stylekernels
from stylekernels import native
from stylekernels.cli.demo import Demo
from stylekernels.cli.main import main
from stylekernels.cli.options import described
from stylekernels.inference import Stylizer
from stylekernels.models import bundled_styles, styles
from stylekernels.ops import dispatch
from stylekernels.training import TrainResult
from stylekernels.training.config import TrainConfig
from stylekernels.training.dcgan_config import DcganConfig
from tests.pictures import complaints, load, written


@pytest.mark.parametrize(
    "verb", [[], ["demo"], ["stylize"], ["video"], ["serve"], ["train"], ["info"]]
)
def test_help_fits_80_columns(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*verb, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(" ".join(["usage: stylekernels", *verb]))
    assert max(map(len, captured.out.splitlines())) <= 80
    assert captured.err == ""


@pytest.mark.parametrize(("config", "verb"), [(TrainConfig, "train"), (DcganConfig, "train-dcgan")])
def test_help_groups_the_settings_of_training(capsys, config, verb):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for heading in ("main options", "run folder options", "optimiser options"):
        assert re.search(rf"^\W*{heading}\W*$", text, re.MULTILINE)
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        expected = not (verb == "train-dcgan" and field.name in ("photos", "workers"))
        found = re.search(rf"^\W*{flag}\b", text, re.MULTILINE)
        assert bool(found) == expected, flag


def test_a_field_without_a_group_is_an_error():
    with pytest.raises(ValueError, match=r"expected all fields of Demo, without \['style', "):
        described(Demo, {"main": ["output"]})


# ---- the other verbs ----------------------------------------------------------------------------


def test_demo_writes_a_sheet_of_before_and_after(folder, style, generator, capsys):
    skimage = pytest.importorskip("skimage")
    assert main(["demo", "--style", style]) == 0
    assert written(folder) == {"stylekernels-demo.png"}
    assert "stylekernels-demo.png" in capsys.readouterr().out
    sheet, photo = load("stylekernels-demo.png"), skimage.data.astronaut()
    height, width = photo.shape[:2]
    assert sheet.shape[1] > 2 * width
    left = (sheet.shape[1] - 2 * width) // 3
    for expected in (photo, Stylizer(generator)(photo)):
        row, column = locate(sheet, expected)
        np.testing.assert_array_equal(sheet[row : row + height, column : column + width], expected)
    assert left > 0


def locate(sheet, tile):
    """Return the position of a picture on the sheet, by its first line."""
    line = tile[0].ravel()
    for row in range(sheet.shape[0] - tile.shape[0]):
        for column in range(sheet.shape[1] - tile.shape[1]):
            if np.array_equal(sheet[row, column : column + 8], tile[0, :8]) and np.array_equal(
                sheet[row, column : column + tile.shape[1]].ravel(), line
            ):
                return row, column
    raise AssertionError("the picture is not on the sheet")


def test_demo_shows_every_bundled_style(folder, generator, capsys, monkeypatch):
    skimage = pytest.importorskip("skimage")
    weights = folder / "weights"
    for name in ("thick_oil", "thin_ink"):
        generator.save_pretrained(weights / f"{name}.safetensors")
    monkeypatch.setattr(styles, "WEIGHTS", weights)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "stylekernels-demo.png: the photo and 2 styles\n"
    height, width = skimage.data.astronaut().shape[:2]
    sheet = load("stylekernels-demo.png")
    assert height < sheet.shape[0] < 2 * height
    assert 3 * width < sheet.shape[1] < 4 * width


def test_demo_without_any_style(folder, capsys, monkeypatch):
    monkeypatch.setattr(styles, "WEIGHTS", folder)
    assert main(["demo"]) == 2
    assert complaints(capsys) == ["--style: no style is bundled here; give a file of weights"]
    assert written(folder) == set()


def test_demo_into_a_folder(folder, style):
    pytest.importorskip("skimage")
    Path("here").mkdir()
    assert main(["demo", "--style", style, "--output", "here"]) == 0
    assert written(folder) == {"here/stylekernels-demo.png"}


def test_demo_without_scikit_image_says_what_to_install(folder, style, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["demo", "--style", style]) == 2
    (line,) = complaints(capsys)
    assert "pip install scikit-image" in line
    assert written(folder) == set()


def test_info_names_every_op_with_its_implementation(capsys):
    assert main(["info"]) == 0
    report = capsys.readouterr().out
    assert f"torch {torch.__version__}" in report
    for op in dispatch.OPS:
        assert op in report
    frame = torch.empty(1, 32, 64, 64)
    chosen = dispatch.explain("gram_matrix", frame).partition(": ")[2].partition(" (")[0]
    assert any(line.split(maxsplit=1)[0] == chosen for line in report.splitlines() if line)
    assert all(name in report for name in bundled_styles())
    assert all(len(line) <= 100 for line in report.splitlines())


def result_of(steps: int, *, interrupted: bool) -> TrainResult:
    held_out = {"total": 1.25, "style": 0.5, "style/relu1_1": 0.125}
    return TrainResult(
        output=Path("mine.safetensors"),
        run=Path("mine.run"),
        steps=steps,
        seconds=90.0,
        losses={},
        held_out=held_out,
        interrupted=interrupted,
        skipped=[],
    )


def test_train_hands_its_options_on_and_says_what_came_of_it(folder, capsys, monkeypatch):
    seen = []

    def train(config):
        seen.append(config)
        return result_of(config.steps, interrupted=False)

    monkeypatch.setattr(stylekernels.training, "train", train)
    Path("p.jpg").touch()
    Path("album").mkdir()
    command = ["train", "--art", "p.jpg", "--photos", "album", "--steps", "7", "--lite"]
    command += ["--output", "mine.safetensors"]
    assert main(command) == 0
    (config,) = seen
    assert (config.art, config.photos) == (Path("p.jpg"), Path("album"))
    assert (config.steps, config.lite) == (7, True)
    assert capsys.readouterr().out.splitlines() == [
        "photos held out: total 1.250 style 0.500",
        "mine.safetensors: trained 7 steps, 1.5 minutes in all; log and samples are in mine.run; "
        "try stylekernels stylize PHOTO --style mine.safetensors",
    ]


def test_interrupted_training_says_what_was_saved(folder, capsys, monkeypatch):
    result = result_of(3, interrupted=True)
    monkeypatch.setattr(stylekernels.training, "train", lambda config: result)
    Path("p.jpg").touch()
    Path("album").mkdir()
    assert main(["train", "--art", "p.jpg", "--photos", "album", "--steps", "7"]) == 130
    assert complaints(capsys) == [
        "interrupted after 3 of 7 steps; the style so far is in mine.safetensors, add --resume to "
        "go on"
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--learning-rate", "-1"], "--learning-rate: expected above 0 and at most 1e38, got -1.0"),
        (["--art", "q.jpg"], "--art: expected an image file or a folder that exists, got q.jpg"),
        (["--photos", "p.jpg"], "--photos: expected a folder that exists, got p.jpg"),
        (["--preview", "q.jpg"], "--preview: expected an image file that exists, got q.jpg"),
        (["--init", "cubist"], "--init: expected a bundled style ("),
        (["--resume", "--overwrite"], "--overwrite: expected none with --resume, got both"),
    ],
)
def test_train_refuses_in_one_line(folder, capsys, arguments, text):
    Path("p.jpg").touch()
    Path("album").mkdir()
    assert main(["train", "--art", "p.jpg", "--photos", "album", *arguments]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(text)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"stylekernels {stylekernels.__version__}\n"


# ---- as a process -------------------------------------------------------------------------------


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "stylekernels", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[1])},
        **options,
    )


def test_a_process_writes_says_and_exits(folder, style):
    Image.new("RGB", (40, 40), "teal").save("a.png")
    Path("note.jpg").write_text("Dear diary")
    done = run("stylize", "a.png", "note.jpg", "-s", style, "-o", "out")
    assert done.returncode == 2
    assert done.stderr == "stylekernels: note.jpg: not a picture in a format that can be read\n"
    assert done.stdout.startswith("1 photo in out/, 1 refused  ")
    assert written(folder) == {"a.png", "note.jpg", "out/a.png"}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252"])
def test_names_that_the_terminal_cannot_show(folder, style, monkeypatch, encoding):
    """They are written nonetheless, and named with escapes. One of them is not even text."""
    names = ["\u3042.png", os.fsdecode(b"\xff.png")]
    for name in names:
        Image.new("RGB", (40, 40), "teal").save("a.png")
        Path("a.png").rename(name)
    shown = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", shown)
    for name in names:
        assert main(["stylize", name, "-s", style, "-o", "out/"]) == 0
        assert main(["stylize", name, "-s", style, "-o", "out" + name]) == 0
    assert written(folder) == {
        *names,
        *(f"out/{name}" for name in names),
        *(f"out{name}" for name in names),
    }
    shown.flush()
    said = shown.buffer.getvalue().decode(encoding)
    first = names[0] if encoding == "utf-8" else r"\u3042.png"
    assert f"out{first}  " in said
    assert r"out\udcff.png  " in said


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("STYLEKERNELS_IMPL", "tritn", "expected one of native, triton, reference, got 'tritn'"),
        pytest.param(
            "STYLEKERNELS_CPU_CAPABILITY",
            "mmx",
            "expected one of baseline, ",
            marks=pytest.mark.skipif(native.cpu_missing is not None, reason="not compiled"),
        ),
    ],
)
def test_kernels_that_there_are_not_are_refused(folder, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    done = run("info")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"stylekernels: {variable}: {expected}")
    assert f"got '{value}'\n" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["stylize", "train"])
def test_an_implementation_without_kernels_for_the_device_is_refused(folder, monkeypatch, verb):
    monkeypatch.setenv("STYLEKERNELS_IMPL", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    Image.new("RGB", (40, 40), "teal").save("a.png")
    Path("album").mkdir()
    if verb == "stylize":
        done = run("stylize", "a.png", "-s", "wave", "-o", "b.png", "--device", "cpu")
    else:
        done = run("train", "--art", "a.png", "--photos", "album", "--output", "b.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("stylekernels: the implementation 'triton' was forced, but ")
    assert done.stderr.count("\n") == 1
    assert written(folder) == {"a.png"}


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        done = run("info", stdout=stdout)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_and_refusals_need_no_torch(folder):
    """Importing PyTorch takes seconds. Tests do not time that, but check whether it happens."""
    source = """
import sys
from stylekernels.cli.main import main
for command in sys.stdin.read().splitlines():
    print("==", command, main(command.split()))
    assert "torch" not in sys.modules, command
"""
    commands = """--help
--version
stylize --help
train --help
paint
stylize missing.jpg -s wave
stylize missing.jpg
stylize missing.jpg -s wave --size 3
stylize missing.jpg -s cubist
stylize . -s wave
demo -s cubist
train --art missing.jpg --photos album
train --art missing.jpg --photos album --steps 0"""
    checked = ("STYLEKERNELS_IMPL", "STYLEKERNELS_CPU_CAPABILITY")  # by importing PyTorch
    environment = {name: value for name, value in os.environ.items() if name not in checked}
    done = subprocess.run(
        [sys.executable, "-c", source],
        input=commands,
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    codes = [0] * 4 + [2] * 9
    assert ends == [
        f"== {line} {code}" for line, code in zip(commands.splitlines(), codes, strict=True)
    ]
