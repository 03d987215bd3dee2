"""gram_matrix, gram_loss, gram_losses and their gradients in Triton's kernels.

The grid: pairs of shape, dtype, layout, scale and centering, since each case takes Triton's
interpreter a tenth of a second. Shapes are around the tiles of 16, 32 and 128 channels and the
chunks of at least 64 pixels. Tests of the op that hold for every implementation are imported.
"""

import pytest
import torch
from torch import Tensor

from stylekernels import gram_loss, gram_losses, gram_matrix
from tests.conftest import DTYPES, LAYOUTS, TRITON, poisoned_memory, random
from tests.pairwise import missing_pairs, name_of, pairwise
from tests.test_gram_losses import LAYOUTS as LAYOUTS_OF_LAYERS
from tests.test_gram_losses import (
    SCALES,
    check_losses,
    layers_of,
    targets_for,
    test_a_layer_without_images,  # noqa: F401
    test_each_is_that_of_its_layer,  # noqa: F401
)
from tests.test_gram_losses import SHAPES as LAYERS
from tests.test_gram_losses import check_derivatives as check_derivatives_of_losses
from tests.test_gram_matrix import (
    TARGET_LAYOUTS,
    TARGET_SHAPES,
    check_derivatives,
    check_gram,
    check_huge_values,
    check_loss,
    target_for,
    test_backward_keeps_only_the_input,  # noqa: F401
    test_known_value,  # noqa: F401
    test_layout_of_the_gradient_of_the_result,  # noqa: F401
    test_nan_and_inf_go_where_torch_sends_them,  # noqa: F401
)

pytestmark = TRITON

SHAPES = (
    (0, 5, 4, 4),
    (1, 1, 1, 1),
    (3, 1, 9, 7),
    (2, 3, 1, 37),
    (1, 16, 2, 2),
    (2, 17, 9, 11),
    (1, 33, 7, 9),
    (2, 5, 23, 31),
    (3, 6, 41),
    (1, 40, 515),
)
OPTIONS = {
    "shape": SHAPES,
    "layout": LAYOUTS,
    "dtype": DTYPES,
    "scale": (None, 0.25, 3e-5),
    "center": (False, True),
}
LOSS_OPTIONS = {
    "shape": (SHAPES[1], *SHAPES[5:]),
    "layout": LAYOUTS,
    "dtype": DTYPES,
    "target_shape": TARGET_SHAPES,
    "target_layout": TARGET_LAYOUTS,
    "scale": (None, 0.25),
    "center": (False, True),
}


def is_possible(case: dict) -> bool:
    return len(case["shape"]) == 4 or not case["layout"].startswith("channels_last")


CASES = tuple(pairwise(OPTIONS, is_possible))
LOSS_CASES = tuple(pairwise(LOSS_OPTIONS, is_possible))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS, is_possible)
    assert not missing_pairs(LOSS_CASES, LOSS_OPTIONS, is_possible)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    x = random(*case["shape"], dtype=case["dtype"], layout=case["layout"], device=device, shift=0.5)
    check_gram(x, scale=case["scale"], center=case["center"])


@pytest.mark.parametrize("case", LOSS_CASES, ids=name_of)
def test_loss_options(case, device) -> None:
    x = random(*case["shape"], dtype=case["dtype"], layout=case["layout"], device=device, shift=0.5)
    target = target_for(x, case["target_shape"], case["target_layout"])
    check_loss(x, target, scale=case["scale"], center=case["center"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_tiles_of_channels(dtype, device) -> None:
    """A triangle of tiles, the last of them incomplete, and more pixels than one step takes."""
    layout = "channels_last" if dtype in (torch.float32, torch.bfloat16) else "contiguous"
    x = random(1, 130, 5, 13, dtype=dtype, layout=layout, device=device, shift=0.5)
    check_gram(x, center=dtype.itemsize == 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_of_several_tiles_of_channels(dtype, device) -> None:
    x = random(1, 130, 3, 5, dtype=dtype, device=device, shift=0.5)
    check_loss(x, target_for(x))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(1, 1000), (1e-3, 0), (1e4, 0), (1, -30)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes(dtype, scale, shift, center, device) -> None:
    """With several chunks of a plane, whose means must be merged."""
    x = random(1, 6, 21, 23, dtype=dtype, device=device, scale=scale, shift=shift)
    check_gram(x, center=center)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 6e4), (torch.bfloat16, 2e18), (torch.float32, 2e18)]
)
def test_huge_values_do_not_overflow(dtype, size, device) -> None:
    """Not even in the sums of a chunk of 1024 pixels."""
    check_huge_values(dtype, size, "contiguous", device)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_images(layout, device) -> None:
    image = random(1, 17, 6, 7, layout=layout, device=device, shift=0.5)
    check_gram(image.expand(3, -1, -1, -1))
    check_gram(image[:, :1].expand(-1, 5, -1, -1), center=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("scale", "center"), [(None, False), (0.1, True)])
