"""The network that the benchmark's rivals run, and the operations that are counted for it."""

import math

import pytest
import torch
from torch import nn

from benchmarks.model import operations
from benchmarks.model.plain_network import plain_copy
from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.models.generator import UPSAMPLINGS


def small_generator(upsample: str = "transpose", kernel_size: int = 9) -> StyleGenerator:
    """A generator with random parameters, so that a forgotten or swapped one shows."""
    torch.manual_seed(0)
    generator = StyleGenerator(
        GeneratorConfig(
            channels=(4, 6, 8), residual_blocks=2, upsample=upsample, kernel_size=kernel_size
        )
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return generator.eval()


@pytest.mark.parametrize("size", [(32, 48), (33, 50), (39, 19)])
@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_the_plain_copy_computes_what_the_generator_does(upsample, size):
    generator = small_generator(upsample)
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        wanted = generator(x)
        found = plain_copy(generator)(x)
    assert wanted.std() > 0.05, "clamped flat: nothing is compared"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_plain_copy_is_plain():
    for module in plain_copy(small_generator()).modules():
        assert type(module).__module__.partition(".")[0] in ("torch", "benchmarks")


def test_the_plain_copy_is_of_its_own():
    generator = small_generator()
    network = plain_copy(generator)
    before = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    assert all(map(torch.equal, before, network.parameters()))
    assert not any(parameter.requires_grad for parameter in network.parameters())


def counted_by_hooks(network: nn.Module, x: torch.Tensor) -> list[float]:
    """Count the operations of each convolution from its actual sizes."""
    counts, nearest = [], False

    def hook(module, _inputs, output):
        nonlocal nearest
        if isinstance(module, nn.Upsample):
            nearest = True
            return
        taps = module.kernel_size[0] * module.kernel_size[1]
        if isinstance(module, nn.ConvTranspose2d):
            taps /= (
                4  # a stride of 2: each output pixel multiplies every other tap in each direction
            )
        elif nearest:
            taps *= 4 / 9  # 2 x 2 sums of the 3 x 3 taps
        counts.append(2 * module.in_channels * output[0].numel() * taps)
        nearest = False

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Upsample):
            module.register_forward_hook(hook)
    with torch.no_grad():
        network(x)
    return counts


@pytest.mark.parametrize("size", [(32, 48), (33, 50), (39, 19)])
@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_operations_are_those_that_the_network_does(upsample, size):
    generator = small_generator(upsample, kernel_size=7)
    layers = operations.layers(generator.config, *size)
    counted = counted_by_hooks(plain_copy(generator), torch.rand(1, 3, *size))
    # The plain network crops the extra pixels of an odd side after its last convolution.
    computed = math.prod(4 * math.ceil(side / 4) for side in size)
    counted[-1] *= math.prod(size) / computed
    assert [layer.flops for layer in layers] == pytest.approx(counted)


def test_winograd_is_for_residual_and_strided_layers_and_upsampling_by_two_taps():
    layers = operations.layers(GeneratorConfig(), 512, 512)
    residual = [layer for layer in layers if layer.name.startswith("residual")]
    assert len(residual) == 10
    direct, winograd = (
        sum(getattr(layer, name) for layer in layers) for name in ("flops", "winograd_flops")
    )
    assert direct == 2 * 34_946_940_928  # multiply-adds, worked out by hand
    up = [layer for layer in layers if layer.name.startswith("up")]
    saved = 0.75 * sum(layer.flops for layer in residual)
    saved += (1 - 25 / 64) * sum(layer.flops for layer in up)
    down = [layer for layer in layers if layer.name.startswith("down")]
    saved += (1 - 9 / 16) * sum(layer.flops for layer in down)
    assert direct - winograd == pytest.approx(saved)
    three_taps = operations.layers(GeneratorConfig(upsample="transpose3"), 512, 512)
    assert all(layer.winograd == 1 for layer in three_taps if layer.name.startswith("up"))
    assert len({layer.name for layer in layers}) == len(layers)
