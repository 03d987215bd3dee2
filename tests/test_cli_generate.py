"""``stylekernels generate`` and ``train-dcgan``: written pictures, output, refusals, help."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from stylekernels.cli.main import main
from stylekernels.models import (
    GeneratorConfig,
    ImageGenerator,
    ImageGeneratorConfig,
    StyleGenerator,
)
from tests.pictures import complaints, load, save, written


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with two models: plain, and with labels and codes."""
    monkeypatch.chdir(tmp_path)
    for name, config in (
        ("plain", ImageGeneratorConfig()),
        ("full", ImageGeneratorConfig(labels=("cat", "dog"), categories=3, continuous=2)),
    ):
        torch.manual_seed(0)
        network = ImageGenerator(config)
        with torch.no_grad():
            network.dense.weight.mul_(10)  # new weights draw grey under new norm statistics
            network.dense.weight[:, config.noise :].mul_(5)
        network.save_pretrained(tmp_path / name)
    return tmp_path


def grid(path, columns):
    """The pictures of a sheet, (rows, columns, 64, 64, 3)."""
    sheet = load(path)
    rows = (sheet.shape[0] - 2) // 66
    assert sheet.shape == (66 * rows + 2, 66 * columns + 2, 3)
    return np.stack(
        [
            np.stack([sheet[66 * r + 2 : 66 * r + 66, 66 * c + 2 : 66 * c + 66]
                      for c in range(columns)])
            for r in range(rows)
        ]
    )  # fmt: skip


def unlike(one, other):
    return np.abs(one.astype(int) - other).mean() > 1


