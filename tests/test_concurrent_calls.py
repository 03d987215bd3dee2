"""Ops in several threads at once, and in workers that are forked after the ops were used.

Where Triton interprets kernels, calls go through Python and hold its lock, so that none overlap:
these tests then run once more in a process where it does not.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stylekernels import (
    gram_loss,
    gram_losses,
    group_norm,
    instance_norm,
    instance_norm_stats,
    norm_conv2d,
    upsample_block,
)
from stylekernels.ops import dispatch
from tests.conftest import random

#: Images that a call leaves to its own thread, and images that it shares among several.
SHAPES = ((2, 8, 33, 31), (2, 16, 96, 80))


def results(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of the ops on the images of a seed."""
    channels = shape[1]
    x = random(*shape, dtype=dtype, seed=seed).requires_grad_()
    weight = random(channels, channels, 4, 4, dtype=dtype, seed=seed + 1, scale=0.1)
    with torch.no_grad():
        convolved = norm_conv2d(x, weight, padding=2)
    outputs = [
        instance_norm(x, activation="relu"),
        group_norm(x, 2),
        gram_loss(x, random(channels, channels, seed=seed + 2)),
        gram_losses([x], [random(channels, channels, seed=seed + 2)], center=True),
        upsample_block(x, weight),
        torch.stack(instance_norm_stats(x)),
    ]
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    return [convolved.y, convolved.var, *(y.detach() for y in outputs), *grads]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), f"result {i} differs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_threads_compute_what_one_does(shape, dtype) -> None:
    expected = [results(seed, shape, dtype) for seed in range(8)]
    together = threading.Barrier(8)

    def in_thread(seed: int) -> list[list[Tensor]]:
        together.wait()
        return [results(seed, shape, dtype) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        for runs, alone in zip(pool.map(in_thread, range(8)), expected, strict=True):
            for run in runs:
                assert_same(run, alone)


class Results(Dataset):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        return results(index, self.shape, torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_forked_workers_compute_what_their_parent_did(shape) -> None:
    """Workers have one thread, and no thread of the parent's pool survives a fork."""
    expected = [results(seed, shape, torch.float32) for seed in range(4)]
    loader = DataLoader(
        Results(shape), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for actual, alone in zip(loader, expected, strict=True):
        for one, other in zip(actual, alone, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.skipif(not dispatch.interprets_triton, reason="calls are concurrent here")
def test_again_where_calls_do_not_hold_pythons_lock() -> None:
    file = Path(__file__)
    plugins = ("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:benchmark")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugins, file],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=file.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "6 passed, 1 skipped" in result.stdout
