"""gram_matrix and gram_loss against an einsum written here in float64.

The grid: every channel count (tiles of 16 and 32, and remainders) with every dtype and layout.
Sizes are odd so that the sum over pixels has a tail. Options, magnitudes and the shapes of the
target each vary at one odd shape.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import gram_loss, gram_matrix, native
from tests.conftest import (
    DTYPES,
    KERNEL_LAYOUTS,
    LAYOUTS,
    Recorder,
    assert_accurate,
    assert_op_accurate,
    laid_out,
    random,
    saved_image_bytes,
)

pytestmark = pytest.mark.usefixtures("implementation")

SHAPES = (
    (0, 5, 4, 4),
    (1, 1, 1, 1),
    (3, 1, 9, 7),
    (2, 3, 130, 67),
    (3, 5, 1, 37),
    (1, 16, 2, 2),
    (2, 17, 17, 31),
    (1, 32, 64, 64),
    (3, 33, 7, 9),
    (2, 64, 3, 5),
    (1, 100, 13, 11),
    (2, 128, 16, 15),
    (1, 300, 5, 4),
    (1, 96, 29, 37),
    (2, 64, 16, 12),
    (1, 160, 21, 31),
)
FLAT_SHAPES = ((1, 3, 1), (3, 5, 37), (2, 33, 1025), (0, 4, 8))


def wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def exact_gram(x: Tensor, scale: float | None = None, center: bool = False) -> Tensor:
    features = x.flatten(2)
    if center:
        features = features - features.mean(2, keepdim=True)
    if scale is None:
        scale = 1.0 / (features.shape[1] * features.shape[2])
    return torch.einsum("nip,njp->nij", features, features) * scale


def gram_in_torch(x: Tensor, scale: float | None = None, center: bool = False) -> Tensor:
    """PyTorch's bmm, in float32 for half precision, because a bmm would round its result."""
    features = x.to(wide_dtype(x)).flatten(2)
    if center:
        features = features - features.mean(2, keepdim=True)
    if scale is None:
        scale = 1.0 / (features.shape[1] * features.shape[2])
    return torch.bmm(features * scale, features.mT)


def check_gram(x: Tensor, **options) -> None:
    assert_op_accurate(
        lambda x: gram_matrix(x, **options),
        lambda x: gram_in_torch(x, **options),
        lambda x: exact_gram(x, **options),
        {"x": x},
        image_result=False,
    )


@pytest.mark.parametrize("layout", KERNEL_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_dtypes_layouts(shape, dtype, layout, device) -> None:
    check_gram(random(*shape, dtype=dtype, layout=layout, device=device, shift=0.5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(2, 33, 41), (2, 17, 3, 5, 7), (1, 5, 2, 3, 4, 5)])
def test_features_of_other_ranks(shape, center, layout, device) -> None:
    x = random(*shape, layout=layout, device=device, shift=0.5)
    check_gram(x, center=center)
    target = random(shape[1], shape[1], device=device, seed=1)
    expected = F.mse_loss(gram_in_torch(x, center=center), target.expand(shape[0], -1, -1))
    torch.testing.assert_close(gram_loss(x, target, center=center), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_features_of_other_ranks_are_not_copied(layout, device) -> None:
    for shape in ((2, 64, 40), (2, 64, 4, 5, 6)):
        x = random(*shape, layout=layout, device=device)
        with Recorder() as recorder:
            gram_matrix(x)
        assert recorder.ops == ["gram_matrix"]


@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "cropped"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FLAT_SHAPES)
def test_features_without_a_second_dimension(shape, dtype, layout, device) -> None:
    check_gram(random(*shape, dtype=dtype, layout=layout, device=device, shift=0.5))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0, 3e-5])
