"""Norms and Gram matrices of more than 2^31 elements, whose offsets need 64 bits.

Only with ``-m huge``: they take 14 GB of memory. All tests view the same values. Those from 2^31 on
have another mean, so that an offset of 32 bits shows. Results are compared with float64 at random
positions, around 2^31 and at the end.
"""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from stylekernels import gram_matrix, group_norm, instance_norm, native
from tests.conftest import assert_accurate, random

pytestmark = [
    pytest.mark.huge,
    pytest.mark.skipif(native.cpu_missing is not None, reason="the native code was not built"),
    pytest.mark.skipif(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 18e9, reason="18 GB of memory"
    ),
]

LIMIT = 2**31
#: Sizes whose product is 17 million above the limit. The number of pixels of a plane is odd.
CHANNELS, HEIGHT, WIDTH = 4, 526843, 1027
SIZE = CHANNELS * HEIGHT * WIDTH
#: Elements at a time in float64, a multiple of the channels.
PIECE = 1 << 18
EPS = 1e-5


def huge_values(seed: int) -> Tensor:
    """Return (SIZE,) of bfloat16: a random pattern of odd length, times and plus random numbers
    that change from one repetition to the next."""
    length = (1 << 22) + 5
    pattern = random(length, dtype=torch.bfloat16, seed=seed)
    scales = random(SIZE // length + 1, scale=0.1, shift=1.0, seed=seed + 1)
    shifts = random(SIZE // length + 1, seed=seed + 2)
    values = torch.empty(SIZE, dtype=torch.bfloat16)
    for part, scale, shift in zip(values.split(length), scales, shifts, strict=True):
        torch.mul(pattern[: len(part)], scale.item(), out=part).add_(shift.item())
    values[LIMIT:] += 8
    return values


@pytest.fixture(scope="module")
def x() -> Tensor:
    assert SIZE > LIMIT
    return huge_values(1)


@pytest.fixture(scope="module")
def positions() -> Tensor:
    """Elements that are compared."""
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(SIZE, (20_000,), generator=generator)
    beyond = torch.randint(LIMIT, SIZE, (20_000,), generator=generator)
    around, end = torch.arange(LIMIT - 2000, LIMIT + 2000), torch.arange(SIZE - 2000, SIZE)
    return torch.cat([torch.arange(2000), anywhere, around, beyond, end])


def channel_of(positions: Tensor, channels: int, layout: str) -> Tensor:
    if layout == "channels_last":
        return positions % channels
    return positions // (SIZE // channels)


def shaped(values: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """View a flat tensor as a batch of images."""
    if layout == "channels_last":
        return values.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return values.view(shape)


def flat(y: Tensor, layout: str) -> Tensor:
    """View a batch of images in order of memory."""
    if layout == "channels_last":
        y = y.movedim(1, -1)
    return y.view(-1)


def pieces(values: Tensor, channels: int, layout: str) -> Iterator[Tensor]:
    """Yield all values in float64, (channels, pixels) at a time. Planes are divided alike."""
    if layout == "channels_last":
        for piece in values.split(PIECE):
            yield piece.double().view(-1, channels).T
        return
    for piece in values.view(channels, -1).split(PIECE // channels, 1):
        yield piece.double()


def moments(values: Tensor, channels: int, layout: str, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel's group, (channels,) of float64."""
    sums, squares = torch.zeros(2, channels, dtype=torch.float64)
    for piece in pieces(values, channels, layout):
        sums += piece.sum(1)
        squares += piece.square().sum(1)
    count = SIZE // groups
    mean, square = (t.view(groups, -1).sum(1) / count for t in (sums, squares))
    deviation = (square - mean.square() + EPS).sqrt()
    return tuple(t.repeat_interleave(channels // groups) for t in (mean, deviation))


def check_norm(
    norm: Callable[..., Tensor],
    x: Tensor,
    positions: Tensor,
    shape: tuple[int, ...],
    layout: str,
    *,
    groups: int | None = None,
    gradient: bool = False,
) -> None:
    """Compare relu(norm(x)) at some positions, and with ``gradient`` x's gradient, and those of
    weight and bias."""
    channels = shape[1]
    groups = groups or channels
    # Weights far from 0, and positive: relu keeps the values beyond the limit, which are large.
    weight = random(channels, scale=0.2, shift=1.0, seed=5)
    bias = random(channels, scale=0.2, seed=6)
    leaves = [shaped(x, shape, layout), weight, bias]
    if gradient:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = norm(*leaves)
    mean, deviation = moments(x, channels, layout, groups)
    channel = channel_of(positions, channels, layout)
    scale, offset = weight.double(), bias.double()
    normalized = (x[positions].double() - mean[channel]) / deviation[channel]
    before = normalized * scale[channel] + offset[channel]
    found = flat(y.detach(), layout)[positions]
    assert_accurate(found, before.relu().bfloat16(), before.relu(), "output")
    if not gradient:
        return

    edge = torch.autograd.graph.get_gradient_edge(y)
    del y, found
    cotangent = huge_values(11)
    grads = torch.autograd.grad(edge, leaves, shaped(cotangent, shape, layout))
    sums, products = torch.zeros(2, channels, dtype=torch.float64)
    of_x, of_grad = (pieces(t, channels, layout) for t in (x, cotangent))
    for piece, grad in zip(of_x, of_grad, strict=True):
        z = (piece - mean[:, None]) / deviation[:, None]
        grad = grad * (z * scale[:, None] + offset[:, None] > 0)
        sums += grad.sum(1)
        products += (grad * z).sum(1)
    count = SIZE // groups
    level, slope = (
        ((scale * t).view(groups, -1).sum(1) / count).repeat_interleave(channels // groups)
        for t in (sums, products)
    )
    g = cotangent[positions].double() * (before > 0) * scale[channel]
    exact = (g - level[channel] - normalized * slope[channel]) / deviation[channel]
    clear = before.abs() > 1e-4  # relu has a kink at 0
    found = flat(grads[0], layout)[positions]
    assert_accurate(found[clear], exact.bfloat16()[clear], exact[clear], "gradient of x")
    for name, grad, expected in zip(("weight", "bias"), grads[1:], (products, sums), strict=True):
        # The sums are about 1e9, with few digits lost: 1e-6 is the accuracy rule's.
        torch.testing.assert_close(grad.double(), expected, rtol=2e-6, atol=0, msg=name)


def relu_of_instance_norm(*tensors: Tensor) -> Tensor:
    return instance_norm(*tensors, activation="relu", eps=EPS)


def test_instance_norm_of_one_plane(x, positions) -> None:
    check_norm(relu_of_instance_norm, x, positions, (1, 1, SIZE), "contiguous", gradient=True)


def test_instance_norm_of_channels_last(x, positions) -> None:
    shape = (1, CHANNELS, HEIGHT, WIDTH)
    check_norm(relu_of_instance_norm, x, positions, shape, "channels_last", gradient=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_instance_norm_of_volumes(layout, x, positions) -> None:
    check_norm(relu_of_instance_norm, x, positions, (1, 2, 2, HEIGHT, WIDTH), layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_group_norm(layout, x, positions) -> None:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, 2, weight, bias, activation="relu", eps=EPS)

    check_norm(norm, x, positions, (1, CHANNELS, HEIGHT, WIDTH), layout, groups=2)


@pytest.mark.parametrize(
    ("layout", "channels", "center"),
    [("contiguous", 1, False), ("contiguous", 2, True), ("channels_last", 4, True)],
)
def test_gram_matrix(layout, channels, center, x, positions) -> None:
    shape = (1, channels, SIZE // channels // WIDTH, WIDTH)
    leaf = shaped(x, shape, layout).detach().requires_grad_()
    gram = gram_matrix(leaf, center=center)
    sums = torch.zeros(channels, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for piece in pieces(x, channels, layout):
        sums += piece.sum(1)
        products += piece @ piece.T
    pixels = SIZE // channels
    mean = sums / pixels if center else torch.zeros_like(sums)
    exact = (products / pixels - mean[:, None] * mean) / channels
    assert_accurate(gram[0].detach(), exact.float(), exact, "output")

    cotangent = random(channels, channels, seed=7)
    (grad,) = torch.autograd.grad(gram, leaf, cotangent[None])
    factor = (cotangent + cotangent.T).double() / SIZE
    # The pixel's other channels.
    pixel = positions // channels if layout == "channels_last" else positions % pixels
    of_pixel = [
        x[pixel * channels + k if layout == "channels_last" else k * pixels + pixel]
        for k in range(channels)
    ]
    features = torch.stack(of_pixel).double() - mean[:, None]
    channel = channel_of(positions, channels, layout)
    expected = (factor @ features)[channel, torch.arange(len(positions))]
    found = flat(grad, layout)[positions]
    assert_accurate(found, expected.bfloat16(), expected, "gradient of x")
