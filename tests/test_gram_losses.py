"""gram_losses against an einsum in float64, layer by layer.

The layers have different sizes, with and without a second dimension; the largest is neither first
nor last. The arithmetic of a single layer is tested with gram_loss.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import gram_loss, gram_losses
from tests.conftest import DTYPES, assert_op_accurate, random, saved_image_bytes
from tests.test_gram_matrix import TARGET_SHAPES, apart, exact_gram, gram_in_torch, target_for

pytestmark = pytest.mark.usefixtures("implementation")

SHAPES = ((1, 17, 5, 6), (3, 5, 23, 31), (1, 40, 3, 3), (2, 6, 41), (2, 1, 1, 1))
SCALES = (0.25, 3e-5, 1.0, -0.5, 2.0)
LAYOUTS = {
    "contiguous": ("contiguous",) * 6,
    "channels_last": ("channels_last",) * 6,
    "mixed": ("channels_last", "contiguous", "cropped", "misaligned", "channels_last_cropped"),
}


def layers_of(
    shapes, dtype: torch.dtype, layouts=LAYOUTS["mixed"], device: str = "cpu", shift: float = 0.5
) -> list[Tensor]:
    return [
        random(*shape, dtype=dtype, layout=layout, device=device, shift=shift)
        for shape, layout in zip(shapes, layouts, strict=False)
    ]


def targets_for(features: list[Tensor]) -> list[Tensor]:
    return [target_for(x, TARGET_SHAPES[i % 3]) for i, x in enumerate(features)]


def check_losses(features: list[Tensor], scales=None, center: bool = False) -> None:
    layers = len(features)
    each = [None] * layers if scales is None else scales

    def of_layers(loss):
        def losses(**tensors: Tensor) -> Tensor:
            values = [*tensors.values()]
            pairs = zip(values[:layers], values[layers:], each, strict=True)
            return torch.stack([loss(*pair) for pair in pairs])

        return losses

    def ours(**tensors: Tensor) -> Tensor:
        values = [*tensors.values()]
        return gram_losses(values[:layers], values[layers:], scales=scales, center=center)

    def exact(x: Tensor, target: Tensor, scale: float | None) -> Tensor:
        return (exact_gram(x, scale, center) - target).square().mean()

    def in_torch(x: Tensor, target: Tensor, scale: float | None) -> Tensor:
        gram = gram_in_torch(x, scale, center)
        return F.mse_loss(gram, target.expand_as(gram))

    names = ("x", *(f"x{i}" for i in range(1, layers)))
    targets = {
        f"target{i}": apart(target, exact_gram(x.double(), scale, center))
        for i, (target, x, scale) in enumerate(
            zip(targets_for(features), features, each, strict=True)
        )
    }
    assert_op_accurate(
        ours,
        of_layers(in_torch),
        of_layers(exact),
        dict(zip(names, features, strict=True)) | targets,
        image_result=False,
    )


@pytest.mark.every_capability
@pytest.mark.parametrize("scales", [None, SCALES])
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers(dtype, center, layouts, scales, device) -> None:
    check_losses(layers_of(SHAPES, dtype, LAYOUTS[layouts], device), scales, center)


@pytest.mark.parametrize("layouts", ["contiguous", "channels_last"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_a_network(dtype, center, layouts, device) -> None:
    """With VGG's channels: one tile of them and several."""
    sizes = ((64, 32, 31), (128, 16, 15), (256, 8, 7), (512, 4, 3), (512, 2, 1), (512, 1, 1))
    shapes = [(2, *size) for size in sizes]
    check_losses(layers_of(shapes, dtype, LAYOUTS[layouts], device), center=center)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_mean(dtype, center, device) -> None:
    features = layers_of(SHAPES[:3], dtype, device=device, shift=100.0)
    features[1] -= 100.0  # the mean of a layer is that layer's own
    check_losses(features, center=center)


@pytest.mark.every_capability
@pytest.mark.parametrize(
    ("dtype", "shape", "seed"),
    [
        (torch.float32, (1, 1, 5), 85),
        (torch.float32, (1, 1, 1, 1, 5), 1),
        (torch.bfloat16, (1, 1, 5), 36),
        (torch.bfloat16, (1, 1, 1, 1, 5), 908),
        (torch.float16, (1, 1, 1, 1, 5), 175),
    ],
)
def test_one_channel_of_few_pixels(dtype, shape, seed, device) -> None:
    """Cases that missed the accuracy rule: losses near 0, and sums of bfloat16 that cancel."""
    x = random(*shape, dtype=dtype, device=device, shift=0.5, seed=seed)
    check_losses([x], center=True)
    target, gram = target_for(x), exact_gram(x.double(), center=True)
    loss, exact = gram_loss(x, target, center=True), (gram - target).square().mean()
    # The Gram matrix has less than 20 roundings, the squared difference 3.
    magnified = gram.norm() / (gram - target).norm()
    assert (loss - exact).abs() <= (2 * 20 * magnified + 3) * 2**-24 * exact


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_is_that_of_its_layer(dtype, center, device) -> None:
    """The loss of a layer does not depend on the other layers, or on their order."""
    features = layers_of(SHAPES, dtype, device=device)
    targets = targets_for(features)
    losses = gram_losses(features, targets, scales=SCALES, center=center)
    assert losses.shape == (5,)
    reverse = (features[::-1], targets[::-1])
    backwards = gram_losses(*reverse, scales=SCALES[::-1], center=center).flip(0)
    torch.testing.assert_close(losses, backwards, rtol=1e-6, atol=0)
    for loss, x, target, scale in zip(losses, features, targets, SCALES, strict=True):
        alone = gram_losses((x,), (target,), scales=(scale,), center=center)
        assert torch.equal(alone[0], gram_loss(x, target, scale=scale, center=center))
        torch.testing.assert_close(loss, alone[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (1,), (2,)])
