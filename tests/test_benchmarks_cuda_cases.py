"""The benchmark's cases for a GPU: right answers, the bytes that count, verdicts, the table."""

import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import ceilings, race
from benchmarks.ops import contenders, cuda_cases, problems, report

TINY = (2, 8, 9, 12)
#: Limits as in test_benchmarks.py.
MIDDLING = (2, 37, 27, 41)
RATES = {"float32": 1e13, "tf32": 1e14, "bfloat16": 1e15, "float16": 1e15}
LIMITS = ceilings.Ceilings(1e12, RATES, "made up")


def case_of(op: str, variant: str = "", **fields) -> cuda_cases.Case:
    """A case of the op, with other fields."""
    found = next(
        case for case in cuda_cases.grid() if case.op == op and case.variant.startswith(variant)
    )
    return replace(found, **fields)


def test_cases_are_few_unique_and_of_every_op():
    cases = list(cuda_cases.grid())
    ids = [case.id for case in cases]
    assert len(ids) == len(set(ids)) <= 50
    quick = list(cuda_cases.grid(quick=True))
    assert {case.op for case in quick} == {case.op for case in cases}
    assert len(quick) == len(cuda_cases.GROUPS)
    assert {case.device for case in cases} == {"cuda"}
    tiny = [case.id for case in cuda_cases.grid(shape=TINY)]
    assert len(tiny) == len(set(tiny))


@pytest.mark.parametrize("case", list(cuda_cases.grid(shape=MIDDLING)), ids=lambda case: case.id)
def test_all_expressions_of_a_case_agree(case):
    problem = problems.prepare(case)
    steps = contenders.Steps(problem)
    truth = steps.truth(next(iter(problem.expressions.values())))
    for name, function in {"ours": problem.ours, **problem.expressions}.items():
        error = contenders.refusal(steps.calls(function)[0], truth, case.dtype)
        assert error is None, f"{name}: {error}"


@pytest.mark.parametrize(
    ("shape", "dtype", "variant", "backward", "images"),
    [
        ((1, 32, 512, 512), "float32", "relu", False, 2),  # a plane of 1 MiB stays on the chip
        ((1, 32, 1080, 1920), "bfloat16", "relu", False, 3),  # one of 4 MB is read twice
        ((1, 32, 1080, 1920), "bfloat16", "residual", False, 4),
        ((8, 32, 256, 256), "float32", "relu", True, 5),
        ((1, 32, 512, 512), "float32", "relu", True, 7),  # x stays, x and its gradient don't
        ((1, 32, 1080, 1920), "bfloat16", "relu", True, 8),
        ((8, 128, 64, 64), "bfloat16", "residual", True, 6),
    ],
)
def test_bytes_of_instance_norm(shape, dtype, variant, backward, images):
    case = case_of("instance_norm", variant, shape=shape, dtype=dtype, backward=backward)
    with FakeTensorMode():
        problem = problems.prepare(case)
        on_cpu = problems.prepare(replace(case, device="cpu"))
    image = math.prod(shape) * {"float32": 4, "bfloat16": 2}[dtype]
    assert problem.bytes == images * image
    assert on_cpu.bytes == {"relu": (2, 5), "residual": (3, 6)}[variant][backward] * image
    assert ("twice" in problem.counted) == (problem.bytes > on_cpu.bytes)


def test_bytes_of_gram_matrices():
    case = case_of("gram_matrix", "", shape=(2, 512, 8, 16), dtype="bfloat16")
    with FakeTensorMode():
        problem = problems.prepare(case)
    assert problem.bytes == 2 * 512 * (8 * 16 * 2 + 512 * 4)  # the features and float32 results


