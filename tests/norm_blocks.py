"""A module with a norm and an activation, whose subclasses call them in many ways."""

import torch
from torch import Tensor, nn

from tests.conftest import random


class Block(nn.Module):
    """The layers of the classes below."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.InstanceNorm2d(3, affine=True)
        self.act = nn.LeakyReLU(0.3)
        self.conv = nn.Conv2d(3, 3, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)


class Ends(Block):
    def forward(self, x):
        return self.norm(self.conv(x))


class HelperThatEnds(Block):
    def forward(self, x):
        return self.act(self.block(x))

    def block(self, x):
        return self.norm(self.conv(x))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def x_of(dtype: torch.dtype = torch.float64) -> Tensor:
    return random(2, 3, 5, 7, dtype=dtype)


def outputs(model: nn.Module) -> list[Tensor]:
    x = x_of().requires_grad_()
    y = model.train()(x)
    inputs = [x, *model.parameters()]
    grads = torch.autograd.grad(y, inputs, random(*y.shape, dtype=y.dtype), allow_unused=True)
    return [y, *(grad for grad in grads if grad is not None), model.eval()(x)]