def test_gradcheck(wanted, center, device) -> None:
    check_derivatives(wanted, device, center=center)


def check_derivatives(
    wanted: tuple[int, ...], device: str, fast_mode: bool = False, center: bool = False
) -> None:
    """Derivatives of two layers and their targets, in this order, for the ``wanted`` inputs."""
    shapes = ((2, 3, 2, 4), (1, 2, 5))
    features = [random(*shape, dtype=torch.float64, device=device, shift=0.5) for shape in shapes]
    tensors = [
        tensor.detach().requires_grad_(i in wanted)
        for i, tensor in enumerate((*features, *targets_for(features)))
    ]

    def losses(*tensors: Tensor) -> Tensor:
        return gram_losses(tensors[:2], tensors[2:], scales=(0.1, 0.3), center=center)

    assert torch.autograd.gradcheck(losses, tensors, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(losses, tensors, fast_mode=fast_mode)
    # If it may be differentiated again the first derivative uses another formula.
    leaves = [tensors[i] for i in wanted]
    plain, differentiable = (
        torch.autograd.grad(losses(*tensors).square().sum(), leaves, create_graph=again)
        for again in (False, True)
    )
    torch.testing.assert_close(plain, differentiable)


def test_deterministic_and_equal_without_grad(device) -> None:
    features = [x.requires_grad_() for x in layers_of(SHAPES, torch.float32, device=device)]
    targets = targets_for(features)
    runs = []
    for _ in range(3):
        losses = gram_losses(features, targets)
        runs.append((losses, *torch.autograd.grad(losses.sum(), features)))
    with torch.no_grad():
        assert torch.equal(gram_losses(features, targets), runs[0][0])
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


def test_backward_keeps_only_the_features(device) -> None:
    shapes = ((2, 8, 16, 16), (2, 4, 12, 12))
    features = [random(*shape, device=device).requires_grad_() for shape in shapes]
    targets = [random(8, 8, device=device), random(4, 4, device=device)]
    images = sorted(x.numel() * x.element_size() for x in features)
    # At 129 elements and more, the larger Gram matrices have tiles of 128.
    assert saved_image_bytes(lambda: gram_losses(features, targets), 129) == images
    assert saved_image_bytes(lambda: gram_losses(features, targets, center=True), 129) == images


def test_a_layer_without_images(device) -> None:
    features = [random(0, 5, 4, 4, device=device), random(2, 3, 4, 5, device=device)]
    features = [x.requires_grad_() for x in features]
    targets = [random(c, c, device=device) for c in (5, 3)]
    for center in (False, True):
        losses = gram_losses(features, targets, center=center)
        assert losses[0].isnan()
        alone = gram_loss(features[1], targets[1], center=center)
        torch.testing.assert_close(losses[1], alone)
        grads = torch.autograd.grad(losses[1], features)
        assert grads[0].shape == (0, 5, 4, 4)
        torch.testing.assert_close(grads[1:], torch.autograd.grad(alone, features[1]))


X, Y = random(2, 3, 4, 5), random(2, 4, 6)
TARGETS = [random(3, 3), random(4, 4)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": X}, TypeError, "features: expected a list of tensors, got Tensor"),
        ({"targets": TARGETS[0]}, TypeError, "targets: expected a list of tensors, got Tensor"),
        ({"scales": 1.0}, TypeError, "scales: expected a list of numbers, got float"),
        ({"features": []}, ValueError, "features: expected at least one layer, got none"),
        ({"targets": TARGETS[:1]}, ValueError, "targets: .* each of 2 layers, got 1"),
        ({"scales": (1.0,)}, ValueError, "scales: .* each of 2 layers, got 1"),
        ({"features": [X, None]}, TypeError, r"features\[1\]: expected a torch.Tensor, got None"),
        (
            {"features": [X, Y[0]]},
            ValueError,
            r"features\[1\]: .*\(N, C, ...\) of 3 .*, got \(4, 6\)",
        ),
        ({"features": [X, Y[..., :0]]}, ValueError, r"features\[1\]: .* one pixel, got \(2, 4, 0"),
        (
            {"features": [X, Y.bfloat16()]},
            TypeError,
            r"features\[1\]: expected features\[0\]'s dtype torch.float32, got torch.bfloat16",
        ),
        (
            {"features": [X, Y.to("meta")]},
            ValueError,
            r"features\[1\]: expected features\[0\]'s device cpu, got meta",
        ),
        ({"targets": TARGETS[::-1]}, ValueError, r"targets\[0\]: .* = \(2, 3, 3\), .*got \(4, 4"),
        (
            {"targets": [TARGETS[0], TARGETS[1].half()]},
            TypeError,
            r"targets\[1\]: .*float32 for features\[1\] of torch.float32, got torch.float16",
        ),
        (
            {"targets": [TARGETS[0], TARGETS[1].to("meta")]},
            ValueError,
            r"targets\[1\]: expected features\[1\]'s device cpu, got meta",
        ),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        gram_losses(**{"features": [X, Y], "targets": TARGETS, **arguments})
