"""Promises of the benchmarks: sound statistics, no wrong answers, a complete record of ops."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import ceilings, cli, machine, race, timing
from benchmarks.ops import cases, contenders, problems, report
from benchmarks.ops.suite import OpsSuite
from benchmarks.report import summary

ROOT = Path(__file__).resolve().parents[1]
ODD = (2, 13, 27, 21)


class FakeClock:
    """Time passes only in the contenders and in pauses."""

    def __init__(self) -> None:
        self.time = 0.0
        self.log: list[str] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.log.append("pause")
        self.time += seconds

    def contender(self, name: str, *seconds: float):
        """A contender that takes each of ``seconds`` in turn, repeatedly."""
        count = 0

        def call() -> None:
            nonlocal count
            self.log.append(name)
            self.time += seconds[count % len(seconds)]
            count += 1

        return call

    def measure(self, calls, **options):
        return timing.measure(calls, clock=timing.Clock(self.now, self.sleep), **options)


def test_summary_is_median_and_quartiles():
    found = timing.summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.q1, found.median, found.q3, found.rounds) == (2.0, 3.0, 4.0, 5)
    assert found.spread == pytest.approx(2 / 3)
    assert timing.summarize([7.0]) == timing.Summary(7.0, 7.0, 7.0, 1)


def test_ratios_are_taken_within_a_round():
    # The machine slows down fourfold, both contenders with it: medians of times would mix rounds.
    ours, rival = [1.0, 2.0, 4.0, 4.0], [3.0, 6.0, 12.0, 12.0]
    ratio = timing.paired_ratio(rival, ours)
    assert (ratio.q1, ratio.median, ratio.q3) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="zip"):
        timing.paired_ratio(rival[:3], ours)


def test_measure_finds_the_times_of_known_contenders():
    clock = FakeClock()
    calls = {"ours": clock.contender("ours", 0.010), "rival": clock.contender("rival", 0.025)}
    samples = clock.measure(calls, budget_s=1.0)
    assert samples["ours"] == pytest.approx([0.010] * len(samples["ours"]))
    assert timing.paired_ratio(samples["rival"], samples["ours"]).median == pytest.approx(2.5)


def test_rounds_are_interleaved_with_pauses():
    clock = FakeClock()
    names = ("a", "b", "c")
    clock.measure({name: clock.contender(name, 0.010) for name in names}, budget_s=1.0)
    timed = clock.log[clock.log.index("pause") :]
    assert timed[::2] == ["pause"] * (len(timed) // 2)
    rounds = [tuple(timed[start + 1 : start + 6 : 2]) for start in range(0, len(timed), 6)]
    assert all(sorted(one) == list(names) for one in rounds)
    assert len(set(rounds)) > 1, "every round has the same order"


def test_short_calls_are_repeated_and_woken_up():
    clock = FakeClock()
    samples = clock.measure({"tiny": clock.contender("tiny", 0.0005)}, budget_s=1.0)
    after_pause = clock.log[clock.log.index("pause") + 1 :]
    assert after_pause.index("pause") == 1 + 4  # one untimed, then 2 ms of them
    assert samples["tiny"] == pytest.approx([0.0005] * len(samples["tiny"]))


def test_rounds_go_on_until_the_ratio_is_settled_or_time_is_up():
    def rounds(*seconds: float, **options) -> int:
        clock = FakeClock()
        calls = {"ours": clock.contender("ours", 0.010)}
        calls["rival"] = clock.contender("rival", *seconds)
        return len(clock.measure(calls, min_rounds=5, max_rounds=50, **options)["ours"])

    assert rounds(0.020, budget_s=1e9) == 5
    assert rounds(0.010, 0.020, 0.030, budget_s=1e9) == 50
    assert rounds(0.010, 0.020, 0.030, budget_s=1.0) == pytest.approx(11, abs=2)
    assert rounds(0.010, 0.020, 0.030, budget_s=0.0) == 5


def test_fastest_goes_by_the_best_call():
    clock = FakeClock()
    calls = {
        "steady": clock.contender("steady", 0.02),
        "noisy": clock.contender("noisy", 0.09, 0.01),
    }
    assert timing.fastest(calls, clock=timing.Clock(clock.now, clock.sleep)) == "noisy"


def tiny_case(op: str) -> cases.Case:
    """The first case of an op, on a small image."""
    return next(case for case in cases.grid(shape=(2, 8, 9, 12)) if case.op == op)


def problem_of(case: cases.Case) -> problems.Problem:
    return problems.prepare(case)


@pytest.mark.parametrize("case", list(cases.grid(shape=ODD)), ids=lambda case: case.id)
def test_all_expressions_of_a_case_agree(case):
    problem = problem_of(case)
    steps = contenders.Steps(problem)
    truth = steps.truth(next(iter(problem.expressions.values())))
    assert problem.flops > 0 or case.limited_by == "memory"
    for name, function in {"ours": problem.ours, **problem.expressions}.items():
        error = contenders.refusal(steps.calls(function)[0], truth, problem.precision)
        assert error is None, f"{name}: {error}"


def test_case_ids_are_unique():
    ids = [case.id for case in cases.grid()]
    assert len(ids) == len(set(ids))


def test_wrong_contenders_are_refused():
    problem = problem_of(tiny_case("instance_norm"))
    right = problem.expressions["F.instance_norm"]

    def failing(*inputs):
        raise RuntimeError("out of order\nand a long trace")

    problem.expressions = {"right": right, "wrong": lambda *inputs: right(*inputs) * 1.01}
    problem.ours = lambda *inputs: right(*inputs) + float("nan")
    ours, eager = contenders.enter(problem, ("eager",))
    assert "wrong" in ours.error
    assert (eager.error, eager.expression) == (None, "right")

    problem.expressions = {"right": right, "wrong shape": lambda *inputs: right(*inputs)[:, 1:]}
    problem.ours = failing
    steps = contenders.Steps(problem)
    truth = steps.truth(right)
    wrong_shape = steps.calls(problem.expressions["wrong shape"])[0]
    assert "inf" in contenders.refusal(wrong_shape, truth, "float32")
    ours, eager = contenders.enter(problem, ("eager",))
    assert ours.error == "RuntimeError: out of order"
    assert eager.expression == "right"


def test_wrong_gradients_are_refused():
    problem = problem_of(
        next(c for c in cases.grid(shape=(2, 8, 9, 12)) if c.op == "gram_loss" and c.backward)
    )
    steps = contenders.Steps(problem)
    truth = steps.truth(problem.expressions["bmm"])

    def half_the_gradient(x, target):
        loss = problem.expressions["bmm"](x, target)
        return loss / 2 + loss.detach() / 2

    (call,) = steps.calls(half_the_gradient)
    assert "wrong" in contenders.refusal(call, truth, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["instance_norm", "upsample_block"])
def test_no_gradient_where_a_relu_may_or_may_not_pass(op, dtype):
    all_cases = cases.grid(shape=(2, 32, 50, 50))
    case = next(c for c in all_cases if c.op == op and c.backward and c.dtype == dtype)
    problem = problem_of(case)
    formula = problem.expressions["F.instance_norm"]

    def passed(shift: float) -> torch.Tensor:
        """Return whether the gradient passes, for values that are shifted before the ReLU."""
        *others, norm_bias = (tensor.double() for tensor in problem.inputs)
        return formula(*others, norm_bias + shift) > 0

    kink = problems.KINK[dtype]
    unclear = passed(0.99 * kink) & ~passed(-0.99 * kink)
    clear = passed(-1.01 * kink) | ~passed(1.01 * kink)
    assert unclear.any()
    assert (problem.grad[unclear] == 0).all()
    assert (problem.grad[clear] != 0).double().mean() > 0.999  # a random gradient may be 0, too


def row_of(op: str, ours: float, eager: float | None, copy: float | None) -> report.Row:
    case = tiny_case(op)
    times = {"ours": ours, "eager": eager, "copy": copy}
    samples = {name: [ms * 1e-3] * 5 for name, ms in times.items() if ms is not None}
    entries = [race.Entry(name, name, None) for name in ("ours", "eager")]
    limits = ceilings.Ceilings(1e10, {"float32": 1e11, "bfloat16": 1e11}, "")
    return report.make_row(case, problem_of(case), "native", entries, samples, limits)


@pytest.mark.parametrize(
    ("op", "times", "verdict", "reason"),
    [
        ("instance_norm", (2.0, 9.0, 1.0), "win", None),
        ("instance_norm", (2.1, 2.1, 1.0), "even", None),
        ("instance_norm", (2.1, 2.0, 1.0), "even", None),  # 5 % is noise
        ("instance_norm", (3.0, 9.0, 1.0), "short", "3.00 copies, target 2.2"),
        ("instance_norm", (2.0, 1.0, 1.0), "loss", "eager is 2.00 times faster"),
        ("instance_norm", (2.0, None, 1.0), "alone", None),
        ("instance_norm", (3.0, None, 1.0), "short", "3.00 copies, target 2.2"),
        ("gram_matrix", (1.0, 2.0, None), "win", None),
        ("gram_matrix", (1.0, 1.4, None), "short", "1.40 times eager, target 1.5"),
    ],
)
def test_verdicts(op, times, verdict, reason):
    row = row_of(op, *times)
    assert row.verdict == verdict
    assert row.misses == ([] if reason is None else [reason])
    assert verdict in summary([row])


def test_the_table_fits_a_terminal():
    row = row_of("instance_norm", 2.1, 2.0, 1.0)
    for case in cases.grid():
        line = report.VIEWS["cpu"].line(replace(row, case=case))
        assert len(line) == len(report.VIEWS["cpu"].table.header()) <= 120


def test_a_refused_op_of_ours_is_a_row_without_times():
    case = tiny_case("gram_matrix")
    entries = [race.Entry("ours", "stylekernels", None, "wrong: relative error 1")]
    limits = ceilings.Ceilings(1e10, None, "not measured: no compiler")
    row = report.make_row(case, problem_of(case), "native", entries, {"eager": [1.0]}, limits)
    assert row.verdict == "wrong"
    assert "relative error 1" in summary([row])
    assert report.VIEWS["cpu"].line(row).endswith("wrong")


def test_without_a_compiler_the_peak_is_not_measured(monkeypatch):
    monkeypatch.setattr(ceilings.shutil, "which", lambda name: None)
    flops, notes = ceilings._measure_peaks(1)
    assert flops is None
    assert notes == "multiply-adds not measured: no compiler"
    assert ceilings.Ceilings(1e10, None, notes).floor_seconds("float32", 1, 1) is None


def test_partial_runs_do_not_replace_the_committed_results():
    assert OpsSuite(cli.parse(["ops"])).complete
    for arguments in ("--quick", "--only=gram", "--dtype=float32", "--shape=1x2x3x4", "--rivals"):
        assert not OpsSuite(cli.parse(["ops", arguments])).complete, arguments


def test_command_line_writes_a_complete_record(tmp_path):
    path = tmp_path / "result.json"
    arguments = "ops --device cpu --quick --shape 1x8x32x32 --threads 1 --rivals eager --seconds 0"
    command = [sys.executable, "-m", "benchmarks", *arguments.split(), "--json", str(path)]
    command += ["--only", "instance_norm/relu/fwd/1x8x32x32/float32/channels_last"]
    command += ["--only", "gram_matrix/fwd/1x8x32x32/bfloat16/contiguous"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC", "OMP_PROC_BIND", "OMP_PLACES"))
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Starting again with MALLOC_MMAP_THRESHOLD_=1073741824" in done.stdout
    assert "1x8x32x32" in done.stdout

    document = json.loads(path.read_text())
    machine = document["machine"]
    assert machine["environment"]["MALLOC_TRIM_THRESHOLD_"] == "2147483648"
    assert machine["environment"]["OMP_PROC_BIND"] == "true"
    assert machine["threads"] == 1
    assert "--quick" in machine["command"]
    for key in ("cpu", "cores", "capability", "torch", "date", "revision"):
        assert machine[key], key
    assert document["ceilings"]["copy_bytes_per_s"] > 1e8
    gram, norm = sorted(document["rows"], key=lambda row: row["op"])
    assert (norm["dtype"], norm["layout"]) == ("float32", "channels_last")
    assert norm["target"]["max_copies"] == 2.2
    assert set(norm["seconds"]) == {"ours", "eager", "copy"}
    assert (norm["rate_unit"], gram["rate_unit"]) == ("GB/s", "GFLOP/s")
    for times in (norm["seconds"]["ours"], norm["speedups"]["eager"], norm["copies"]):
        assert 0 < times["q1"] <= times["median"] <= times["q3"]
        assert times["rounds"] >= 5
    assert set(gram["seconds"]) == {"ours", "eager"}
    assert gram["expressions"]["eager"] in ("bmm", "einsum", "bmm in float32")
    assert gram["flops"] == 8 * 9 * 32 * 32
    assert all(row["verdict"] in ("win", "even", "short", "loss") for row in (gram, norm))


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 1, "a name, Zen 3"),  # EPYC 7003
        ("AuthenticAMD", 25, 17, "a name, Zen 4"),  # EPYC 9004
        ("AuthenticAMD", 26, 2, "a name, Zen 5"),  # EPYC 9005
        ("AuthenticAMD", 23, 49, "a name"),
        ("GenuineIntel", 6, 143, "a name"),
    ],
)
def test_the_generation_of_an_amd_cpu_is_told(monkeypatch, vendor, family, model, name):
    text = (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        "model name\t: a name\nflags\t\t: fpu vme\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.cpu_name() == name
