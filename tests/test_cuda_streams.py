"""CUDA kernels in CUDA graphs and on several streams, on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylekernels import gram_losses, group_norm, instance_norm
from tests.conftest import CUDA, random

pytestmark = CUDA


@pytest.fixture(autouse=True)
def on_gpu(device) -> None:
    if device == "cpu":
        pytest.skip("needs a GPU")


def norm(x: Tensor) -> list[Tensor]:
    """Norms by blocks, clusters and grids, and their gradients."""
    results = [instance_norm(x, activation="relu"), group_norm(x, 2, activation="silu")]
    return [*results, *torch.autograd.grad(sum(y.square().sum() for y in results), x)]


def losses(x: Tensor) -> list[Tensor]:
    """Gram losses of two layers, centred, and their gradients."""
    layers = [x, x[:, :, ::2, ::2]]
    targets = [x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float32) for _ in layers]
    results = gram_losses(layers, targets, center=True)
    return [results, *torch.autograd.grad(results.sum(), x)]


WORK = {"norm": norm, "losses": losses}
#: Small planes, and groups that exceed what a cluster of 16 blocks keeps.
SHAPES = ((2, 64, 48, 56), (1, 6, 1000, 1200))


def image(shape, device: str, seed: int) -> Tensor:
    return random(*shape, dtype=torch.bfloat16, device=device, shift=0.5, seed=seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("work", WORK)
def test_a_graph_replays_what_runs_without_one(work, shape, device) -> None:
    run: Callable[[Tensor], list[Tensor]] = WORK[work]
    x = image(shape, device, seed=0).requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(x)  # what runs once for each kernel is not captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x)
    for seed in (1, 2):
        with torch.no_grad():
            x.copy_(image(shape, device, seed))
        graph.replay()
        replayed = [result.clone() for result in captured]
        for ours, expected in zip(replayed, run(x), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("work", WORK)
def test_streams_do_not_disturb_each_other(work, device) -> None:
    run: Callable[[Tensor], list[Tensor]] = WORK[work]
    images = [image(shape, device, seed).requires_grad_() for seed, shape in enumerate(SHAPES)]
    alone = [run(x) for x in images]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in images]
    rounds = []
    for _ in range(20):
        for stream, x in zip(streams, images, strict=True):
            with torch.cuda.stream(stream):
                rounds.append(run(x))
    torch.cuda.synchronize()
    for number, results in enumerate(rounds):
        for ours, expected in zip(results, alone[number % len(alone)], strict=True):
            assert torch.equal(ours, expected)
