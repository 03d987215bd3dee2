"""Helpers of Triton's kernels, rounding most of all: the interpreter's own conversion to bfloat16
truncates.

Numbers of every exponent, halfway between two results and next to it, and NaN.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylekernels import norm_conv2d
from tests.conftest import TRITON, random

triton = pytest.importorskip("triton")
from stylekernels.triton.launch import INTERPRETED, column_sums, rounded  # noqa: E402

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
    # Digits that bfloat16 and float16 round: none, half a step, and next to half a step.
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
    """2048 numbers in float32, whose sequential sum would have an error of 2e-5. The interpreter
    adds them in float64. A thread of a GPU adds 64 rows one by one, and a tree of 5 levels adds the
    sums of 32 threads: 69 roundings of 2**-24 each. Another assignment of rows may have twice as
    many.
    """
    x = torch.full((2048, 16), 0.3, device=device)
    y, exact = torch.empty(16, device=device), 2048 * x[0]
    sum_kernel[(1,)](x, y, ROWS=2048, COLUMNS=16)
    bound = 2 * 69 * 2.0**-24
    torch.testing.assert_close(y, exact, rtol=0 if INTERPRETED.value else bound, atol=0)
    row_after_row = torch.from_numpy(x.cpu().numpy().cumsum(0)[-1])
    assert ((row_after_row / exact.cpu() - 1).abs() > bound).all()


def test_precision_follows_either_of_pytorchs_flags() -> None:
    """In a new process: after new flags were set PyTorch refuses to read the old ones."""
    program = """
import torch
from stylekernels.triton.launch import product_precision
x, half = torch.empty(0), torch.empty(0, dtype=torch.bfloat16)
backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = True
print(*(product_precision(x, flags) for flags in backends))
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(*(product_precision(x, flags) for flags in backends))
print(*(product_precision(half, flags) for flags in backends))
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
    ).stdout.splitlines()
    assert found == ["tf32x3 tf32", "tf32 tf32x3", "tf32x3 tf32x3"]


@pytest.mark.parametrize("expanded", [False, True])
def test_parameters_with_gaps_in_memory(expanded, device) -> None:
    x = random(2, 3, 6, 5, device=device)
    weight = random(4, 3, 3, 3, device=device, seed=1)
    bias = random(1, device=device).expand(4) if expanded else random(8, device=device)[::2]
    expected = torch.nn.functional.conv2d(x, weight, bias)
    torch.testing.assert_close(norm_conv2d(x, weight, bias=bias).y, expected)
