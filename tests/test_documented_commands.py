"""Every command in the shell blocks of README.md, CONTRIBUTING.md and docs/ is known to the program
that it calls, and those that are quick run, on small files; the others are listed with the
reason."""

import re
import shlex
import shutil
import subprocess

import pytest
import tomllib
import torch

from stylekernels.cli.main import main, parse
from stylekernels.models import ImageGenerator, ImageGeneratorConfig
from tests.documents import ROOT, blocks
from tests.pictures import picture, save, written

LONG, CAMERA = "takes minutes", "needs a camera or a window; tests/test_cli_webcam.py"
INSTALLS = "installs; its extras are checked"
SERVES = "runs until it is stopped; tests/test_cli_serve.py"
MEASURES = "measures for minutes; tests/test_benchmarks*.py"
TRAINS = "needs VGG-19 and trains for minutes; tests/test_training*.py"
CPP = "compiles with LibTorch; tests/test_export.py does so"

#: The files that a command writes.
RUN = {
    "python -m benchmarks compare A.json B.json": set(),
    "stylekernels export wave": {"wave.onnx"},
    "stylekernels export wave:0.3,udnie:0.7 -o mix.onnx --float16": {"mix.onnx"},
    "stylekernels generate faces.safetensors --count 16": {"generated.png"},
    "stylekernels generate generator.safetensors": {"generated.png"},
    "stylekernels info": set(),
    "stylekernels stylize me.jpg --style base_lite:wave": {"stylized/me.jpg"},
    "stylekernels stylize me.jpg --style mine.safetensors --strength 0.8 --preserve-colors": {
        "stylized/me.jpg"
    },
    "stylekernels stylize me.jpg --style several.safetensors:wave": {"stylized/me.jpg"},
    "stylekernels stylize me.jpg --style several.safetensors:wave:0.3,udnie:0.7": {
        "stylized/me.jpg"
    },
    "stylekernels stylize me.jpg --style wave:0.3,udnie:0.7": {"stylized/me.jpg"},
    "stylekernels stylize panorama.png --style wave --tile 1024": {"stylized/panorama.png"},
    "stylekernels stylize photos/ --style starry_night --output painted/": {
        "painted/a.jpg",
        "painted/b.jpg",
    },
    "stylekernels video clip.mp4 painted.mp4 --style wave": {"painted.mp4"},
    "stylekernels video dance.gif dance.mp4 --style starry_night --strength 0.7": {"dance.mp4"},
    "stylekernels video film.mkv trailer.mkv --style wave --start 60 --duration 30 --size 1280": {
        "trailer.mkv"
    },
}
NOT_RUN = {
    "./stylize wave.pt2 .../stylekernels/libstylekernels_cpu.so photo.ppm picture.ppm": CPP,
    "TORCH=$(python -c 'import torch; print(torch.__path__[0])')": CPP,
    "cd ..": "only changes the folder",
    "g++ -std=c++20 examples/stylize.cpp -o stylize -I$TORCH/include "
    "-I$TORCH/include/torch/csrc/api/include -L$TORCH/lib -Wl,-rpath,$TORCH/lib "
    "-ltorch -ltorch_cpu -lc10 -ldl": CPP,
    "make bench": LONG,
    "make build": LONG,
    "make demo": LONG,
    "make gpu-check OUT=folder": "needs a GPU; tests/test_gpu_check.py",
    "make gpu-check REHEARSE=1 PYTHON=.venv/bin/python": LONG,
    "make lint": "the last step of .ci/run",
    "make serve": SERVES,
    "make test": LONG,
    "make webcam": CAMERA,
    "pip install '.[evaluate]'": INSTALLS,
    "pip install '.[serve]'": INSTALLS,
    "pip install '.[video]'": INSTALLS,
    "pip install '.[webcam]'": INSTALLS,
    "pip install 'stylekernels[export]'": INSTALLS,
    "pip install 'stylekernels[virtual-camera]'": INSTALLS,
    "pip install .": INSTALLS,
    "pip install torch": INSTALLS,
    "pre-commit install": "changes the clone",
    "python -m benchmarks live": MEASURES,
    "python -m benchmarks model": MEASURES,
    "python -m benchmarks networks": MEASURES,
    "python -m benchmarks ops": MEASURES,
    "python -m benchmarks ops --device cuda": MEASURES,
    "python -m benchmarks overhead": MEASURES,
    "python -m benchmarks train": MEASURES,
    "python -m benchmarks train --help": "the parsers run it",
    "python -m http.server -d paint": "Python's, and runs until it is stopped",
    "stylekernels evaluate mine.safetensors --art painting.jpg --photos others/ --clip video.mp4": (
        "needs VGG-19; tests/test_cli_verbs.py and tests/test_evaluation.py"
    ),
    "stylekernels export mine.safetensors --format torch": (
        "compiles for most of a minute; tests/test_export.py writes such a package"
    ),
    "stylekernels export wave starry_night mine.safetensors --format web -o paint": (
        "fetches ONNX Runtime Web; tests/test_export_web.py"
    ),
    "stylekernels export wave udnie --format web": (
        "fetches ONNX Runtime Web; tests/test_export_web.py"
    ),
    "stylekernels serve --host 0.0.0.0 --token auto --tls": SERVES,
    "stylekernels serve --open": SERVES,
    "stylekernels serve --style mine.safetensors starry_night wave:0.3,udnie:0.7": SERVES,
    "stylekernels train --art painting.jpg --photos photos/ --output mine.safetensors": TRAINS,
    "stylekernels train --multi-style --art paintings/ --photos photos/ "
    "--output several.safetensors": TRAINS,
    "stylekernels train-dcgan FOLDER --output faces.safetensors": LONG,
    "stylekernels train-dcgan faces/": LONG,
    "stylekernels webcam": CAMERA,
    "stylekernels webcam --camera clip.mp4": CAMERA,
    "stylekernels webcam --camera pattern": CAMERA,
    "stylekernels webcam --list": CAMERA,
    "stylekernels webcam --style starry_night": CAMERA,
    "stylekernels webcam --style starry_night --size 1280x720": CAMERA,
    "stylekernels webcam --virtual-camera": CAMERA,
    "stylekernels webcam --virtual-camera --no-window": CAMERA,
    "torchrun --nproc-per-node=2 -m stylekernels train --art painting.jpg --photos photos/ "
    "--batch-size 4 --device cuda": TRAINS,
}


