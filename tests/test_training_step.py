"""A step of training, on every device."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.training.processes import Processes
from stylekernels.training.step import MixedPrecision, TrainingStep

RATE = 5e-3


def distance(target, picture):
    return {"total": F.mse_loss(picture.float(), target)}


def take(step, photo, target, rate):
    """Take a step of one pass."""
    step.begin(rate)
    losses = distance(target, step.network(photo))
    step.backward(losses["total"])
    step.finish(Processes())
    return losses


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_adds_up_its_passes(start, precision):
    """Gradients of pictures, in two passes, are those of one pass of the sum."""
    network, photo, target = start
    twin = copy.deepcopy(network)
    whole, parts = (TrainingStep(MixedPrecision(n, precision)) for n in (network, twin))
    take(whole, photo, target, RATE)
    parts.begin(RATE)
    for i in range(2):
        made = parts.network(photo[i : i + 1])
        gradient = 2 * (made.detach() - target[i : i + 1]) / target.numel()
        parts.backward(made, gradient)
    parts.finish(Processes())
    for (name, one), two in zip(network.named_parameters(), twin.parameters(), strict=True):
        if precision == torch.float32:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-7, msg=name)
        elif name.startswith("to_rgb"):  # gradients of deeper layers are mostly rounding
            assert (two.grad - one.grad).norm() < 0.05 * one.grad.norm(), name


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
    step = TrainingStep(MixedPrecision(network, precision))
    assert step.scaler.is_enabled() == (precision == torch.float16)
    losses = [take(step, photo, target, RATE)["total"].item() for _ in range(40)]
    assert losses[-1] < 0.2 * losses[0]
    assert all(weight.dtype == torch.float32 for weight in network.parameters())


def test_a_step_is_adams_at_the_rate_it_is_given(start):
    """Of a network without norms, whose gradients are more than rounding."""
    _, photo, target = start
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 1))
    network.to(photo.device)
    plain = copy.deepcopy(network)
    step = TrainingStep(MixedPrecision(network, torch.float32))
    optimizer = torch.optim.Adam(plain.parameters())
    for rate in (RATE, 0.0, RATE / 10):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = F.mse_loss(plain(photo), target)
        loss.backward()
        optimizer.step()
        found = take(step, photo, target, rate)["total"]
        torch.testing.assert_close(found, loss)  # of before the step
        for name, weight in network.state_dict().items():
            torch.testing.assert_close(weight, plain.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_network_computes_by_rounded_convolutions(start):
    """The copy follows the weights, norms stay float32, and gradients come back in float32."""
    network, photo, _ = start
    mixed = MixedPrecision(network, torch.bfloat16)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)
    rounded = copy.deepcopy(network)
    for weight in rounded.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.bfloat16().float()
    picture, exact = mixed(photo), rounded(photo)
    assert picture.dtype == torch.bfloat16
    assert (picture.float() - exact).norm() < 0.02 * exact.norm()
    dtypes = {name: weight.dtype for name, weight in mixed.working.named_parameters()}
    for name, dtype in dtypes.items():
        assert dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
    picture.float().square().mean().backward()
    exact.square().mean().backward()
    mixed.take_gradients()
    assert all(weight.grad.dtype == torch.float32 for weight in network.parameters())
    assert all(weight.grad is None for weight in mixed.working.parameters())
    found, right = network.to_rgb.weight.grad, rounded.to_rgb.weight.grad
    assert (found - right).norm() < 0.03 * right.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cuda"])
def test_a_step_can_be_captured(start, precision):
    network, photo, target = start
    step = TrainingStep(MixedPrecision(network, precision), capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            take(step, photo, target, RATE)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = take(step, photo, target, RATE)["total"]
    graph.replay()
    first = loss.item()
    for _ in range(40):
        graph.replay()
    assert loss.item() < 0.2 * first
