"""instance_norm, instance_norm_stats and their gradients in CUDA kernels, on a GPU or emulated.

The tests are those of Triton's kernels. Emulated GPUs have different limits, so that small images
have all kinds of teams: a block alone, clusters, and a grid that reads twice what it cannot keep.
"""

import pytest
import torch

from stylekernels import instance_norm
from tests.conftest import CUDA, poisoned_memory, random
from tests.emulated_cuda import LIMITS, emulated_gpus
from tests.test_instance_norm import (
    check_large_values,
    test_eps,  # noqa: F401
    test_expanded_input_and_gradient,  # noqa: F401
    test_nan_and_inf_go_where_torch_sends_them,  # noqa: F401
    test_nan_with_all_bits_set_stays_nan,  # noqa: F401
    test_planes_of_one_and_two_pixels,  # noqa: F401
    test_planes_without_pixels,  # noqa: F401
    test_saturated_activations_stay_finite,  # noqa: F401
    test_sigmoid_far_below_zero_is_zero,  # noqa: F401
    test_stats_of_another_call_give_the_same_output_and_gradient,  # noqa: F401
)
from tests.test_instance_norm_gradients import (
    test_a_gradient_alone_is_the_one_among_all,  # noqa: F401
    test_backward_keeps_only_the_input,  # noqa: F401
    test_gradient_penalty,  # noqa: F401
)
from tests.test_triton_instance_norm import (
    test_a_bad_pixel_of_a_plane_in_chunks,  # noqa: F401
    test_a_large_mean_takes_no_digits,  # noqa: F401
    test_chunks_of_several_tiles,  # noqa: F401
    test_deterministic_and_equal_without_grad,  # noqa: F401
    test_gradcheck,  # noqa: F401
    test_gradcheck_of_stats,  # noqa: F401
    test_magnitudes,  # noqa: F401
    test_options,  # noqa: F401
    test_signals_and_volumes,  # noqa: F401
    test_stats,  # noqa: F401
    test_sums_of_chunks_that_cancel,  # noqa: F401
)

pytestmark = CUDA

limits = emulated_gpus(LIMITS)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e17, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (1, 24, 61, 67)])
def test_values_whose_squares_exceed_float32(shape, size, dtype, layout, device) -> None:
    """Two values with unequal counts, in planes of one block and of several."""
    first = random(*shape, device=device, layout=layout) < -0.3
    check_large_values(torch.where(first, -size, size).to(dtype), size, "tanh")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", [0, 2600, -1])
def test_one_large_value_of_a_plane(where, dtype, layout, device) -> None:
    """A single lane reads it, as its first value or later. Other planes are not affected."""
    x = random(1, 24, 61, 67, dtype=dtype, device=device, layout=layout)
    others = torch.arange(24, device=device) != 5
    plain = instance_norm(x)
    x[0, 5].view(-1)[where] = 1e30
    grad = random(*x.shape, dtype=dtype, device=device, seed=1)
    inputs = [t.requires_grad_() for t in (x, x.double())]
    results = [instance_norm(t) for t in inputs]
    torch.testing.assert_close(results[0][:, others], plain[:, others])
    pairs = zip(results, inputs, strict=True)
    gradients = [torch.autograd.grad(y, t, grad.to(t.dtype))[0] for y, t in pairs]
    for actual, expected in (results, gradients):
        error = (actual[0, 5].double() - expected[0, 5]).norm() / expected[0, 5].norm()
        assert error < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 8, 150, 170), (1, 8, 300, 340)])
@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_clusters_that_do_not_fit(multiprocessors, shape, layout, device, monkeypatch) -> None:
    """A part of a GPU has fewer multiprocessors for a cluster than its kind of GPU: clusters are
    smaller, and what exceeds them takes a grid. The emulated GPU refuses clusters that are too
    large."""
    monkeypatch.setenv("CUDA_EMULATION_CLUSTER_MULTIPROCESSORS", str(multiprocessors))
    x = random(*shape, layout=layout, device=device, shift=3.0).requires_grad_()
    wide = x.detach().double().requires_grad_()
    cotangent = random(*shape, device=device, seed=1)
    y, expected = (instance_norm(t, activation="tanh") for t in (x, wide))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    (expected,) = torch.autograd.grad(expected, wide, cotangent.double())
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 2, 150, 170), "contiguous"), ((1, 24, 60, 70), "channels_last")],
)
def test_the_order_of_threads_changes_nothing(shape, layout, dtype, device, monkeypatch) -> None:
    """Threads run in another order for each seed; blocks too."""
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=3.0).requires_grad_()
    weight = random(shape[1], device=device).requires_grad_()
    cotangent = random(*x.shape, dtype=dtype, device=device, seed=1)
    runs = []
    for seed in range(3):
        monkeypatch.setenv("CUDA_EMULATION_SEED", str(seed))
        with poisoned_memory():
            y = instance_norm(x, weight, activation="relu")
        runs.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)