@pytest.mark.parametrize("layout", KERNEL_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_and_center(dtype, layout, scale, center, device) -> None:
    x = random(2, 19, 9, 13, dtype=dtype, layout=layout, device=device, shift=2.0)
    check_gram(x, scale=scale, center=center)


@pytest.mark.every_capability
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(1, 1000), (1e-3, 0), (1e4, 0), (1, -30)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes(dtype, layout, scale, shift, center, device) -> None:
    shape = (1, 18, 61, 33)
    x = random(*shape, dtype=dtype, layout=layout, device=device, scale=scale, shift=shift)
    check_gram(x, center=center)


def check_huge_values(dtype, size, layout, device, channels=16) -> None:
    """The sum of 4096 products is beyond float32 (or float16); its scaled value is not."""
    generator = torch.Generator().manual_seed(1)
    values = (torch.rand(1, channels, 64, 64, generator=generator) * 0.5 + 0.5) * size
    x = laid_out(values.to(dtype).to(device), layout)
    for options in ({}, {"scale": 2e-6}):
        gram = gram_matrix(x, **options)
        assert_accurate(gram, gram_in_torch(x, **options), exact_gram(x.double(), **options))


@pytest.mark.every_capability
@pytest.mark.parametrize("channels", [16, 160])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 2e18), (torch.float32, 2e18)]
)
def test_huge_values_do_not_overflow(dtype, size, layout, channels, device) -> None:
    """Unless the sum of 128 products does; in tiles on AMX, of 512 in bfloat16."""
    if dtype == torch.bfloat16 and str(native.cpu_capability).startswith("amx"):
        size /= 2
    check_huge_values(dtype, size, layout, device, channels)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_image(dtype, layout, device) -> None:
    x = random(1, 32, 256, 256, dtype=dtype, layout=layout, device=device, shift=0.5)
    check_gram(x)


def test_known_value() -> None:
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])
    assert torch.equal(gram_matrix(x, scale=1.0), torch.tensor([[[5.0, 13.0], [13.0, 34.0]]]))
    assert torch.equal(gram_matrix(x), torch.tensor([[[1.25, 3.25], [3.25, 8.5]]]))
    centered = torch.tensor([[[0.5, 1.0], [1.0, 2.0]]])
    assert torch.equal(gram_matrix(x, scale=1.0, center=True), centered)
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert gram_loss(x, target, scale=0.5).item() == (1.5**2 + 4.5**2 + 3.5**2 + 13**2) / 4
    centered_loss = gram_loss(x, target, scale=1.0, center=True).item()
    assert centered_loss == (0.5**2 + 1.0**2 + 2.0**2 + 2.0**2) / 4