def test_gradcheck(scale, center, layout, device) -> None:
    x = random(2, 2, 2, 3, dtype=torch.float64, layout=layout, device=device)
    check_derivatives(x, fast_mode=True, scale=scale, center=center)


@pytest.mark.parametrize(
    ("target_shape", "center"), [(TARGET_SHAPES[0], True), *((s, False) for s in TARGET_SHAPES)]
)
def test_gradcheck_of_loss(target_shape, center, device) -> None:
    x = random(2, 2, 2, 3, dtype=torch.float64, device=device)
    target = target_for(x, target_shape).requires_grad_()
    x.requires_grad_()

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return gram_loss(x, target, center=center)

    assert torch.autograd.gradcheck(loss, (x, target), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (x, target), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_and_equal_without_grad(dtype, device) -> None:
    x = random(2, 5, 15, 17, dtype=dtype, device=device).requires_grad_()
    target = target_for(x)
    runs = []
    for _ in range(2):
        gram, loss = gram_matrix(x, center=True), gram_loss(x, target)
        runs.append((gram, loss, *torch.autograd.grad(gram.square().sum() + loss, x)))
    with torch.no_grad(), poisoned_memory():
        runs[0] += gram_matrix(x, center=True), gram_loss(x, target)
    runs[1] += runs[1][:2]
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)


# Several layers in one launch.


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("dtype", "layouts"),
    [
        *((dtype, "mixed") for dtype in DTYPES),
        (torch.float32, "contiguous"),
        (torch.bfloat16, "channels_last"),
    ],
)
def test_layers(dtype, layouts, center, device) -> None:
    scales = SCALES if layouts == "mixed" else None
    check_losses(layers_of(LAYERS, dtype, LAYOUTS_OF_LAYERS[layouts], device), scales, center)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_one_tile_and_of_several(dtype, device) -> None:
    shapes = ((1, 16, 4, 5), (1, 130, 3, 3), (1, 33, 5, 14), (1, 6, 13, 23))
    check_losses(layers_of(shapes, dtype, device=device))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_with_a_large_mean(dtype, center, device) -> None:
    check_losses(layers_of(LAYERS[:2], dtype, device=device, shift=1000.0), center=center)


@pytest.mark.parametrize("center", [False, True])
def test_gradcheck_of_losses(center, device) -> None:
    check_derivatives_of_losses((0, 1, 2, 3), device, fast_mode=True, center=center)


class Launches:
    """A kernel that records its number of programs."""

    def __init__(self, kernel) -> None:
        self.kernel, self.programs = kernel, []

    def __getitem__(self, grid):
        self.programs += grid
        return self.kernel[grid]


@pytest.mark.parametrize("shape", [(1, 6, 33, 37), (1, 130, 23, 25)])
def test_more_chunks_than_are_added_up_at_once(shape, device, monkeypatch) -> None:
    """For one tile and for several, with an incomplete step of the loop over chunks."""
    from stylekernels.triton import gram_matrix as launchers

    monkeypatch.setattr(launchers, "processors", lambda device: 5 if shape[1] == 6 else 44)
    monkeypatch.setattr(launchers, "_SUM_CHUNKS", 2)
    sizes = ((shape[0], shape[1], shape[2] * shape[3]),)
    (share,) = launchers._share_out(sizes, 4, launchers.processors(device))
    assert share.chunks % 2 == 1 < share.chunks
    x = random(*shape, device=device, shift=0.5)
    check_gram(x)
    check_loss(x, target_for(x))


def test_tiles_that_fill_the_device_need_no_sums(device, monkeypatch) -> None:
    from stylekernels.triton import gram_matrix as launchers

    monkeypatch.setattr(launchers, "processors", lambda device: 4)
    monkeypatch.setattr(launchers, "sum_kernel", None)
    check_gram(random(4, 17, 33, 17, dtype=torch.bfloat16, device=device, shift=0.5))


@pytest.mark.parametrize("layers", [1, 5])
def test_all_layers_share_the_launches_of_one(layers, device, monkeypatch) -> None:
    """The launches of one layer, and its number of programs, which are divided among the layers."""
    from stylekernels.triton import gram_matrix as launchers

    kernels = {}
    for name in (
        "product_kernel",
        "sum_kernel",
        "loss_kernel",
        "symmetric_kernel",
        "gradient_kernel",
    ):
        kernels[name] = Launches(getattr(launchers, name))
        monkeypatch.setattr(launchers, name, kernels[name])
    monkeypatch.setattr(launchers, "processors", lambda device: 12)
    features = [random(1, 16, 64, 64, device=device).requires_grad_() for _ in range(layers)]
    losses = gram_losses(features, targets_for(features))
    torch.autograd.grad(losses.sum(), features)
    assert [len(kernel.programs) for kernel in kernels.values()] == [1] * 5
    (programs,) = kernels["product_kernel"].programs
    assert 10 <= programs <= 12 + layers
