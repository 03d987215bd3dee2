"""Registration of the ops with PyTorch: schemas and tracing rules.

Schemas are written twice: in Python for installations without a compiler, and in C++ for programs
that load only the library. A new process defines each, and they must be equal.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stylekernels
from tests.conftest import random

PACKAGE = Path(stylekernels.__file__).parent
LIBRARY = PACKAGE / "libstylekernels_cpu.so"
MODULES = [
    importlib.import_module(f"stylekernels.ops.{file.stem}")
    for file in sorted((PACKAGE / "ops").glob("*.py"))
    if file.stem != "__init__"
]
SCHEMAS = {
    schema[: schema.index("(")]: schema
    for module in MODULES
    for schema in getattr(module, "SCHEMAS", ())
}

PRINT_SCHEMAS = """
import json
print(json.dumps([str(schema) for schema in torch._C._jit_get_all_schemas()
                  if schema.name.startswith("stylekernels::")]))
"""


def schemas_in_new_process(first_lines: str, **environment: str) -> dict[str, str]:
    """Return the schemas of the namespace after ``first_lines`` ran in a Python with only torch."""
    result = subprocess.run(
        [sys.executable, "-c", f"import torch\n{first_lines}\n{PRINT_SCHEMAS}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=PACKAGE.parent,
        env=os.environ | environment,
    )
    found = (torch._C.parse_schema(text) for text in json.loads(result.stdout.splitlines()[-1]))
    return {schema.name: str(schema) for schema in found}


def expected() -> dict[str, str]:
    parsed = (torch._C.parse_schema(f"stylekernels::{text}") for text in SCHEMAS.values())
    return {schema.name: str(schema) for schema in parsed}


def test_the_ops_were_found() -> None:
    assert len(SCHEMAS) >= 6
    assert "gram_matrix" in SCHEMAS
    assert "instance_norm_backward" in SCHEMAS


def test_schemas_defined_in_python() -> None:
    assert schemas_in_new_process("import stylekernels.ops", STYLEKERNELS_NATIVE="0") == expected()


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} was not built")
def test_schemas_defined_by_the_library_alone() -> None:
    assert schemas_in_new_process(f"torch.ops.load_library({str(LIBRARY)!r})") == expected()


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} was not built")
def test_schemas_with_library_and_package() -> None:
    assert schemas_in_new_process("import stylekernels.ops") == expected()


# Ops whose results depend on the kernels of the machine.
NOT_TRACED = ("norm_conv2d_pack", "norm_conv2d_workspace")


def gram_inputs(x):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    target = random(x.shape[1], x.shape[1], dtype=wide, seed=1)
    gram = random(x.shape[0], *target.shape, dtype=target.dtype, seed=2)
    mean = x.flatten(2).mean(2, dtype=target.dtype)
    mean = torch.stack((mean, 1e-3 * mean))
    smaller, slopes = x[..., 1:, :], random(2, dtype=wide, seed=3)
    return {
        "gram_matrix": [(x, None, False), (x, 0.5, True)],
        "gram_matrix_backward": [(gram, x, None, None), (gram, x, mean, 0.5)],
        "gram_loss": [(x, target, None, True), (x, gram, 2.0, False), (x, gram[:1], 2.0, True)],
        "gram_losses": [
            ([x], [gram], None, False),
            ([x, smaller], [target, gram], [2.0, 0.5], True),
        ],
        "gram_losses_backward": [
            ([x], [gram], [], slopes[:1], None),
            ([x, smaller], [gram, 2 * gram], [mean, 2 * mean], slopes, [2.0, 0.5]),
        ],
    }


def norm_inputs(x):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = random(x.shape[1], dtype=wide, seed=3).abs() + 0.5
    pairs = random(*x.shape[:2], dtype=wide, seed=4).abs() + 0.5
    grad, residual = (random(*x.shape, dtype=x.dtype, seed=seed) for seed in (5, 6))
    mean = torch.stack((pairs, pairs * 1e-8))  # the value, and the error of its rounding
    none = (None,) * 5
    leaky_relu = ("leaky_relu", 0.1, True, True, True, 1)
    return {
        "instance_norm_stats": [(x,)],
        "instance_norm": [
            (x, *none, "none", 0.01, False, 1e-5, False, 1),
            (x, channels, pairs, residual, None, None, "relu", 0.01, True, 1e-5, False, 1),
            (x, pairs, channels, residual, pairs, channels, "tanh", 0.01, False, 1e-3, False, 1),
            (x, channels, pairs, None, None, None, "silu", 0.01, True, 1e-5, False, x.shape[1]),
        ],
        "instance_norm_backward": [
            (grad, x, None, None, None, mean, pairs, "none", 0.01, True, False, False, 1),
            (grad, x, channels, pairs, residual, mean, pairs, *leaky_relu),
            (grad, x, pairs, channels, None, mean, pairs, "sigmoid", 0.1, False, False, True, 1),
            (grad, x, pairs, None, None, mean, pairs, "gelu", 0.1, True, False, False, x.shape[1]),
        ],
    }


def conv_inputs(x):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = x.shape[1]
    square, larger, even = (
        random(channels, channels, k, k, dtype=x.dtype, scale=0.1, seed=k) for k in (3, 5, 4)
    )
    bias = random(channels, seed=7)
    scale_shift = random(*x.shape[:2], 2, dtype=wide, seed=8)
    residual = random(*x.shape, dtype=x.dtype, seed=9)
    n, _, height, width = x.shape
    mode = (1, 0, "replicate", "transpose")
    packed = torch.ops.stylekernels.norm_conv2d_pack(even, *mode)
    size = torch.ops.stylekernels.norm_conv2d_workspace(even, n, height, width, *mode)
    memory = torch.empty(size, dtype=torch.float64)
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y, given = (
        torch.empty(n, channels, scale * height, scale * width, dtype=x.dtype, memory_format=layout)
        for scale in (2, 1)
    )
    pairs = torch.empty(n, channels, 2, dtype=wide)
    # bias, scale_shift, activation, negative_slope, residual
    plain = (None, None, "none", 0.01, None)
    scaled = (None, scale_shift, "tanh", 0.01, None)
    biased = (bias, scale_shift, "leaky_relu", 0.1, None)
    fused = (bias, scale_shift, "relu", 0.01, residual)
    return {
        "norm_conv2d_pack": [(even, *mode)],
        "norm_conv2d_workspace": [(even, n, height, width, *mode)],
        "norm_conv2d_out": [
            (x, even, packed, *plain, *mode, None, None, 1e-5, y, None, None, memory),
            (x, even, packed, *fused, *mode, bias, bias, 1e-3, y, given, pairs, memory),
        ],
        "norm_conv2d": [
            (x, square, *plain, False, 1, 0, "zeros", "none", False),
            (x, square, *fused, True, 2, 1, "reflect", "none", True),
            (x, even, *plain, True, 2, 4, "replicate", "none", True),
            (x, larger, *scaled, True, 1, 2, "reflect", "nearest", False),
            (x, even, *biased, False, *mode, True),
        ],
        "upsampled_image": [(x, 0, "zeros"), (x, 1, "replicate"), (x, 2, "reflect")],
        "upsample_conv2d": [
            (x, even, None, "transpose", "replicate", True),
            (x, square, bias.to(x.dtype), "nearest", "reflect", False),
        ],
    }


def check_op(name: str, x: torch.Tensor) -> None:
    """Check the schema (changed arguments and results), and the tracing rule's shapes and
    strides."""
    cases = gram_inputs(x) | norm_inputs(x) | conv_inputs(x)
    assert set(cases) == set(SCHEMAS), "a new op needs its inputs here"
    op = getattr(torch.ops.stylekernels, name).default
    for arguments in cases[name]:
        if name in NOT_TRACED:
            torch.library.opcheck(op, arguments, test_utils="test_schema")
        else:
            torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "contiguous"),
        (torch.float32, "channels_last"),
        (torch.bfloat16, "cropped"),
        (torch.bfloat16, "channels_last"),
        (torch.float64, "contiguous"),
    ],
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name, dtype, layout) -> None:
    """Rules derive dtypes from dtypes and strides from strides: each value occurs once with
    another."""
    check_op(name, random(2, 5, 6, 7, dtype=dtype, layout=layout))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("implementation", ["triton"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "channels_last"), (torch.bfloat16, "contiguous")]
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck_of_triton(name, dtype, layout) -> None:
    check_op(name, random(1, 3, 6, 5, dtype=dtype, layout=layout))