def test_a_grid(folder, capsys):
    assert main(["generate", "plain"]) == 0
    assert capsys.readouterr().out == "generated.png: 16 pictures\n"
    pictures = grid("generated.png", 4).reshape(16, 64, 64, 3)
    assert all(unlike(pictures[i], pictures[j]) for i in range(16) for j in range(i))
    model = ImageGenerator.from_pretrained("plain")
    codes = model.draw(64, device="cpu", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(*codes)[5].permute(1, 2, 0).numpy() * 255
    assert np.abs(pictures[5] - exact).max() <= 0.51


def test_the_seed_chooses_and_the_count_does_not(folder):
    for name, options in (
        ("a.png", []), ("b.jpg", ["--seed", "1"]), ("c.png", ["--count", "70"]),
    ):  # fmt: skip
        assert main(["generate", "plain", "-o", name, *options]) == 0
    first = grid("a.png", 4).reshape(-1, 64, 64, 3)
    many = grid("c.png", 8).reshape(-1, 64, 64, 3)
    assert np.array_equal(many[:16], first)
    assert unlike(many[69], many[5])
    assert Image.open("b.jpg").format == "JPEG"
    assert unlike(grid("b.jpg", 4)[0, 0], first[0])


def test_labels(folder, capsys):
    assert main(["generate", "full"]) == 0
    assert capsys.readouterr().out == "generated.png: 16 pictures; rows: cat, dog, in turn\n"
    assert main(["generate", "full", "--label", "dog", "-o", "dogs.png"]) == 0
    both, dogs = grid("generated.png", 4), grid("dogs.png", 4)
    assert np.array_equal(both[1::2], dogs[1::2])
    assert all(unlike(both[0, i], dogs[0, i]) for i in range(4))


def test_codes_are_held(folder):
    held = ["--code", "category=2", "--code", "continuous2=-0.5", "--label", "cat"]
    assert main(["generate", "full", *held, "--count", "3", "-o", "held.png"]) == 0
    model = ImageGenerator.from_pretrained("full")
    codes = model.draw(64, device="cpu", generator=torch.Generator().manual_seed(0))
    codes.label[:], codes.category[:], codes.continuous[:, 1] = 0, 2, -0.5
    with torch.no_grad():
        exact = model(*codes)[:3].permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(grid("held.png", 3)[0] - exact).max() <= 0.51


def test_a_strip_goes_from_one_picture_to_another(folder):
    assert main(["generate", "plain", "--interpolate", "6", "-o", "strip.png"]) == 0
    assert main(["generate", "plain", "--count", "2", "-o", "ends.png"]) == 0
    strip, ends = grid("strip.png", 6), grid("ends.png", 2)
    assert len(strip) == 1
    for at, end in ((0, 0), (-1, 1)):
        assert np.abs(strip[0, at].astype(int) - ends[0, end]).max() <= 1
    steps = [np.abs(a.astype(int) - b).mean() for a, b in zip(strip[0], strip[0, 1:], strict=False)]
    whole = np.abs(strip[0, 0].astype(int) - strip[0, -1]).mean()
    assert 0 < max(steps) < whole / 2


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("category", 3, "columns: category 0 to 2"),
        ("continuous2", 8, "columns: continuous2 -1 to 1"),
        ("label", 2, "columns: label cat, dog"),
    ],
)
def test_one_code_is_varied(folder, capsys, name, columns, said):
    command = ["generate", "full", "--vary", name, "--count", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"generated.png: {2 * columns} pictures; {said}\n"
    pictures = grid("generated.png", columns)
    assert len(pictures) == 2
    assert all(unlike(row[0], row[-1]) for row in pictures)
    if name != "label":
        assert main([*command, "--label", "dog", "-o", "dogs.png"]) == 0


def test_a_folder_of_pictures_by_label(folder, capsys):
    """Other files in it are kept; the same pictures as without a folder."""
    save("more/cat/old.png")
    before = load("more/cat/old.png")
    assert main(["generate", "full", "--folder", "more", "--count", "5"]) == 0
    assert capsys.readouterr().out == "more/: 5 pictures\n"
    cats = {f"cat/generated-0-0000{i}.png" for i in (0, 2, 4)}
    dogs = {f"dog/generated-0-0000{i}.png" for i in (1, 3)}
    assert written(folder / "more") == cats | dogs | {"cat/old.png"}
    assert np.array_equal(load("more/cat/old.png"), before)
    assert load("more/dog/generated-0-00003.png").shape == (64, 64, 3)
    assert main(["generate", "full", "--folder", "cats", "--count", "2", "--label",
                 "cat"]) == 0  # fmt: skip
    assert written(folder / "cats") == {f"cat/generated-0-0000{i}.png" for i in (0, 1)}
    # In a batch of another size products may round otherwise.
    one, other = (load(f"{name}/cat/generated-0-00000.png") for name in ("cats", "more"))
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_folder_without_labels(folder):
    assert main(["generate", "plain", "--folder", "new/deep", "--count", "66"]) == 0
    assert written(folder / "new") == {f"deep/generated-0-{i:05}.png" for i in range(66)}
    last, first = (load(f"new/deep/generated-0-{i:05}.png") for i in (65, 1))
    assert unlike(last, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("no", "MODEL: expected the file of an image generator, got 'no', which is not there; "
               "stylekernels train-dcgan FOLDER trains one"),
        ("style", "MODEL: style: not an image generator of this library: expected the format"),
        ("plain --label cat", "--label: this generator was trained without labels; leave it out"),
        ("full --label cow", "--label: expected one of cat, dog, got 'cow'"),
        ("plain --code category=1", "--code: this generator was trained without codes; leave it"),
        ("full --code category=3", "--code: expected category=0..2 or continuous1=-1..1 or "
                                   "continuous2=-1..1, got 'category=3'"),
        ("full --code color=3", "--code: expected category=0..2 or"),
        ("full --code continuous1=nan", "--code: expected category=0..2 or"),
        ("full --code category", "--code: expected category=0..2 or"),
        ("full --vary colour", "--vary: expected one of category, continuous1, continuous2, label, "
                               "got 'colour'"),
        ("plain --vary label", "--vary: it has no codes or labels, got 'label'"),
        ("full --vary label --label cat", "--vary: label is held by another option; leave one out"),
        ("full --vary label --interpolate 3", "--interpolate: it can't be combined with --vary; c"),
        ("full --vary label --folder x", "--vary: it can't be combined with --folder; choose one"),
        ("full -o x.png --folder x", "--output: it is for a grid, and --folder for single files"),
        ("full --count 0", "--count: expected at least 1, got 0"),
        ("full --interpolate 1", "--interpolate: expected at least 2, got 1"),
        ("full --seed -1", "--seed: expected 0 or more, below 2^63, got -1"),
        ("full --device tpu", "--device: expected cpu or cuda, got 'tpu'"),
        ("full -o x.gif", "--output: x.gif: "),
        ("copy.png -o copy.png", "--output: copy.png: the result would replace this file"),
        ("full --folder copy.png", "--folder: copy.png: this cannot be a folder"),
        ("in/generated-0-00000.png --folder in", "--folder: in/generated-0-00000.png: the result "
                                                 "would replace this file"),
    ],
)  # fmt: skip
def test_refusals(folder, capsys, arguments, message):
    """One line each, and nothing is written; the model never is."""
    StyleGenerator(GeneratorConfig(channels=(6, 8, 12), residual_blocks=1)).save_pretrained("style")
    (folder / "in").mkdir()
    for copy in ("copy.png", "in/generated-0-00000.png"):
        (folder / copy).write_bytes((folder / "plain").read_bytes())
    before = {name: (folder / name).read_bytes() for name in written(folder)}
    assert main(["generate", *arguments.split()]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(message)
    assert {name: (folder / name).read_bytes() for name in written(folder)} == before


def test_training_and_drawing(folder, capsys):
    """A generator is trained, said to be there, and drawn with."""
    for i in range(3):
        save(f"photos/{'ab'[i % 2]}/{i}.png")
    save("photos/a/broken.png").write_text("no photo")
    options = ["--steps", "2", "--batch-size", "2", "--threads", "1", "--conditional"]
    assert main(["train-dcgan", "photos", "--output", "g.safetensors", *options]) == 0
    captured = capsys.readouterr()
    assert "1 file among the photos left out\n" in captured.out
    assert re.search(
        r"^last steps: discriminator \d\.\d+ accuracy [01]\.\d+ generator \d", captured.out, re.M
    )
    assert captured.out.endswith("try stylekernels generate g.safetensors\n")
    assert re.search(r"photos/a/broken\.png: .*; skipped", captured.err)
    assert main(["generate", "g.safetensors", "--label", "b"]) == 0
    assert grid("generated.png", 4).std() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "FOLDER: expected a folder that exists, got none"),
        (["photos"], "FOLDER: expected at least two photos in photos that can be read, got 0"),
        (["photos", "--discriminator-rate", "0"], "--discriminator-rate: expected above 0 and at"),
        (["photos", "--steps", "0"], "--steps: expected at least 1, got 0"),
    ],
)
def test_training_refusals(folder, capsys, arguments, message):
    (folder / "photos").mkdir()
    assert main(["train-dcgan", *arguments]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(message)


@pytest.mark.parametrize("verb", ["generate", "train-dcgan"])
def test_help_fits_eighty_columns_and_imports_no_torch(verb):
    import os
    import subprocess
    import sys

    code = (
        "import sys\nfrom stylekernels.cli.main import main\n"
        f"assert main([{verb!r}, '--help']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "MODEL" in done.stdout or "FOLDER" in done.stdout
