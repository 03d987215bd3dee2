"""Adversarial losses: a discriminator tells real images from made ones, a generator misleads it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GAN_LOSSES = ("hinge", "lsgan", "log")

# The logit between real (above) and made (below).
_BOUNDARIES = {"hinge": 0.0, "lsgan": 0.5, "log": 0.0}


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], kind: str) -> Tensor:
    """Return the loss that a discriminator minimises.

    Args:
        real, fake: logits of real and of made images, one tensor of any shape per scale.
        kind: ``hinge`` (Lim and Ye, "Geometric GAN", 2017), ``lsgan`` (Mao et al., "Least squares
            generative adversarial networks", 2017, labels 1 and 0) or ``log`` (Goodfellow et al.,
            "Generative adversarial nets", 2014).

    Returns:
        A scalar, float32: the mean over the scales.

    Raises:
        ValueError: for an unknown kind.
    """
    _check(kind)
    if kind == "hinge":
        pairs = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in _wide(real, fake)]
    elif kind == "lsgan":
        pairs = [(r - 1).square().mean() + f.square().mean() for r, f in _wide(real, fake)]
    else:
        pairs = [F.softplus(-r).mean() + F.softplus(f).mean() for r, f in _wide(real, fake)]
    return torch.stack(pairs).mean()


def generator_loss(fake: Sequence[Tensor], kind: str) -> Tensor:
    """Return the loss that a generator minimises: low where its images count as real.

    Args:
        fake: logits of made images, one tensor per scale.
        kind: as in :func:`discriminator_loss`; with ``log`` the non-saturating form.

    Returns:
        A scalar, float32: the mean over the scales.

    Raises:
        ValueError: for an unknown kind.
    """
    _check(kind)
    if kind == "hinge":
        parts = [-f.float().mean() for f in fake]
    elif kind == "lsgan":
        parts = [(f.float() - 1).square().mean() for f in fake]
    else:
        parts = [F.softplus(-f.float()).mean() for f in fake]
    return torch.stack(parts).mean()


def accuracy(real: Sequence[Tensor], fake: Sequence[Tensor], kind: str) -> Tensor:
    """Return the share of logits on the right side, real and made ones weighed alike.

    Args:
        real, fake, kind: as in :func:`discriminator_loss`.

    Returns:
        A scalar, float32, without a gradient.

    Raises:
        ValueError: for an unknown kind.
    """
    _check(kind)
    boundary = _BOUNDARIES[kind]
    shares = [
        ((r > boundary).float().mean() + (f < boundary).float().mean()) / 2
        for r, f in _wide(real, fake)
    ]
    return torch.stack(shares).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Sequence[Tensor]], real: Tensor) -> Tensor:
    """Return R1: half the squared norm of the gradient of a discriminator at real images.

    It keeps the discriminator flat around the data, so that the generator's gradient stays usable.
    It is differentiable, and as expensive as a step of the discriminator: use it every few steps,
    with a weight that is larger by as much.

    Args:
        discriminator: returns one tensor of logits per scale.
        real: images, (N, C, H, W).

    Returns:
        A scalar, float32: the mean over the images.

    Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?", 2018.
    """
    real = real.detach().requires_grad_()
    total = sum(logits.float().flatten(1).mean(1).sum() for logits in discriminator(real))
    (gradient,) = torch.autograd.grad(total, real, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / 2


def _wide(real: Sequence[Tensor], fake: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(r.float(), f.float()) for r, f in zip(real, fake, strict=True)]


def _check(kind: str) -> None:
    if kind not in GAN_LOSSES:
        raise ValueError(f"kind: expected one of {', '.join(GAN_LOSSES)}, got {kind!r}")