def test_work_of_the_style_loss_is_that_of_five_layers():
    case = case_of("gram_loss", "style_loss")
    with FakeTensorMode():
        problem = problems.prepare(case)
    assert [tuple(x.shape[1:]) for x in problem.inputs[:5]] == [
        (64, 256, 256),
        (128, 128, 128),
        (256, 64, 64),
        (512, 32, 32),
        (512, 16, 16),
    ]
    sizes = [math.prod(x.shape) for x in problem.inputs[:5]]
    assert problem.bytes == 3 * 2 * sum(sizes)
    channels = (64, 128, 256, 512, 512)
    forward = sum(size * (c + 1) for size, c in zip(sizes, channels, strict=True))
    backward = sum(2 * size * c for size, c in zip(sizes, channels, strict=True))
    assert problem.flops == forward + backward


@pytest.mark.parametrize("allowed", [True, False])
def test_convolutions_in_tf32_have_its_floor_and_its_tolerance(monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    found = {
        (case.op, case.dtype): problems.prepare(case).precision
        for case in cuda_cases.grid(shape=TINY)
    }
    expected = "tf32" if allowed else "float32"
    assert found["upsample_block", "float32"] == expected
    assert found["upsample_block", "bfloat16"] == "bfloat16"
    assert found["gram_matrix", "float32"] == "float32"
    on_cpu = case_of("upsample_block", dtype="float32", shape=TINY, device="cpu")
    assert problems.prepare(on_cpu).precision == "float32"
    row = row_of(case_of("upsample_block", dtype="float32", shape=TINY), ours=1.0)
    assert row.floor == pytest.approx(
        max(row.bytes / 1e12, row.flops / (1e14 if allowed else 1e13))
    )


def row_of(case, **seconds: float) -> report.Row:
    samples = {name.replace("_", "-"): [value] * 5 for name, value in seconds.items()}
    entries = [race.Entry(name, name, None) for name in samples]
    problem = problems.prepare(replace(case, shape=TINY))
    return report.make_row(case, problem, "native", entries, samples, LIMITS)


def floor_of(op: str, variant: str) -> float:
    return row_of(case_of(op, variant), ours=1.0).floor


@pytest.mark.parametrize(
    ("op", "variant", "floors", "verdict", "reason"),
    [
        ("instance_norm", "relu", {"ours": 1.1, "eager": 2}, "win", None),
        (
            "instance_norm",
            "relu",
            {"ours": 1.25, "eager": 2},
            "short",
            "80% of the floor's speed, target 85%",
        ),
        ("gram_matrix", "", {"ours": 1.1, "eager": 2}, "win", None),
        ("gram_loss", "style_loss", {"ours": 2, "compile": 3.2, "eager": 2.4}, "win", None),
        (
            "gram_loss",
            "style_loss",
            {"ours": 2, "compile": 2.8, "eager": 9},
            "short",
            "1.40 times compile, target 1.5",
        ),
        (
            "upsample_block",
            "k4",
            {"ours": 2, "compile": 4, "eager_nhwc": 2.6},
            "short",
            "1.30 times eager-nhwc, target 1.5",
        ),
        (
            "upsample_block",
            "k4",
            {"ours": 2, "compile": 4, "eager_nhwc": 1.6},
            "loss",
            "eager-nhwc is 1.25 times faster",
        ),
    ],
)
def test_verdicts(op, variant, floors, verdict, reason):
    floor = floor_of(op, variant)
    row = row_of(case_of(op, variant), **{name: floor * value for name, value in floors.items()})
    assert row.verdict == verdict
    assert row.misses[:1] == ([] if reason is None else [reason])
    assert row.share_of_floor == pytest.approx(1 / floors["ours"])


def test_the_table_fits_a_terminal():
    view = report.VIEWS["cuda"]
    row = row_of(case_of("gram_matrix"), ours=1e-5, eager=2e-5, eager_nhwc=3e-5, compile=1.5e-3)
    for case in cuda_cases.grid():
        line = view.line(replace(row, case=case))
        assert len(line) == len(view.table.header()) <= 120
    cells = dict(zip(view.table.header().split(), view.line(row).split(), strict=True))
    assert (cells["ours"], cells["NHWC"], cells["comp."]) == ("10.0", "30.0", "1500")
    assert (cells["/comp"], cells["/best"]) == ("150", "2.00")
