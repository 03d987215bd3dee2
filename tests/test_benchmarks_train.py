"""The benchmark of training: right steps only, the work that is counted, the table."""

from dataclasses import replace

import pytest
import torch

from benchmarks import ceilings, cli
from benchmarks.cpu import Cpu
from benchmarks.race import Entry
from benchmarks.train import cases, report, rivals, suite
from benchmarks.train.our_step import OurStep
from benchmarks.train.plain_step import PlainStep

LIMITS = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 4e11}, "made up")
SMALL = cases.Case("lite", 1, "float32", crop=32)


@pytest.fixture(scope="module")
def problem_in():
    """Problems by dtype, with a small painting. Contenders and tests share a problem."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "_PAINTING_SIDES", (48, 40))
        found = {
            dtype: cases.Problem(replace(SMALL, dtype=dtype)) for dtype in ("float32", "bfloat16")
        }
    return found.__getitem__


def ids(*arguments: str) -> list[str]:
    return [case.id for case in suite.TrainSuite.of(cli.parse(["train", *arguments])).cases]


def test_options_choose_the_cases(monkeypatch):
    monkeypatch.setattr(cases, "leaves_bfloat16_out", lambda _: False)
    assert len(ids()) == len(set(ids())) == 8
    assert ids("--dtype", "bfloat16", "--only", "full") == [
        "full/1x256/bfloat16",
        "full/4x256/bfloat16",
    ]
    assert ids("--quick", "--crop", "64") == ["full/1x64/float32"]
    on_gpu = cases.select(cli.parse(["train", "--device", "cuda", "--only", "lite"]))
    assert [case.id for case in on_gpu] == [f"lite/{n}x256/bfloat16" for n in (1, 4, 16)]
    monkeypatch.setattr(cases, "leaves_bfloat16_out", lambda _: True)
    assert all("float32" in case for case in ids())


def test_a_crop_too_small_for_the_loss_network_is_refused(capsys):
    assert cli.main(["train", "--crop", "16"]) == 2
    assert "error: --crop: expected at least 32 pixels, got 16" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_and_eager_take_the_same_step(problem_in, dtype):
    problem = problem_in(dtype)
    before = [weight.clone() for weight in problem.generator.parameters()]
    entries = rivals.enter(problem, ("eager", "eager-nhwc"))
    assert [(entry.name, entry.error) for entry in entries] == [
        ("ours", None),
        ("eager", None),
        ("eager-nhwc", None),
    ]
    for entry in entries:
        assert torch.isfinite(entry.call()["total"])
    for old, new in zip(before, problem.generator.parameters(), strict=True):
        assert torch.equal(old, new)  # contenders train copies


def tamper(wrong: str, step: OurStep) -> None:
    """Spoil one thing in a step."""
    inner, weights = step.loss, dict(step.network.working.named_parameters())

    def loss(*pictures):
        total = inner(*pictures)["total"]
        return {"total": 2 * total if wrong == "all gradients" else total + 0.01 * total.detach()}

    if wrong == "a gradient":
        weights["residual.3.first.norm.weight"].register_hook(torch.neg)
    else:
        step.loss = loss


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", ["loss", "all gradients", "a gradient"])
def test_a_wrong_step_is_refused(problem_in, monkeypatch, wrong, dtype):
    make = rivals.make

    def tampered(name, problem, mode):
        words, step, take = make(name, problem, mode)
        if name == "ours":
            tamper(wrong, step)
        return words, step, take

    monkeypatch.setattr(rivals, "make", tampered)
    rival = ("eager",) if wrong == "loss" else ()
    ours, *others = rivals.enter(problem_in(dtype), rival)
    assert ours.error.startswith("wrong: relative error ")
    assert ours.call is None
    assert [other.error for other in others] == [None] * len(rival)


def test_a_step_that_moves_nothing_is_refused(problem_in, monkeypatch):
    monkeypatch.setattr(PlainStep, "__call__", lambda step, *_: {"total": torch.ones(())})
    step = rivals.plain_step(problem_in("float32"), torch.float32)
    with pytest.raises(RuntimeError, match="no weight moved"):
        rivals.answer(*step)


def test_a_contender_that_cannot_be_made_ready_is_refused(problem_in):
    class Full(Cpu):
        def ready(self, calls):
            raise MemoryError("no room for a graph")

    (ours,) = rivals.enter(problem_in("float32"), (), device=Full())
    assert (ours.call, ours.error) == (None, "MemoryError: no room for a graph")


def test_a_step_is_counted_forward_and_backward(problem_in):
    """Forward passes count once. With gradients the network's layers count three times, and those
    of the loss network, whose weights are frozen, twice."""
    found = suite._flops(problem_in("float32"))
    side, channels, of_vgg, of_content = 32, 3, 0, 0
    for block, (width, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))):
        for index in range(count):
            layer = 2 * 9 * side**2 * channels * width
            of_vgg += layer
            if block < 3 or (block == 3 and index == 0):
                of_content += layer
            channels = width
        side //= 2
    full, half, quarter = 32**2, 16**2, 8**2
    of_network = 2 * (
        81 * 3 * 16 * full * 2
        + 9 * 16 * 32 * half
        + 9 * 32 * 64 * quarter
        + 10 * 9 * 64 * 64 * quarter
        + 9 * 64 * 32 * half
        + 9 * 32 * 16 * full
    )
    # All but this: the photo's gradient in the first layer, and Gram matrices.
    expected = of_content + 2 * of_vgg + 3 * of_network
    assert found == pytest.approx(expected, rel=0.05)


def row_of(case: cases.Case, **seconds: float) -> report.Row:
    samples = {name.replace("_", "-"): [value] * 5 for name, value in seconds.items()}
    entries = [Entry(name, name, None) for name in samples]
    return report.make_row(case, 2e10, case.dtype, entries, samples, LIMITS)


def test_the_table_says_what_was_measured():
    row = row_of(cases.Case("full", 4, "float32"), ours=0.5, eager=1.0, eager_nhwc=0.75)
    titles = [title for title, _ in report.VIEW.table.columns]
    assert dict(zip(titles, report.VIEW.line(row).split(), strict=True)) == {
        "network": "full",
        "photos": "4x256",
        "type": "f32",
        "ours": "500",
        "±": "0%",
        "eager": "1000",
        "NHWC": "750",
        "comp.": "-",
        "floor": "200",
        "share": "40%",
        "img/s": "8.00",
        "/eager": "2.00",
        "/comp": "-",
        "/best": "1.50",
        "verdict": "win",
    }
    document = report.as_json(row)
    assert (document["images_per_s"], document["share_of_floor"]) == (8.0, 0.4)
    assert len(report.VIEW.line(row)) == len(report.VIEW.table.header()) <= 120
    assert row_of(SMALL, ours=0.5, compile=0.4).verdict == "loss"


def test_a_refused_step_is_a_row_without_times():
    entries = [Entry("ours", "TrainingStep", None, "wrong: relative error 1")]
    row = report.make_row(SMALL, 1e9, "float32", entries, {}, replace(LIMITS, flops_per_s=None))
    assert row.verdict == "wrong"
    assert report.as_json(row)["images_per_s"] is None
    assert report.VIEW.line(row).split()[3] == "-"