@pytest.mark.parametrize("grad_layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layout_of_the_gradient_of_the_result(layout, grad_layout, device) -> None:
    x = random(2, 17, 6, 7, layout=layout, device=device).requires_grad_()
    cotangent = random(2, 17, 17, device=device, seed=1)
    if grad_layout == "transposed":
        cotangent = cotangent.mT
    elif grad_layout == "expanded":
        cotangent = cotangent[0, 0, 0].expand(2, 17, 17)
    wide = x.detach().double().requires_grad_()
    grads = [
        torch.autograd.grad(function(t), t, cotangent.to(t.dtype))[0]
        for function, t in ((gram_matrix, x), (gram_in_torch, x), (exact_gram, wide))
    ]
    assert_accurate(*grads)


def check_derivatives(x: Tensor, fast_mode: bool = False, **options) -> None:
    """Compare with finite differences, in one direction only with ``fast_mode``."""

    def gram(x: Tensor) -> Tensor:
        return gram_matrix(x, **options)

    x = x.detach().requires_grad_()
    assert torch.autograd.gradcheck(gram, (x,), check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(gram, (x,), fast_mode=fast_mode)


def check_loss(x: Tensor, target: Tensor, **options) -> None:
    def exact(x: Tensor, target: Tensor) -> Tensor:
        return (exact_gram(x, **options) - target).square().mean()

    def in_torch(x: Tensor, target: Tensor) -> Tensor:
        gram = gram_in_torch(x, **options)
        return F.mse_loss(gram, target.expand_as(gram))

    assert_op_accurate(
        lambda x, target: gram_loss(x, target, **options),
        in_torch,
        exact,
        {"x": x, "target": target},
        image_result=False,
    )


TARGET_LAYOUTS = ("contiguous", "misaligned", "transposed", "cropped")
TARGET_SHAPES = ("(N, C, C)", "(1, C, C)", "(C, C)")


def target_for(x: Tensor, shape: str = "(N, C, C)", layout: str = "contiguous") -> Tensor:
    """Return a target that is not symmetric: the gradient of the loss must symmetrise it."""
    n, c = x.shape[:2]
    target = random(n, c, c, dtype=wide_dtype(x), device=x.device.type, seed=1, scale=1 / c)
    target = {"(N, C, C)": target, "(1, C, C)": target[:1], "(C, C)": target[0]}[shape]
    if layout == "transposed":
        return target.mT
    if layout == "cropped":  # every second column of a wider matrix
        return target.repeat_interleave(2, dim=-1)[..., ::2]
    return laid_out(target, layout)


def apart(target: Tensor, gram: Tensor) -> Tensor:
    """Return ``target``, negated in place if it is nearer to ``gram`` than zero is.

    A loss magnifies rounding errors of its Gram matrix by |gram| / |gram - target|, and PyTorch may
    have its one number exactly by luck. For one of the two signs the factor is at most 1.
    """
    if (gram - target).norm() < gram.norm():
        target.neg_()
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_loss(shape, dtype, layout, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=0.5)
    check_loss(x, target_for(x))


@pytest.mark.parametrize("layout", KERNEL_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_loss_of_centered_features(shape, dtype, layout, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=0.5)
    check_loss(x, target_for(x), center=True)


@pytest.mark.every_capability
@pytest.mark.parametrize("shift", [1.0, -2.0, 4.0, 8.0, 100.0, 1000.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_centered_loss_with_a_mean(dtype, layout, shift, device) -> None:
    """Sums of bfloat16 are centred if the mean is small, and features if it is large. The images
    of a batch differ in it."""
    x = random(2, 35, 61, 33, dtype=dtype, layout=layout, device=device, shift=shift)
    check_loss(x, target_for(x), center=True)
    x[1] = 0.5 * (x[1] - shift)
    check_loss(x, target_for(x), center=True)


@pytest.mark.every_capability
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_centered_features_that_are_constant(dtype, layout, device) -> None:
    """One channel of the first image, and all of the second."""
    x = random(2, 19, 1, 1, dtype=dtype, device=device, shift=3.0).repeat(1, 1, 23, 31)
    x[0, :18] += random(18, 23, 31, dtype=dtype, device=device)
    x = laid_out(x, layout).requires_grad_()
    gram = gram_matrix(x, scale=1 / 713, center=True)
    expected = exact_gram(x.detach().double(), 1 / 713, center=True)
    torch.testing.assert_close(gram.double(), expected, rtol=1e-5, atol=3e-6)
    assert gram[1].abs().max() < 1e-11
    target = target_for(x)
    centered, plain = (
        torch.autograd.grad(gram_loss(x, target, center=center), x)[0][1].double().abs().max()
        for center in (True, False)
    )
    assert centered < 1e-5 * plain


@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize("target_layout", TARGET_LAYOUTS)
@pytest.mark.parametrize("target_shape", TARGET_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 17, 6, 7), (3, 17, 42)])
def test_loss_options(shape, dtype, target_shape, target_layout, scale, device) -> None:
    x = random(*shape, dtype=dtype, device=device)
    for center in (False, True):
        check_loss(x, target_for(x, target_shape, target_layout), scale=scale, center=center)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("scale", "center"), [(None, False), (0.1, True), (None, True)])
def test_gradcheck(scale, center, layout, device) -> None:
    x = random(2, 3, 2, 4, dtype=torch.float64, layout=layout, device=device)
    check_derivatives(x, scale=scale, center=center)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("target_shape", [(2, 3, 3), (1, 3, 3), (3, 3)])
def test_gradcheck_of_loss(target_shape, center, device) -> None:
    x = random(2, 3, 2, 4, dtype=torch.float64, device=device, shift=0.5).requires_grad_()
    target = random(*target_shape, dtype=torch.float64, device=device, seed=1).requires_grad_()

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return gram_loss(x, target, center=center)

    for inputs in ((x, target), (x, target.detach()), (x.detach(), target)):
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.every_capability
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_inf_go_where_torch_sends_them(dtype, layout, center, value, device) -> None:
    x = random(2, 19, 5, 9, dtype=dtype, device=device)
    x[1, 3, 2, 4] = value
    x = laid_out(x, layout).requires_grad_()
    bad = torch.zeros(2, 19, 19, dtype=torch.bool, device=device)
    bad[1, 3, :] = bad[1, :, 3] = True
    gram, expected = gram_matrix(x, center=center), gram_in_torch(x, center=center)
    assert torch.equal(~gram.isfinite(), bad), "only row and column 3 of image 1 are affected"
    torch.testing.assert_close(gram, expected, equal_nan=True)
    grads = [torch.autograd.grad(g.sum(), x)[0] for g in (gram, expected)]
    torch.testing.assert_close(*grads, equal_nan=True, rtol=1e-2, atol=1e-4)
    loss = gram_loss(x, torch.ones(19, 19, device=device), center=center)
    assert loss.isnan() if center or value != value else loss.isposinf()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_deterministic_and_equal_without_grad(layout, threads, center, dtype, device) -> None:
    """If threads shared scratch memory, one run in four or more would differ."""
    x = random(2, 128, 63, 65, dtype=dtype, layout=layout, device=device).requires_grad_()
    target = random(128, 128, device=device)

    def gram_and_loss() -> tuple[Tensor, Tensor]:
        return gram_matrix(x, center=center), gram_loss(x, target, center=center)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for _ in range(12):
            gram, loss = gram_and_loss()
            runs.append((gram, loss, *torch.autograd.grad(gram.square().sum() + loss, x)))
        with torch.no_grad():
            for again, first in zip(gram_and_loss(), runs[0], strict=False):
                assert torch.equal(again, first)
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_backward_keeps_only_the_input(layout, device) -> None:
    shape = (2, 8, 16, 16)
    x = random(*shape, dtype=torch.bfloat16, layout=layout, device=device).requires_grad_()
    target = random(8, 8, device=device)
    image = x.numel() * x.element_size()
    # At 129 elements and more, the Gram matrices of both images have tiles of 128.
    assert saved_image_bytes(lambda: gram_matrix(x), 129) == [image]
    assert saved_image_bytes(lambda: gram_matrix(x, center=True), 129) == [image]
    assert saved_image_bytes(lambda: gram_loss(x, target), 129) == [image]
    assert saved_image_bytes(lambda: gram_loss(x, target, center=True), 129) == [image]


X = random(2, 3, 4, 5)
TARGET = random(3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0, 0]}, ValueError, r"x: .*\(N, C, ...\) of 3 .* more, got \(4, 5\)"),
        ({"x": X.bool()}, TypeError, "x: expected dtype float32, bfloat16, .*got torch.bool"),
        ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"target": TARGET[:2]}, ValueError, r"target: .* = \(2, 3, 3\), .*got \(2, 3\)"),
        ({"target": TARGET.expand(3, 3, 3)}, ValueError, r"target: .*got \(3, 3, 3\)"),
        ({"target": TARGET.half()}, TypeError, "target: .*torch.float32.*got torch.float16"),
        ({"target": TARGET.to("meta")}, ValueError, "target: expected x's device cpu, got meta"),
        ({"target": None}, TypeError, "target: expected"),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        gram_loss(**{"x": X, "target": TARGET, **arguments})
    if "x" in arguments:
        with pytest.raises(error, match="^" + message):
            gram_matrix(**arguments)


def test_target_of_half_precision_features_is_float32() -> None:
    with pytest.raises(TypeError, match=r"float32 for x of torch.bfloat16, got torch.bfloat16"):
        gram_loss(X.bfloat16(), TARGET.bfloat16())
