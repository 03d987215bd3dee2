"""The discriminator of style training: its patches, scales and bounds."""

import pytest
import torch

from stylekernels.models.discriminator import PatchDiscriminator


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = PatchDiscriminator(width=8)
    with torch.no_grad():
        for _ in range(20):  # spectral norm's estimate converges
            network(torch.rand(1, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("scale", "side"), [(0, 22), (1, 44)])
def test_a_logit_sees_a_patch(network, scale, side):
    """The gradient of one logit covers a square of that side and nothing else."""
    x = torch.rand(1, 3, 128, 128).requires_grad_()
    logits = network(x)[scale]
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows, columns = (gradient[0].abs().sum(0) > 0).nonzero().unbind(1)
    for place in (rows, columns):
        assert place.max() - place.min() + 1 == side


def test_every_layer_is_bounded(network):
    """Spectral norm: no convolution stretches a vector by more than 1, in its matrix form."""
    weights = [m.weight.detach() for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(weights) == 8
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1, abs=0.05)


def test_contrast_and_brightness_are_seen(network):
    """There is no instance norm, which would hide them."""
    x = torch.rand(1, 3, 64, 64)
    for changed in (x * 0.5 + 0.25, x * 0.5 + 0.5):
        assert (network(changed)[0] - network(x)[0]).abs().mean() > 0.01


def test_wrong_inputs_are_refused(network):
    with pytest.raises(ValueError, match=r"^x: expected RGB images .* of at least 48 pixels"):
        network(torch.rand(1, 3, 47, 64))
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        PatchDiscriminator(width=0)
