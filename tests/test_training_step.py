"""A step of training, on every device."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.training.step import MixedPrecision, TrainingStep

RATE = 5e-3


def distance(target, picture):
    return {"total": F.mse_loss(picture.float(), target)}


@pytest.fixture
def start(device):
    """A tiny generator, photos and what is to become of them: their negatives."""
    torch.manual_seed(3)
    network = StyleGenerator(GeneratorConfig(channels=(6, 8, 12), residual_blocks=1)).train()
    photo = F.interpolate(torch.rand(2, 3, 4, 5), scale_factor=8, mode="bilinear")
    return (
        moved.to(device, memory_format=torch.channels_last) for moved in (network, photo, 1 - photo)
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_lower_the_loss(start, precision):
    network, photo, target = start
    step = TrainingStep(MixedPrecision(network, precision), distance)
    assert step.scaler.is_enabled() == (precision == torch.float16)
    losses = [step(photo, target, RATE)["total"].item() for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    assert all(weight.dtype == torch.float32 for weight in network.parameters())


def test_a_step_is_adams_at_the_rate_it_is_given(start):
    """Of a network without norms, whose gradients are more than rounding."""
    _, photo, target = start
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1))
    network.to(photo.device)
    plain = copy.deepcopy(network)
    step = TrainingStep(MixedPrecision(network, torch.float32), distance)
    optimizer = torch.optim.Adam(plain.parameters())
    for rate in (RATE, 0.0, RATE / 10):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = F.mse_loss(plain(photo), target)
        loss.backward()
        optimizer.step()
        found = step(photo, target, rate)["total"]
        torch.testing.assert_close(found, loss)  # of before the step
        for name, weight in network.state_dict().items():
            torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cuda"])
def test_a_step_can_be_captured(start, precision):
    network, photo, target = start
    step = TrainingStep(MixedPrecision(network, precision), distance, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(photo, target, RATE)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(photo, target, RATE)["total"]
    graph.replay()
    first = loss.item()
    for _ in range(40):
        graph.replay()
    assert loss.item() < 0.2 * first