def commands_of(block: str) -> list[str]:
    """Return the commands of a shell block, each in one line, without comments and prompts."""
    whole = re.sub(r"\\\n\s*", "", block)
    lines = (re.sub(r"(^|\s)#.*", "", line).removeprefix("$ ") for line in whole.splitlines())
    parts = (part.strip() for line in lines for part in line.split(" && "))
    return [re.sub(r"^\.venv/bin/", "", part) for part in parts if part]


COMMANDS = sorted(
    {
        command
        for block in blocks("sh", "bash", "console", "shell").values()
        for command in commands_of(block)
    }
)


def refusal(command: str) -> str | None:
    """Return why the program of a command refuses it; None if it knows it, or is not ours."""
    words = shlex.split(command)
    if "stylekernels" in words[:5]:
        return _stops(parse, words[words.index("stylekernels") + 1 :])
    if words[:3] == ["python", "-m", "benchmarks"]:
        from benchmarks.cli import parse as parse_benchmarks

        return _stops(parse_benchmarks, words[3:])
    if words[0] == "make":
        return _make(words[1:])
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = project["optional-dependencies"]
        extras = {extra for extra in re.findall(r"\[(.*?)\]", command) if extra not in known}
        return f"no extras {extras}" if extras else None
    return None


def _stops(parser, arguments: list[str]) -> str | None:
    try:
        parser(arguments)
    except SystemExit as stop:  # 0 after help
        return f"exit code {stop.code}" if stop.code else None
    return None


def _make(arguments: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split())
    variables = set(re.findall(r"\$\((\w+)\)", makefile))
    for argument in arguments:
        name, is_given, _ = argument.partition("=")
        if name not in (variables if is_given else targets):  # for make `tests` is a folder
            return f"no target or variable {name}"
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stderr if done.returncode else None


def test_every_command_is_here() -> None:
    assert not RUN.keys() & NOT_RUN.keys()
    assert sorted(RUN.keys() | NOT_RUN.keys()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_its_program_knows_it(command, capsys) -> None:
    if command.startswith("make ") and shutil.which("make") is None:
        pytest.skip("needs make")
    assert refusal(command) is None, capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "stylekernels paint me.jpg",
        "stylekernels stylize me.jpg --stile wave",
        "torchrun --nproc-per-node=2 -m stylekernels train --paintings a.jpg",
        "python -m benchmarks speed",
        "python -m benchmarks ops --fast",
        "make tests",
        "make test TEST=tests/test_cli.py",
        "pip install '.[videos]'",
    ],
)
def test_a_wrong_command_is_found(command) -> None:
    assert refusal(command)


def test_commands_of_a_block() -> None:
    block = "$ make demo  # a comment\n\n.venv/bin/python a.py && b 'c#d' \\\n    --e\n# nothing\n"
    assert commands_of(block) == ["make demo", "python a.py", "b 'c#d' --e"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, style):
    """A folder with what the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    save(folder / "me.jpg")
    save(folder / "panorama.png", picture(40, 200))
    for name in ("photos/a.jpg", "photos/b.jpg"):
        save(folder / name)
    shutil.copy(style, folder / "mine.safetensors")
    shutil.copy(ROOT / "stylekernels/weights/base.safetensors", folder / "several.safetensors")
    torch.manual_seed(0)
    network = ImageGenerator(ImageGeneratorConfig())
    for name in ("faces.safetensors", "generator.safetensors"):
        network.save_pretrained(folder / name)
    result = min(ROOT.glob("benchmarks/results/ops-*.json"), key=lambda path: path.stat().st_size)
    for name in ("A.json", "B.json"):
        shutil.copy(result, folder / name)
    return folder


def _make_clips(folder) -> None:
    clips = pytest.importorskip("tests.clips", exc_type=ImportError)
    clips.make_clip(folder / "clip.mp4", tracks=1)
    clips.make_clip(folder / "film.mkv", times=range(0, 66, 3), time_base=1)
    frames = [clips.Image.fromarray(frame) for frame in clips.pictures((64, 48), 4)]
    frames[0].save(folder / "dance.gif", save_all=True, append_images=frames[1:], duration=100)


@pytest.mark.parametrize("command", RUN)
def test_command(command, inputs, tmp_path, monkeypatch, capsys) -> None:
    words = shlex.split(command)
    package = {"export": "onnx", "video": "av"}.get(words[1])
    if package is not None:
        pytest.importorskip(package)
    folder = tmp_path / "work"
    shutil.copytree(inputs, folder)
    if words[1] == "video":
        _make_clips(folder)
    monkeypatch.chdir(folder)
    before = written(folder)
    if words[0] == "python":
        from benchmarks.cli import main as run_benchmarks

        assert run_benchmarks(words[3:]) == 0
    else:
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert written(folder) - before == RUN[command]
    assert all((folder / name).stat().st_size > 100 for name in RUN[command])
