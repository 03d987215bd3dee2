"""Failures are reported in one line: those that users can fix, and internal errors."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stylekernels.cli.main import main
from stylekernels.hardware import memory_ran_out
from stylekernels.inference import Stylizer
from stylekernels.training import SettingError, train
from stylekernels.training.style import StyleTask
from tests.pictures import complaints, save, written


def raises(error):
    def fail(*arguments, **options):
        raise error

    return fail


def attempt(action):
    """The error that an action ends with."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        action()
    return caught.value


def test_memory_that_ran_out_is_told_from_other_errors():
    """Even if the messages of other errors mention memory."""
    for action in (
        lambda: torch.empty(1 << 46),
        lambda: np.empty(1 << 46),
        lambda: [0] * (1 << 60),
    ):
        assert memory_ran_out(attempt(action))
    assert memory_ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert memory_ran_out(RuntimeError("CUDA error: out of memory"))
    for text in (
        "could not create a memory object",
        "CUDA error: an illegal memory access was encountered",
        "view size is not compatible with the memory format of the tensor",
        "unsupported memory format option ChannelsLast",
    ):
        assert not memory_ran_out(RuntimeError(text))
    assert not memory_ran_out(ValueError("DefaultCPUAllocator: is no allocator"))


OTHER_ERRORS = [
    RuntimeError("could not create a memory object"),
    ValueError("lr: expected a float"),
    TypeError("no such type"),
    AssertionError("2 != 3"),
    KeyError("up.0"),
]


@pytest.mark.parametrize("error", OTHER_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("verb", ["stylize", "train"])
def test_an_error_of_the_programs_own_is_no_refusal(
    training_config, folder, style, capsys, monkeypatch, verb, error
):
    save("a.png")
    if verb == "stylize":
        command = ["stylize", "a.png", "-s", style]
        monkeypatch.setattr(Stylizer, "__call__", raises(error))
    else:
        command = train_command(training_config)
        monkeypatch.setattr(StyleTask, "step", raises(error))
    before = written(folder)
    assert main(command) == 1
    assert complaints(capsys) == [
        f"an error of the program's own, {type(error).__name__}: {error}; the option --debug shows "
        "where it happened"
    ]
    for position in (1, len(command)):
        with pytest.raises(type(error)) as caught:
            main([*command[:position], "--debug", *command[position:]])
        assert caught.value is error
    left = written(folder)
    assert {name for name in left if not name.startswith("out.run/")} == before
    assert "out.run/checkpoint.pt" not in left


def test_debug_is_an_option_only_before_two_dashes(folder, style):
    save("--debug", format="PNG")
    assert main(["stylize", "-s", style, "--output=out", "--debug", "--", "--debug"]) == 0
    assert written(folder) == {"--debug", "out/--debug.png"}


def test_too_little_memory_for_training_is_a_line(training_config, capsys, monkeypatch):
    allocator = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    for error in (allocator, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        monkeypatch.setattr(StyleTask, "step", raises(error))
        assert main(train_command(training_config)) == 2
        assert complaints(capsys) == [
            "--batch-size 2 and --crop 32 need more memory than there is; lower one of them, or "
            "--stroke"
        ]


def train_command(config):
    return [
        "train",
        f"--art={config.art}",
        f"--photos={config.photos}",
        f"--init={config.init}",
        f"--output={config.output}",
        f"--backbones={config.backbones}",
        "--features=mixed",
        "--steps=2",
        "--crop=32",
        "--stroke=0.125",
        "--gan-weight=0",
        "--threads=1",
        "--batch-size=2",
    ]


@pytest.mark.parametrize("size", [(8, 8), (15, 400), (1, 1)])
def test_a_preview_that_is_too_small_is_refused_first(training_config, folder, capsys, size):
    save("small.png", np.zeros((*size, 3), np.uint8))
    config = dataclasses.replace(training_config, preview=Path("small.png"), backbones=Path("none"))
    height, width = size
    before = written(folder)
    with pytest.raises(SettingError) as refused:
        train(config)
    assert str(refused.value) == (
        f"preview: small.png: expected at least 16 pixels on each side, got {width}x{height}"
    )
    assert written(folder) == before


def test_a_run_without_tensorboard_has_no_curves(training_config, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = train(training_config)
    assert not (result.run / "tensorboard").exists()
    assert (result.run / "log.jsonl").exists()


OPTIONAL = ("skimage", "tensorboard", "triton", "matplotlib", "torchvision", "scipy", "cv2")


@pytest.mark.slow
def test_every_verb_without_the_optional_packages(training_config, style, folder):
    """Each verb works, or says before it begins what to install."""
    save("a.png")
    source = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
from stylekernels.cli.main import main
for line in sys.stdin.read().splitlines():
    print("==", main(line.split("|")), flush=True)
"""
    training = train_command(training_config)
    commands = [
        ["info"],
        ["stylize", "a.png", "-s", style, "-o", "out"],
        ["demo", "-s", style],
        training,
    ]
    done = subprocess.run(
        [sys.executable, "-c", source],
        input="\n".join("|".join(command) for command in commands),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("==")]
    assert codes == ["== 0", "== 0", "== 2", "== 0"], done.stderr
    assert "no triton, " not in done.stdout  # installed, though it cannot be imported
    refusals = [line for line in done.stderr.splitlines() if line.startswith("stylekernels: ")]
    assert [line.split(": ")[1] for line in refusals] == ["demo"]
    assert "pip install scikit-image" in refusals[0]
    assert written(folder) >= {"a.png", "out/a.png"}
