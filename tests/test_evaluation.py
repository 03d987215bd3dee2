"""Measures of a style: the optimum, likeness, and change along the motion."""

import json

import numpy as np
import pytest
import torch

from stylekernels.cli.main import main
from stylekernels.evaluation import evaluate, read_clip, warped_errors
from stylekernels.inference import Stylizer
from stylekernels.models import load_features
from stylekernels.training import TrainConfig
from stylekernels.training.art import Art
from stylekernels.training.objective import Objective
from tests.pictures import complaints
from tests.training_runs import blobs

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")


@pytest.fixture
def objective(training_folder):
    config = TrainConfig(
        art=training_folder / "style.png",
        photos=training_folder / "photos",
        tv_weight=0.1,
        color_weight=1.0,
        art_colors=0.5,
    )
    art = Art.read(config.art, 0.15, smooth=False, skip=print)
    return Objective(art, load_features("mixed", training_folder), config)


@pytest.fixture
def paint(training_config):
    from stylekernels.models import StyleGenerator

    return Stylizer(StyleGenerator.from_pretrained(training_config.init), torch.float32)


@pytest.fixture
def photos():
    return [np.asarray(blobs(seed, 72, 56)) for seed in (3, 4)]


def test_losses_are_those_of_the_pictures_beside_an_optimum(objective, paint, photos):
    found = evaluate(paint, objective, photos, steps=40)
    for name in ("total", "content", "style", "tv", "color"):
        expected = []
        for photo in photos:
            x, y = (
                torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255
                for p in (photo, paint(photo))
            )
            expected.append(objective(x, y)[name].item())
        assert found.pictures[name] == pytest.approx(np.mean(expected), rel=1e-5), name
    assert found.optimum["total"] < 0.9 * found.photos["total"]
    assert found.optimum["total"] < found.pictures["total"]
    assert found.ratio == pytest.approx(found.pictures["total"] / found.optimum["total"])
    # Plain PyTorch's gradients lead to the same optimum.
    assert found.reference == pytest.approx(found.optimum["total"], rel=0.02)
    assert found.speed > 0
    assert found.flicker is None
    assert -1 < found.ssim < 0.95
    same = evaluate(lambda photo: photo, objective, photos, steps=0)
    assert same.ssim == pytest.approx(1)
    assert same.pictures == same.photos
    assert same.optimum is None


def moving(count, shift=3):
    """A picture that moves sideways, and one that stands in its noise."""
    wide = np.asarray(blobs(1, 200, 96))
    return [wide[:, shift * i : shift * i + 128] for i in range(count)]


def test_what_moves_with_the_scene_does_not_flicker(paint):
    frames = moving(5)
    still, clip = warped_errors(lambda frame: 255 - frame, frames)
    assert still == pytest.approx(clip, rel=0.2)
    assert clip < 3
    number = iter(range(5))
    flickers, again = warped_errors(lambda frame: frame // 2 + 40 * (next(number) % 2), frames)
    assert again == clip
    assert flickers == pytest.approx(40, rel=0.1)
    with pytest.raises(ValueError, match="frames: expected at least two frames"):
        warped_errors(paint, frames[:1])


def test_frames_of_a_clip_are_read_in_rgb_and_scaled(tmp_path):
    frames = moving(4)
    writer = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96)
    )
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    read = [*read_clip(tmp_path / "a.avi", 3, 128)]
    assert len(read) == 3
    for frame, expected in zip(read, frames, strict=False):
        assert np.abs(frame.astype(int) - expected).mean() < 8
    assert next(read_clip(tmp_path / "a.avi", 3, 64)).shape == (48, 64, 3)
    (tmp_path / "b.avi").write_text("no clip")
    with pytest.raises(ValueError, match=r"b\.avi: expected a clip that OpenCV reads"):
        next(read_clip(tmp_path / "b.avi", 3, 64))


def command(config, *more):
    return [
        "evaluate", str(config.init), f"--art={config.art}", f"--photos={config.photos}",
        "--features=mixed", f"--backbones={config.backbones}", "--size=64", "--steps=2",
        "--count=1", f"--settings={settings(config)}", *more,
    ]  # fmt: skip


def settings(config, **changes):
    """A run's config.json."""
    path = config.photos.parent / "config.json"
    path.write_text(json.dumps(config.to_dict() | {"stroke": 0.125} | changes))
    return path


def test_the_command_prints_a_table_and_writes_json(training_config, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert main(command(training_config, f"--json={path}")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["losses", "total", "content", "style", "tv", "color"]
    found = json.loads(path.read_text())
    assert lines[1].split()[1] == f"{found['pictures']['total']:.3f}"
    assert lines[3].startswith("optimum of the pixels")
    assert lines[6].split()[-1] == f"{found['ssim']:.3f}"


def test_losses_are_weighted_as_in_the_run(training_config, tmp_path):
    totals = []
    for weight in (1.0, 3.0):
        path = tmp_path / "numbers.json"
        changes = {"style_weight": weight, "tv_weight": 0, "color_weight": 0, "content_weight": 0}
        options = command(training_config, f"--json={path}")
        settings(training_config, **changes)
        assert main(options) == 0
        found = json.loads(path.read_text())["pictures"]
        assert found["total"] == pytest.approx(weight * found["style"], rel=1e-5)
        totals.append(found["total"])
    assert totals[1] == pytest.approx(3 * totals[0], rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the config.json of a run of stylekernels train, with art_colors"),
        ("[]", "expected the config.json"),
        ('{"stroke": 1}', "expected the config.json"),
        ({"style_weight": "much"}, "expected the config.json"),
        ({"style_weight": -1}, "style_weight: expected 0 or more, got -1"),
        ({"grain": "some"}, "grain: expected one of auto, keep, got some"),
    ],
)
def test_settings_of_no_run_are_refused(training_config, capsys, text, message):
    options = command(training_config)
    path = settings(training_config, **(text if isinstance(text, dict) else {}))
    if isinstance(text, str):
        path.write_text(text)
    assert main(options) == 2
    (line,) = complaints(capsys)
    assert message in line


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--count=0"], "--count: expected at least 1, got 0"),
        (["--size=8"], "--size: expected at least 32, got 8"),
        (["--steps=-1"], "--steps: expected 0 or more, got -1"),
        (["--clip=none.mp4"], "--clip: expected a video that exists, got none.mp4"),
        (["--art=none.png"], "--art: expected an image file or a folder that exists, got none.png"),
        (["--json=/proc/x"], "--json: /proc: cannot write in /proc"),
    ],
)
def test_wrong_options_are_refused_in_a_line(training_config, capsys, more, text):
    assert main(command(training_config, *more)) == 2
    (line,) = complaints(capsys)
    assert line.startswith(text)


def test_without_scikit_image_the_command_says_what_to_install(
    training_config, capsys, monkeypatch
):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    assert main(command(training_config)) == 2
    (line,) = complaints(capsys)
    assert line.endswith("pip install stylekernels[evaluate]")
