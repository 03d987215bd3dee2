"""What Triton's kernels share: rounding, which the interpreter does in bfloat16 by cutting off.

Numbers of every exponent, halfway between two results and next to there, and what is no number.
"""

import pytest
import torch

from tests.conftest import TRITON

triton = pytest.importorskip("triton")
from stylekernels.triton.launch import column_sums, rounded  # noqa: E402

tl = triton.language
pytestmark = TRITON


@triton.jit
def round_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, rounded(tl.load(x + at), y.dtype.element_ty))


@triton.jit
def sum_kernel(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.arange(0, COLUMNS)
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + columns[None, :]
    tl.store(y + columns, column_sums(tl.load(x + at)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_pytorchs(dtype, device) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int32, generator=generator)
    # The digits that bfloat16 and float16 cut off: nothing, half a step, and next to that.
    for mask, rests in ((-(2**16), (0, 0x7FFF, 0x8000, 0x8001)), (-(2**13), (0xFFF, 0x1000))):
        for index, rest in enumerate(rests):
            bits[index :: 4 if mask == -(2**16) else 8] &= mask
            bits[index :: 4 if mask == -(2**16) else 8] |= rest
    bits[:8] = torch.tensor([0, -(2**31), 1, 0x7F800000, -0x800000, -1, 0x7FC00000, 0x7F7FFFFF])
    x = bits.view(torch.float32).to(device)
    y = torch.empty(4096, dtype=dtype, device=device)
    round_kernel[(1,)](x, y, BLOCK=4096)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.signbit()[~y.isnan()], x.signbit()[~x.isnan()])


def test_sums_over_rows(device) -> None:
    """2048 numbers in float32, whose sum row after row would lose three digits."""
    x = torch.full((2048, 16), 1 + 2.0**-20, device=device)
    y = torch.empty(16, device=device)
    sum_kernel[(1,)](x, y, ROWS=2048, COLUMNS=16)
    assert torch.equal(y, torch.full_like(y, 2048 + 2.0**-9))
