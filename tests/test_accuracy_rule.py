"""The accuracy rule of the tests: what passes and what fails, even if PyTorch is wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conftest import FEW, assert_accurate, assert_op_accurate, random

EXACT = random(2, 3, 8, 9, dtype=torch.float64, seed=1)
DTYPES_AND_ONE_ROUNDING = (
    (torch.float32, 5e-7),
    (torch.bfloat16, 2.0**-8),
    (torch.float16, 2.0**-11),
)


def faulty(kind: str, dtype: torch.dtype) -> Tensor:
    """PyTorch's result with a fault in one row: memory that was never written, or added to it."""
    result = EXACT.to(dtype)
    fault = {"nan": torch.nan, "infinite": torch.inf, "huge": 1e4}.get(kind)
    result[1, 2, 5] = 0 if fault is None else fault
    if kind == "zeros":
        result[0] = 0
    return result


@pytest.mark.parametrize("kind", ["nan", "infinite", "huge", "zeros"])
@pytest.mark.parametrize(("dtype", "one_rounding"), DTYPES_AND_ONE_ROUNDING)
def test_where_pytorch_is_wrong_rounding_alone_is_allowed(dtype, one_rounding, kind) -> None:
    torchs = faulty(kind, dtype)
    assert_accurate(EXACT.to(dtype), torchs, EXACT)
    assert_accurate((EXACT * (1 + one_rounding)).to(dtype), torchs, EXACT)
    for wrong in (EXACT * (1 + 6 * one_rounding), EXACT.flip(0), torch.zeros_like(EXACT)):
        with pytest.raises(AssertionError, match=r"relative error .* exceeds"):
            assert_accurate(wrong.to(dtype), torchs, EXACT)
    one_pixel = EXACT.to(dtype)
    one_pixel[0, 1, 2, 3] += 8 * one_rounding * EXACT.abs().max()
    with pytest.raises(AssertionError, match=r"maximum relative error .* exceeds"):
        assert_accurate(one_pixel, torchs, EXACT)
    with pytest.raises(AssertionError, match="not finite"):
        assert_accurate(
            torchs if kind in ("nan", "infinite") else EXACT.to(dtype) / 0, torchs, EXACT
        )


def test_where_pytorch_rounds_twice_its_error_is_allowed() -> None:
    torchs = (EXACT * (1 + 1e-3)).float()
    assert_accurate((EXACT * (1 - 1.9e-3)).float(), torchs, EXACT)
    with pytest.raises(AssertionError, match=r"exceeds 0\.002"):
        assert_accurate((EXACT * (1 + 2.1e-3)).float(), torchs, EXACT)


def test_what_underflows_is_allowed_to() -> None:
    """Half of float16's smallest number is rounded to zero, in ours and in any other result."""
    tiny = EXACT * 2.0**-25 / EXACT.abs().max()
    assert_accurate(tiny.half(), tiny.half(), tiny)


def adds_with_errors(*errors: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return x + bias. The gradient of the bias has these relative errors, one per backward
    pass, and the last of them from then on."""
    left = list(errors)

    class Adds(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, bias):
            return x + bias[:, None, None]

        @staticmethod
        def backward(ctx, grad):
            error = left.pop(0) if len(left) > 1 else left[0]
            return grad, grad.sum((0, 2, 3)) * (1 + error)

    return Adds.apply


@pytest.mark.parametrize(
    ("channels", "our_error", "passes"),
    [(FEW, 1.8e-3, True), (FEW, 2.2e-3, False), (FEW + 1, 1.8e-3, False)],
)
def test_luck_of_pytorch_on_few_elements_is_told_by_more_draws(channels, our_error, passes) -> None:
    tensors = {"x": random(2, channels, 5, 7), "bias": random(channels, seed=1)}

    def check() -> None:
        lucky = adds_with_errors(0.0, 1e-3)
        exact = adds_with_errors(0.0)
        assert_op_accurate(adds_with_errors(our_error), lucky, exact, tensors)

    if passes:
        check()
    else:
        with pytest.raises(AssertionError, match=r"gradient of bias.*exceeds"):
            check()


def test_what_exceeds_the_range_of_the_dtype_is_infinite() -> None:
    exact = EXACT.clone()
    exact[0, 0, 0, :3] = torch.tensor([-1e5, 2e5, 65510.0])  # the last is rounded to 65504
    ours = exact.half()
    assert ours[0, 0, 0].tolist()[:3] == [-torch.inf, torch.inf, 65504]
    assert_accurate(ours, ours, exact)
    for column, wrong in ((0, torch.inf), (1, 65472.0), (2, torch.nan), (3, torch.inf)):
        changed = ours.clone()
        changed[0, 0, 0, column] = wrong
        with pytest.raises(AssertionError, match=r"is exceeded|are not finite"):
            assert_accurate(changed, ours, exact)
