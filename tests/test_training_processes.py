"""Two processes of torchrun train as one process does with the same batches."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from stylekernels.training import train
from stylekernels.training.data import RandomCrops, crop_batches
from stylekernels.training.processes import Processes
from tests.training_runs import weights_of


def command(config, count, *more):
    options = ["art", "photos", "init", "output", "backbones", "features", "steps", "crop",
               "stroke", "held_out", "threads", "batch_size", "log_every", "art_colors",
               "color_weight",
               "tv_weight", "gan_weight", "flat", "ema", "precision", "learning_rate"]  # fmt: skip
    words = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in options]
    return [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}",
        "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m",
        "stylekernels", "train", *words, *more,
    ]  # fmt: skip


def test_two_processes_equal_one(training_config, tmp_path):
    """Losses of each report, and the weights, to rounding; one of them writes."""
    config = dataclasses.replace(
        training_config, batch_size=4, steps=6, log_every=2, precision="float32", gan_weight=0.0
    )
    result = train(config)
    both = dataclasses.replace(config, output=tmp_path / "both.safetensors")
    done = subprocess.run(command(both, 2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logs = [(run / "log.jsonl").read_text() for run in (result.run, both.run_path)]
    alone, together = ([json.loads(line) for line in log.splitlines()] for log in logs)
    assert [entry["step"] for entry in together] == [2, 4, 6]
    for one, other in zip(alone, together, strict=True):
        for name in ("total", "style", "content", "tv", "color"):
            assert other[name] == pytest.approx(one[name], rel=2e-3), name
    first = weights_of(config.init)
    one, other = (weights_of(c.output)["to_rgb.weight"] for c in (config, both))
    moved = (one - first["to_rgb.weight"]).norm()
    assert (other - one).norm() < 0.05 * moved
    assert done.stderr.count("step 2: ") == 1


def test_processes_with_a_discriminator_keep_the_same_weights(training_config, tmp_path):
    config = dataclasses.replace(
        training_config, crop=64, batch_size=2, steps=4, gan_weight=0.3, flat=0.3, minutes=5
    )
    done = subprocess.run(
        command(config, 2, "--gan-start=0.1", "--minutes=5"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 4 steps") == 1
    assert done.stderr.count("step 4: ") == 1


def test_shares_of_a_batch_make_the_batch(training_folder):
    photos = sorted((training_folder / "photos").glob("*.png"))
    crops = RandomCrops(photos, 32, 0)
    whole = [photo for photo, _ in crop_batches(crops, 4, 1, 3, 0, pytest.fail)]
    shares = [
        [photo for photo, _ in crop_batches(crops, 4, 1, 3, 0, pytest.fail, (rank, 2))]
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)


def test_a_batch_that_cannot_be_shared_is_refused(training_config, monkeypatch):
    from stylekernels.training.log import Log
    from stylekernels.training.style import StyleTask

    config = dataclasses.replace(training_config, batch_size=3)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 2 pro"):
        StyleTask(config, Log(), Processes(0, 2))
