"""upsample_block in Triton's kernels, except for the gradients of its convolution.

The grid: pairs of upsampling, padding, dtype, layouts, activation and parameters at odd sizes, with
planes in one chunk and in several. Tests of the op that hold for every implementation are imported.
"""

import pytest
import torch

from stylekernels import upsample_block
from tests.conftest import DTYPES, TRITON, random
from tests.convolutions import PADDING_MODES
from tests.instance_norms import ACTIVATIONS
from tests.pairwise import missing_pairs, name_of, pairwise
from tests.test_upsample_block import (
    KINDS,
    check,
    check_derivatives,
    check_largest_error,
    inputs,
    test_a_large_bias_before_a_norm_does_not_cost_accuracy,  # noqa: F401
    test_backward_keeps_the_convolutions_input_and_output_once,  # noqa: F401
    test_bias_before_a_norm_has_no_effect_and_a_gradient_of_zeros,  # noqa: F401
    test_nan_reaches_the_planes_of_its_image_only,  # noqa: F401
)

pytestmark = TRITON

LAYOUTS = ("contiguous", "channels_last", "cropped")
OPTIONS = {
    "kind": KINDS,
    "padding_mode": PADDING_MODES,
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "activation": tuple(ACTIVATIONS),
    "parameters": (None, "(C,)", "(N, C)"),
    "shape": ((0, 3, 4, 4), (2, 5, 5, 7), (1, 3, 17, 33)),
    "outputs": (1, 3, 17),
}
CASES = tuple(pairwise(OPTIONS))


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_options(case, device) -> None:
    (upsample, kernel), outputs, shape = case["kind"], case["outputs"], case["shape"]
    tensors = inputs(shape, outputs, upsample, kernel, case["dtype"], case["layout"], device)
    if case["parameters"] is not None:
        size = (outputs,) if case["parameters"] == "(C,)" else (shape[0], outputs)
        for seed, name in enumerate(("norm_weight", "norm_bias"), 3):
            tensors[name] = random(*size, device=device, seed=seed, shift=0.5)
    check(
        tensors,
        upsample,
        case["padding_mode"],
        activation=case["activation"],
        grad_layout=case["grad_layout"],
    )


@pytest.mark.parametrize(
    ("upsample", "kernel", "dtype"),
    [
        ("transpose", 4, torch.bfloat16),
        ("transpose", 3, torch.float16),
        ("nearest", 3, torch.bfloat16),
        ("nearest", 3, torch.float16),
    ],
)
def test_largest_error_in_half_precision(upsample, kernel, dtype, device) -> None:
    check_largest_error(upsample, kernel, dtype, device)


@pytest.mark.parametrize(
    ("upsample", "kernel", "padding_mode"),
    [("transpose", 4, "replicate"), ("transpose", 3, "zeros"), ("nearest", 3, "reflect")],
)
def test_gradcheck(upsample, kernel, padding_mode, device) -> None:
    check_derivatives(upsample, kernel, padding_mode, "instance", device, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic(dtype, device, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # backward is cuDNN's
    tensors = inputs((1, 5, 17, 16), 3, "transpose", 4, dtype, "channels_last", device)
    x, weight = (tensor.detach().requires_grad_() for tensor in tensors.values())
    cotangent = random(1, 3, 34, 32, dtype=dtype, device=device, seed=3)
    runs = [upsample_block(x, weight) for _ in range(2)]
    runs = [(y, *torch.autograd.grad(y, (x, weight), cotangent)) for y in runs]
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)
