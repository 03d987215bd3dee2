"""The adversarial losses against their formulas in float64, and R1 against known gradients."""

import numpy as np
import pytest
import torch

from stylekernels.losses.adversarial import (
    GAN_LOSSES,
    accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)


def logits(seed, *shapes, dtype=torch.float32):
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=numbers).mul(3).to(dtype) for shape in shapes]


def softplus(x):
    return np.log1p(np.exp(x))


DISCRIMINATOR = {
    "hinge": lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(),
    "lsgan": lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(),
    "log": lambda r, f: softplus(-r).mean() + softplus(f).mean(),
}
GENERATOR = {
    "hinge": lambda f: -f.mean(),
    "lsgan": lambda f: ((f - 1) ** 2).mean(),
    "log": lambda f: softplus(-f).mean(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_the_losses_are_means_over_scales(kind, dtype):
    """Scales count alike, however many logits they have."""
    shapes = ((4, 1, 6, 5), (4, 1))
    real, fake = logits(0, *shapes, dtype=dtype), logits(1, *shapes, dtype=dtype)
    pairs = [(r.double().numpy(), f.double().numpy()) for r, f in zip(real, fake, strict=True)]
    found = discriminator_loss(real, fake, kind)
    assert found.dtype == torch.float32
    expected = np.mean([DISCRIMINATOR[kind](r, f) for r, f in pairs])
    assert found.item() == pytest.approx(expected, rel=1e-6)
    expected = np.mean([GENERATOR[kind](f) for _, f in pairs])
    assert generator_loss(fake, kind).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_each_side_pulls_its_way(kind):
    """The discriminator lifts real logits and lowers made ones; the generator lifts these."""
    real, fake = torch.full((5, 1), 0.3), torch.full((5, 1), 0.2)
    for tensor in (real, fake):
        tensor.requires_grad_()
    up, down = torch.autograd.grad(discriminator_loss([real], [fake], kind), (real, fake))
    assert (up < 0).all()
    assert (down > 0).all()
    (lift,) = torch.autograd.grad(generator_loss([fake], kind), fake)
    assert (lift < 0).all()


def test_the_log_loss_does_not_saturate():
    """The generator's gradient is largest if the discriminator is sure, and finite."""
    fake = torch.tensor([[-200.0]], requires_grad=True)
    loss = generator_loss([fake], "log")
    assert loss.item() == pytest.approx(200)
    assert torch.autograd.grad(loss, fake)[0].item() == pytest.approx(-1)


@pytest.mark.parametrize(("kind", "boundary"), [("hinge", 0), ("lsgan", 0.5), ("log", 0)])
def test_accuracy_weighs_real_and_made_alike(kind, boundary):
    real = [torch.tensor([0.1, 0.2, -0.1, 0.3]) + boundary]
    fake = [torch.tensor([-0.1, 0.4]) + boundary]
    assert accuracy(real, fake, kind).item() == pytest.approx((3 / 4 + 1 / 2) / 2)
    one_wrong = [torch.tensor([-1.0]) + boundary]
    assert accuracy([*real, one_wrong[0]], [*fake, -one_wrong[0] + 1], kind).item() == (
        pytest.approx((3 / 4 + 1 / 2) / 4)
    )
    assert not accuracy([real[0].requires_grad_()], fake, kind).requires_grad


def test_the_gradient_penalty_of_a_known_function():
    """Value and derivative for D(x) = a sum(x^2) + mean(b x), with the gradient 2 a x + b / n."""
    x = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(2)) + 0.1
    a = torch.tensor(0.7, requires_grad=True)
    shift = 3.0 / x[0].numel()

    def discriminator(image):
        return [(a * image.square().sum((1, 2, 3)) + 3 * image.mean((1, 2, 3)))[:, None]]

    penalty = gradient_penalty(discriminator, x)
    wide = x.double().numpy()
    gradient = 2 * 0.7 * wide + shift
    assert penalty.item() == pytest.approx((gradient**2).sum((1, 2, 3)).mean() / 2, rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, a)
    assert slope.item() == pytest.approx((gradient * 2 * wide).sum((1, 2, 3)).mean(), rel=1e-5)
    assert not x.requires_grad


def test_the_gradient_penalty_averages_logits_and_sums_scales():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))

    def discriminator(image):
        each = image.flatten(1)
        return [each * 2, torch.stack([each.sum(1), 3 * each.sum(1)], 1)]

    per_pixel = 2 / x[0].numel() + (1 + 3) / 2
    expected = x[0].numel() * per_pixel**2 / 2
    assert gradient_penalty(discriminator, x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: discriminator_loss(t, t, "wgan"),
        lambda t: generator_loss(t, "wgan"),
        lambda t: accuracy(t, t, "wgan"),
    ],
)
def test_an_unknown_kind_is_refused(call):
    with pytest.raises(ValueError, match=r"^kind: expected one of hinge, lsgan, log, got 'wgan'$"):
        call(logits(0, (2, 1)))
