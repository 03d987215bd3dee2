"""Faults of the kernels of Gram matrices.

A check is that of the tests of gram_matrix and gram_losses: output and gradients by the accuracy
rule, or where infinity goes.
"""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylekernels import gram_matrix
from tests.conftest import assert_accurate, poisoned_memory, random
from tests.cuda_faults import gram_matrix_operands, gram_matrix_order, gram_matrix_results
from tests.cuda_faults.fault import Kernels
from tests.test_gram_losses import check_losses, layers_of
from tests.test_gram_matrix import (
    check_gram,
    check_huge_values,
    check_loss,
    exact_gram,
    gram_in_torch,
    target_for,
)
from tests.test_gram_matrix import test_nan_and_inf_go_where_torch_sends_them as check_infinite

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

#: Stages of the pipelines are those of bfloat16: in float32 the first GPU has four too, the second
#: two, and three for the gradient. On the third tiles have many parts.
LIMITS = {
    "four stages": {"MULTIPROCESSORS": 5, "SHARED_BYTES": 227 << 10},
    "two stages": {"MULTIPROCESSORS": 3, "SHARED_BYTES": 99 << 10},
    "many parts": {"MULTIPROCESSORS": 11, "SHARED_BYTES": 163 << 10},
}


def loss(
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: str = "contiguous",
    target: str = "(N, C, C)",
    blocks: int | None = None,
) -> Callable[[], None]:
    """A check of gram_loss and its gradients. The target is not symmetric. The GPU has
    ``blocks`` multiprocessors, or those of the limits."""

    def run() -> None:
        if blocks is not None:
            os.environ["CUDA_EMULATION_MULTIPROCESSORS"] = str(blocks)
        x = random(*shape, dtype=dtype, layout=layout, shift=0.5)
        check_loss(x, target_for(x, target))

    return run


def layers(shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> Callable[[], None]:
    """A check of gram_losses of layers in other layouts, and of their gradients."""
    return lambda: check_losses(layers_of(shapes, dtype))


def centered() -> None:
    """Features of several tiles of channels, which differ in a large mean."""
    check_gram(random(1, 70, 9, 13) + 1000 * random(1, 70, 1, 1, seed=1), center=True)


def gradients(x: Tensor, grad: Tensor, scale: float | None = None) -> list[Tensor]:
    """Gradients of gram_matrix, of PyTorch's in the same type and of the exact one."""
    wide = x.double().requires_grad_()
    x.requires_grad_()
    functions = ((gram_matrix, x), (gram_in_torch, x), (exact_gram, wide))
    with poisoned_memory():
        grams = [(function(t, scale=scale), t) for function, t in functions]
        return [torch.autograd.grad(gram, t, grad.to(gram.dtype))[0] for gram, t in grams]


def many_channels() -> None:
    """Sums that are rounded towards zero in each step drift away, if all addends are positive."""
    assert_accurate(*gradients(random(1, 320, 3, 5).abs(), random(1, 320, 320, seed=1).abs()))


def small_gradients() -> None:
    """Gradients of the Gram matrices of two images, below the smallest number of float16."""
    grad = random(2, 70, 70, seed=1) * torch.logspace(-9, -7, 70).view(1, -1, 1)
    grad[1] *= 10
    assert_accurate(*gradients(random(2, 70, 9, 11, dtype=FP16, scale=1e4), grad, 1.0))


def zero_row() -> None:
    """The gradient of a Gram matrix one of whose rows and columns are zeros."""
    grad = random(1, 20, 20, seed=1)
    grad[:, 5] = grad[:, :, 5] = 0
    assert_accurate(*gradients(random(1, 20, 9, 13, dtype=FP16), grad))


def largest_numbers() -> None:
    """The gradient of numbers that round to an infinite tf32."""
    x = torch.full((1, 1, 1, 3), torch.finfo(FP32).max)
    x[..., 1] = 1.0
    ours, _, exact = gradients(x, torch.ones(1, 1, 1), 1e-3)
    torch.testing.assert_close(ours, exact.float())


def infinite_channels() -> None:
    """Products of two channels with infinite elements are infinite, with the sign of both."""
    x = random(1, 70, 5, 9)
    x[0, 3, 2, 4], x[0, 65, 2, 4] = torch.inf, -torch.inf
    torch.testing.assert_close(gram_matrix(x), gram_in_torch(x), equal_nan=True)


CHECKS = {
    "wide tiles": loss((1, 136, 9, 16), BF16),
    "channels_last": loss((1, 72, 13, 17), BF16, "channels_last"),
    "unaligned": loss((2, 70, 13, 17), BF16),
    "float32": loss((1, 70, 13, 16), FP32),
    "float64": loss((1, 70, 5, 7), FP64),
    "images of several tiles": loss((3, 130, 3, 5), BF16),
    "many parts": loss((1, 8, 4700), BF16, blocks=11),
    "many turns": loss((1, 64, 2400), BF16, blocks=11),
    "more blocks than lanes": loss((40, 5, 250), FP32, blocks=40),
    "shared target": loss((3, 17, 6, 7), FP32, target="(C, C)"),
    "layers": layers([(1, 70, 13, 16), (2, 24, 16, 16), (1, 17, 5, 6), (1, 130, 3, 3)], FP32),
    "wide layers": layers([(1, 70, 13, 16), (1, 72, 16, 16), (1, 80, 8, 8), (1, 72, 12, 12)], BF16),
    "more layers than warps": lambda: check_losses(
        layers_of([(1, 3 + i, 2, 5) for i in range(18)], FP32, ["contiguous"] * 18)
    ),
    "centred": centered,
    "huge float32": lambda: check_huge_values(FP32, 2e18, "contiguous", "cpu"),
    "many channels": many_channels,
    "small gradients": small_gradients,
    "gradient of a row of zeros": zero_row,
    "largest numbers": largest_numbers,
    "infinite channels": infinite_channels,
    "infinite mean": lambda: check_infinite(FP32, "contiguous", True, torch.inf, "cpu"),
}

KERNELS = Kernels(
    source="gram_matrix.cu",
    limits=LIMITS,
    checks=CHECKS,
    faults=gram_matrix_order.FAULTS | gram_matrix_operands.FAULTS | gram_matrix_results.FAULTS,
    needs=("instance_norm.cu",),
)
