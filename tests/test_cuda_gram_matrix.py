"""gram_matrix, gram_loss, gram_losses and their gradients in CUDA kernels, on a GPU or emulated.

The tests are those of Triton's kernels. Emulated GPUs differ in their number of multiprocessors,
among which tiles are divided, and in the shared memory for stages.
"""

import pytest
import torch

from stylekernels import gram_losses, gram_matrix
from tests.conftest import CUDA, DTYPES, poisoned_memory, random
from tests.emulated_cuda import emulated_gpus
from tests.test_gram_losses import check_losses, layers_of, targets_for
from tests.test_gram_matrix import check_gram, check_loss, gram_in_torch, target_for
from tests.test_triton_gram_matrix import (
    test_a_layer_without_images,  # noqa: F401
    test_backward_keeps_only_the_input,  # noqa: F401
    test_deterministic_and_equal_without_grad,  # noqa: F401
    test_each_is_that_of_its_layer,  # noqa: F401
    test_expanded_images,  # noqa: F401
    test_gradcheck,  # noqa: F401
    test_gradcheck_of_loss,  # noqa: F401
    test_gradcheck_of_losses,  # noqa: F401
    test_huge_values_do_not_overflow,  # noqa: F401
    test_known_value,  # noqa: F401
    test_layers,  # noqa: F401
    test_layers_of_one_tile_and_of_several,  # noqa: F401
    test_layers_with_a_large_mean,  # noqa: F401
    test_layout_of_the_gradient_of_the_result,  # noqa: F401
    test_loss_of_several_tiles_of_channels,  # noqa: F401
    test_loss_options,  # noqa: F401
    test_magnitudes,  # noqa: F401
    test_nan_and_inf_go_where_torch_sends_them,  # noqa: F401
    test_options,  # noqa: F401
    test_several_tiles_of_channels,  # noqa: F401
)

pytestmark = CUDA

#: As environment variables, see tests/emulated_cuda.py: four stages of panels, and two.
LIMITS = {
    "four stages": {"MULTIPROCESSORS": 5, "SHARED_BYTES": 227 << 10},
    "two stages": {"MULTIPROCESSORS": 3, "SHARED_BYTES": 99 << 10},
}

limits = emulated_gpus(LIMITS)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 16, 24), (1, 136, 9, 16), (1, 72, 13, 17)])
def test_aligned_lines_and_others(shape, dtype, layout, device) -> None:
    """Asynchronous copies where lines are aligned, and loads through registers elsewhere; tiles of
    64 and 128 channels."""
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=0.5)
    check_gram(x)
    check_loss(x, target_for(x))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_centered_channels_of_several_tiles(dtype, layout, device) -> None:
    """Each tile, and each step of the gradient, reads the means of its own channels."""
    x = random(2, 130, 3, 5, dtype=dtype, layout=layout, device=device)
    x += random(1, 130, 1, 1, dtype=dtype, device=device, seed=1, scale=10.0)
    check_gram(x, center=True)
    check_loss(x, target_for(x), center=True)


@pytest.mark.parametrize(("channels", "pixels"), [(8, 4700), (130, 1500)])
def test_many_parts_of_a_tile(channels, pixels, device, monkeypatch) -> None:
    """Parts of so many blocks that all warps of a block add them up."""
    monkeypatch.setenv("CUDA_EMULATION_MULTIPROCESSORS", "11")
    x = random(1, channels, pixels, dtype=torch.bfloat16, device=device, shift=0.5)
    check_loss(x, target_for(x))


def test_more_layers_than_a_launch_has(device) -> None:
    shapes = [(1, 3 + i, 2, 5) for i in range(18)]
    check_losses(layers_of(shapes, torch.float32, ["contiguous"] * 18, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_threads_changes_nothing(dtype, device, monkeypatch) -> None:
    """Threads run in another order for each seed; blocks too."""
    shapes = ((1, 70, 13, 16), (2, 24, 16, 16))
    features = [x.requires_grad_() for x in layers_of(shapes, dtype, device=device)]
    targets = targets_for(features)
    runs = []
    for seed in range(3):
        monkeypatch.setenv("CUDA_EMULATION_SEED", str(seed))
        with poisoned_memory():
            losses = gram_losses(features, targets)
            gram = gram_matrix(features[0].detach())
        runs.append((gram, losses, *torch.autograd.grad(losses.sum(), features)))
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


def test_numbers_next_to_the_largest_have_a_gradient(device) -> None:
    """They round to an infinite tf32."""
    largest = torch.finfo(torch.float32).max
    x = torch.full((1, 1, 1, 3), largest, device=device).requires_grad_()
    (grad,) = torch.autograd.grad(gram_matrix(x, scale=1e-3), x, torch.ones(1, 1, 1, device=device))
    torch.testing.assert_close(grad, torch.full_like(grad, 2e-3 * largest))


def test_nan_with_low_bits_alone_stays_nan(device) -> None:
    """tf32 lacks the bits that make it a NaN: those of its high part are those of infinity."""
    x = random(1, 3, 5, 7, device=device)
    x.view(torch.int32)[0, 1, 2, 3] = 0x7F800001
    x.requires_grad_()
    cotangent = random(1, 3, 3, device=device, seed=1)
    results = []
    for function in (gram_matrix, gram_in_torch):
        gram = function(x)
        results.append((gram, *torch.autograd.grad(gram, x, cotangent)))
    for ours, expected in zip(*results, strict=True):
        assert expected.isnan().any()
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("limits", ["two stages"], indirect=True)
def test_too_little_shared_memory_for_two_stages(device, monkeypatch) -> None:
    if device != "cpu":
        pytest.skip("a GPU has limits of its own")
    monkeypatch.setenv("CUDA_EMULATION_SHARED_BYTES", "16384")
    message = (
        r"expected a GPU with \d+ bytes of shared memory for a block, got 16384; force .*triton"
    )
    with pytest.raises(RuntimeError, match=message):
        gram_matrix(random(1, 8, 6, 7))


@pytest.mark.parametrize("limits", ["two stages"], indirect=True)
def test_more_tiles_than_32_bits_count(device) -> None:
    """They are counted before the features are read: their memory is never touched."""
    x = torch.empty(1 << 30, 1, 1, 1, dtype=torch.bfloat16, device=device)
    with pytest.raises(RuntimeError, match="x: expected fewer elements, got 2147483648 tiles"):
        gram_matrix(x)
