"""The discriminator's part in the training of a style."""

import random
from typing import Any

import torch
from torch import Tensor

from stylekernels.losses.adversarial import (
    accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from stylekernels.models.discriminator import PatchDiscriminator
from stylekernels.training.art import Art
from stylekernels.training.augment import augment
from stylekernels.training.processes import Processes
from stylekernels.training.step import adam

_CROPS, _CROP_SIDE = 8, 96
# Changes of colour stay mild, because colours distinguish art from pictures.
_CHANGES = {"color": 0.2, "translation": 0.0, "cutout": 0.25}
_PENALTY, _PENALTY_EVERY = 0.1, 16
# The discriminator waits while it is right this often, and its accuracy is a mean over about so
# many steps.
_TOO_GOOD, _STEPS_OF_MEAN = 0.9, 20
_WAITING_EVERY = 8
_STEPS_OF_NORM = 20


class Adversary:
    """A discriminator that learns to tell crops of the art from crops of the pictures.

    Its two duties are apart: :meth:`learn` trains it on detached pictures, and :meth:`gradient`
    says how a picture should change to pass as art. That gradient is scaled to a given norm, so
    that one weight suits every painting and every loss.

    Args:
        art: the paintings, on the device.
        loss: ``hinge``, ``lsgan`` or ``log``.
        learning_rate: Adam's.
        precision: of its convolutions; float16 is replaced by float32.
        seed: of weights and crops.
        processes: that train it together, each with crops of its own.

    Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020; Esser, Rombach
    and Ommer, "Taming transformers for high-resolution image synthesis", 2021, equation 7, for a
    weight that follows from norms of gradients.
    """

    def __init__(
        self,
        art: Art,
        loss: str,
        learning_rate: float,
        precision: torch.dtype,
        seed: int,
        processes: Processes,
    ) -> None:
        self.art, self.loss, self.learning_rate = art, loss, learning_rate
        self.processes, self.seed = processes, f"{seed} {processes.rank}"
        device = art.paintings[0].device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = PatchDiscriminator()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimizer = adam(self.network.parameters(), betas=(0.5, 0.99))
        # Unscaled gradients of means over many patches vanish in float16.
        self.precision = torch.float32 if precision == torch.float16 else precision
        self.mean_accuracy = 0.5
        self.gradient_norm: float | None = None

    def learn(self, picture: Tensor, step: int, rate: float) -> dict[str, Tensor]:
        """Take a step of the discriminator, unless it wins too easily.

        Args:
            picture: stylised images, (N, 3, H, W) in about [0, 1]; detached here.
            step: number of the step, from which the crops follow.
            rate: the learning rate, relative to its highest.

        Returns:
            Its loss and its accuracy before the step.
        """
        real = augment(self.art.crops(_CROPS, _CROP_SIDE, f"{self.seed} {step} art"), **_CHANGES)
        fake = augment(self._crops(picture.detach(), step), **_CHANGES)
        learns = self.mean_accuracy < _TOO_GOOD or step % _WAITING_EVERY == 0
        with torch.set_grad_enabled(learns):
            found, made = self._judge(real), self._judge(fake)
            loss = discriminator_loss(found, made, self.loss)
        share = accuracy(found, made, self.loss)
        self.processes.average([share])
        self.mean_accuracy += (share.item() - self.mean_accuracy) / _STEPS_OF_MEAN
        if learns:
            total = loss
            if step % _PENALTY_EVERY == 0:
                penalty = gradient_penalty(self.network, real)
                total = loss + _PENALTY * _PENALTY_EVERY * penalty
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * rate
            self.optimizer.zero_grad()
            total.backward()
            self.processes.average([p.grad for p in self.network.parameters()])
            self.optimizer.step()
        return {"discriminator": loss, "accuracy": share}

    def gradient(self, picture: Tensor, norm: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the gradient of the generator's loss at a picture, scaled to a norm.

        Args:
            picture: stylised images, (N, 3, H, W).
            norm: that the gradient should have, on average over steps.
            step: number of the step.

        Returns:
            The gradient, of the picture's shape, and the loss, a scalar.
        """
        picture = picture.detach().requires_grad_()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        crops = augment(self._crops(picture, step), **_CHANGES)
        loss = generator_loss(self._judge(crops), self.loss)
        (gradient,) = torch.autograd.grad(loss, picture)
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        found = gradient.norm()
        self.processes.average([found])
        found = found.item()
        if self.gradient_norm is None:
            self.gradient_norm = found
        self.gradient_norm += (found - self.gradient_norm) / _STEPS_OF_NORM
        return gradient * (norm / max(self.gradient_norm, 1e-12)), loss

    def _crops(self, picture: Tensor, step: int) -> Tensor:
        choose = random.Random(f"{self.seed} {step} picture")
        side = min(_CROP_SIDE, *picture.shape[2:])
        crops = []
        for _ in range(_CROPS):
            image = choose.randrange(picture.shape[0])
            top, left = (choose.randrange(length - side + 1) for length in picture.shape[2:])
            crops.append(picture[image : image + 1, :, top : top + side, left : left + side])
        return torch.cat(crops).contiguous(memory_format=torch.channels_last)

    def _judge(self, x: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.network(x)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "accuracy": self.mean_accuracy,
            "gradient_norm": self.gradient_norm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean_accuracy, self.gradient_norm = state["accuracy"], state["gradient_norm"]
