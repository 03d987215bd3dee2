"""`make gpu-check`: a failing step hides no other, nothing runs forever, and a full rehearsal."""

import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci/gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def step(gpu_check):
    """A step that runs Python code."""

    def make(name: str, code: str, limit_s: float = 30, reserve_s: float = 0, **fields):
        def command(seconds: float) -> list[str]:
            return [sys.executable, "-c", code.replace("SECONDS", str(seconds))]

        return gpu_check.Step(name, limit_s, reserve_s, command, **fields)

    return make


def test_a_failing_step_hides_no_other(gpu_check, step, tmp_path, capsys):
    todo = [
        step("first", "print('to the log'); raise SystemExit(3)"),
        step(
            "second", "import os; print('value', os.environ['EXTRA'])", environment={"EXTRA": "7"}
        ),
        step("third", "", unable="no compiler"),
    ]
    outcomes = gpu_check.check(todo, tmp_path)
    assert [(one.status, one.reason) for one in outcomes] == [
        ("failed", "exit status 3"),
        ("passed", ""),
        ("skipped", "no compiler"),
    ]
    assert (tmp_path / "first.log").read_text() == "to the log\n"
    assert (tmp_path / "second.log").read_text() == "value 7\n"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"]
    assert summary["verdict"] == "gpu-check: FAIL: first"
    assert [one["step"] for one in summary["steps"]] == ["first", "second", "third"]
    gpu_check.show(outcomes)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "gpu-check: FAIL: first"
    assert "  to the log" in printed
    assert gpu_check.verdict(outcomes[1:]) == "gpu-check: PASS 1 steps, skipped third"
    untested = gpu_check.Outcome("tests", "skipped", "no pytest")
    assert gpu_check.verdict([*outcomes[1:], untested]) == "gpu-check: FAIL: tests (skipped)"


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A pipe that replaces the clock. Writing to it ends the time of a step, and also the time for
    ending it, unless the step ``obeys``."""
    path = tmp_path / "ready"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    ready = SimpleNamespace(path=path, pipe=pipe, obeys=False)

    class Impatient(subprocess.Popen):
        told = False

        def wait(self, timeout=None):
            if self.told and ready.obeys:
                return super().wait()
            if not self.told:
                select.select([pipe], [], [])
                assert os.read(pipe, 1) == b"r", "the step did not start"
                self.told = True
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    yield ready
    os.close(pipe)


def test_a_step_that_hangs_is_stopped_with_what_it_started(gpu_check, step, ready, tmp_path):
    child = "import signal; signal.pause()"
    code = (
        "import os, signal, subprocess, sys\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        f"pipe = os.open({str(ready.path)!r}, os.O_WRONLY)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], pass_fds=[pipe])\n"
        "print('started', flush=True)\n"
        "os.write(pipe, b'r')\n"
        "signal.pause()"
    )
    (outcome,) = gpu_check.check([step("slow", code)], tmp_path)
    assert outcome.status == "cut short"
    assert "stopped after" in outcome.reason
    assert (tmp_path / "slow.log").read_text() == "started\n"
    assert gpu_check.verdict([outcome]) == "gpu-check: FAIL: slow (cut short)"
    # The pipe ends with the last process that could write to it.
    assert select.select([ready.pipe], [], [], 60)[0], "what it started ran on"
    assert os.read(ready.pipe, 1) == b""


def test_a_step_that_is_stopped_can_say_what_it_knows(gpu_check, step, ready, tmp_path):
    ready.obeys = True
    code = (
        "import os, time\n"
        f"pipe = os.open({str(ready.path)!r}, os.O_WRONLY)\n"
        "try:\n    os.write(pipe, b'r')\n    while True: time.sleep(0.01)\n"
        "except KeyboardInterrupt:\n    print('2 failed, 3 passed in 1.00s')"
    )
    todo = [step("tests", code, judge=gpu_check.judge_tests)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    try:
        (outcome,) = gpu_check.check(todo, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.status == "cut short"
    assert outcome.reason.endswith(": 2 failed, 3 passed")


def test_later_steps_keep_what_is_reserved_for_them(gpu_check, step, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE_S", 0.0)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: 1000.0)  # no step takes any time
    say = "print(SECONDS)"
    todo = [step("a", say, 100), step("b", say, 100, 30), step("c", say, 100, 20)]
    gpu_check.check(todo, tmp_path, total_s=60)
    assert [float((tmp_path / f"{name}.log").read_text()) for name in "abc"] == [10, 40, 60]
    last = gpu_check.check([step("late", say), step("later", say, reserve_s=9)], tmp_path, 0.5)
    assert [outcome.status for outcome in last] == ["cut short"] * 2
    assert "no time was left" in last[0].reason


def test_all_steps_fit_nine_minutes(gpu_check, tmp_path):
    steps = gpu_check.steps(tmp_path, rehearse=False)
    names = ["report", "build", "tests", "memory", "barriers", "races", "benchmark"]
    assert [step.name for step in steps] == names
    assert sum(step.reserve_s for step in steps) <= gpu_check.TOTAL_S
    assert gpu_check.TOTAL_S + 15 <= 9 * 60  # 15 s for starting and killing
    assert all(step.reserve_s <= step.limit_s for step in steps)


def test_what_runs_on_a_gpu(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: "/cuda/bin/compute-sanitizer")
    report, build, tests, memory, barriers, races, benchmark = (
        [str(word) for word in step.command(100)] for step in gpu_check.steps(tmp_path, False)
    )
    assert report[-2:] == ["--device", "cuda"]
    assert build[1:] == ["setup.py", "build_ext", "--inplace"]
    assert tests[tests.index("-m", 3) + 1] == "gpu"
    assert any(word.endswith("test_instance_norm_gradients.py") for word in tests)
    assert all(Path(word).exists() for word in tests if word.endswith(".py"))
    assert tests[tests.index("--most-cases") + 1] == str(gpu_check.MOST_CASES)
    assert memory[0] == "/cuda/bin/compute-sanitizer"
    assert memory[memory.index(sys.executable) + 1].endswith("gpu_ops.py")
    assert memory[-4:] == ["--device", "cuda", "--time-limit", "60"]
    for command, tool in ((memory, "memcheck"), (barriers, "synccheck"), (races, "racecheck")):
        assert command[:5] == [memory[0], "--tool", tool, "--error-exitcode", "66"]
        assert ("--compiled" in command) == (tool != "memcheck")
    options = "--device cuda --time-limit 55 --json"
    assert benchmark[1:] == ["-m", "benchmarks", "ops", *options.split(), str(tmp_path)]


@pytest.mark.parametrize(("cores", "workers"), [(None, 1), (2, 1), (8, 6), (16, 14), (64, 16)])
def test_workers_of_the_tests(gpu_check, tmp_path, monkeypatch, cores, workers):
    pytest.importorskip("xdist")
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: cores)
    tests = gpu_check.steps(tmp_path, False)[2].command(100)
    assert tests[tests.index("-n") + 1] == str(workers)


@pytest.mark.parametrize(
    ("most", "limit_s", "total_s"),
    [(None, 180, 520), (3, 180, 520), (13, 3600, 3985), (0, 3600, 3985)],
)
def test_more_cases_are_given_more_time(gpu_check, tmp_path, monkeypatch, most, limit_s, total_s):
    checked = {}

    def check(todo, out, total_s):
        checked.update({step.name: step for step in todo}, total_s=total_s)
        return []

    monkeypatch.setattr(gpu_check, "check", check)
    asked = [] if most is None else ["--most-cases", str(most)]
    assert gpu_check.main(["--out", str(tmp_path), "--rehearse", *asked]) == 0
    command = checked["tests"].command(100)
    expected = gpu_check.MOST_CASES if most is None else most
    assert command[command.index("--most-cases") + 1] == str(expected)
    assert command[command.index("gpu_sample") - 1] == "-p"
    assert (checked["tests"].limit_s, checked["total_s"]) == (limit_s, total_s)


def test_fewer_than_no_cases_are_refused(gpu_check, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path), "--most-cases", "-1"])
    assert "--most-cases: expected 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (0, "....\n12 passed, 3 skipped in 4.25s\n", ("passed", "12 passed, 3 skipped")),
        (0, "== 12 passed, 1 warning in 62.25s (0:01:02) ==\n", ("passed", "12 passed, 1 warning")),
        (
            1,
            "FAILED tests/a.py::b - Error\n1 failed, 2 passed in 1.00s\n",
            ("failed", "1 failed, 2 passed"),
        ),
        (5, "3 deselected in 0.10s\n", ("failed", "3 deselected")),
        (0, "7 skipped in 0.10s\n", ("failed", "7 skipped")),
        (4, "ERROR: usage\n", ("failed", "no tests ran")),
        (
            1,
            "[gw0] [ 3%] PASSED tests/a.py::b\n[gw1] [ 4%] FAILED tests/a.py::c[1]\n",
            ("failed", "1 failed, 1 passed until then"),
        ),
        (
            1,
            "tests/a.py::b PASSED [ 3%]\ntests/a.py::c[1] FAILED [ 4%]\n",
            ("failed", "1 failed, 1 passed until then"),
        ),
    ],
)
def test_outcome_of_the_tests(gpu_check, status, log, expected):
    judged, reason, lines = gpu_check.judge_tests(status, log)
    assert (judged, reason) == expected
    assert bool(lines) == ("FAILED" in log)


@pytest.mark.parametrize(
    ("status", "log", "expected"),
    [
        (
            0,
            "29 of 29 cases, 0 wrong\n========= ERROR SUMMARY: 0 errors\n",
            ("passed", "29 of 29 cases, 0 wrong; ERROR SUMMARY: 0 errors"),
        ),
        (
            66,
            "========= Invalid __global__ read\n29 of 29 cases, 0 wrong\n"
            "========= ERROR SUMMARY: 1 error\n",
            ("failed", "29 of 29 cases, 0 wrong; ERROR SUMMARY: 1 error"),
        ),
        (
            0,
            "11 of 20 cases, 0 wrong\n"
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            (
                "passed",
                "11 of 20 cases, 0 wrong; "
                "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            ),
        ),
        (
            0,
            "========= Warning: (Warp Level Programming) hazard detected at __shared__ 0x0\n"
            "11 of 20 cases, 0 wrong\n"
            "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n",
            (
                "failed",
                "11 of 20 cases, 0 wrong; "
                "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)",
            ),
        ),
        (
            66,
            "========= Barrier error detected. Divergent thread(s) in block\n"
            "20 of 20 cases, 0 wrong\n========= ERROR SUMMARY: 32 errors\n",
            ("failed", "20 of 20 cases, 0 wrong; ERROR SUMMARY: 32 errors"),
        ),
        (0, "0 of 0 cases, 0 wrong\n", ("skipped", "no compiled kernels")),
        (255, "Device not supported\n", ("skipped", "compute-sanitizer: Device not supported")),
        (1, "", ("failed", "exit status 1")),
    ],
)
def test_outcome_of_the_sanitizer(gpu_check, status, log, expected):
    judged, reason, lines = gpu_check.judge_sanitizer(status, log)
    assert (judged, reason) == expected
    assert bool(lines) == bool(re.search("Invalid|hazard detected|Barrier error", log))


def test_outcome_of_the_benchmark(gpu_check, tmp_path):
    old = tmp_path / "ops-cuda-old.json"
    old.write_text("{}")
    os.utime(old, (0, 0))
    judge = gpu_check.judge_benchmark(tmp_path)
    assert judge(2, "error: no GPU\n") == ("failed", "exit status 2", ["error: no GPU"])
    row = {
        "id": "gram_matrix/fwd",
        "verdict": "loss",
        "best_rival": "eager",
        "share_of_floor": 0.5,
        "seconds": {"ours": {"median": 1e-4}},
        "speedup_over_best": {"median": 0.8},
    }
    document = {"rows": [row], "failed": {}, "left_out": ["another"]}
    (tmp_path / "ops-cuda.json").write_text(json.dumps(document))
    status, reason, (_titles, line) = judge(0, "")
    assert (status, reason) == ("passed", "1 loss; 1 left out for time")
    assert line.split() == ["gram_matrix/fwd", "100.0", "us", "50%", "0.80", "eager", "loss"]
    refused = {
        **row,
        "verdict": "wrong",
        "seconds": {},
        "share_of_floor": None,
        "best_rival": None,
        "speedup_over_best": None,
    }
    document["rows"].append(refused)
    document["failed"] = {"a third": "RuntimeError: no engine"}
    (tmp_path / "ops-cuda.json").write_text(json.dumps(document))
    status, reason, lines = judge(1, "")
    assert (status, reason) == ("failed", "1 loss, 1 wrong, 1 failed; 1 left out for time")
    assert lines[0] == "a third: RuntimeError: no engine"
    assert lines[-1].endswith("wrong")


def test_a_build_that_cannot_be_says_why(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.judge_build(0, "")[0] == "passed"
    (tmp_path / "stylekernels").mkdir()
    (tmp_path / "stylekernels/not_built.txt").write_text("CMake was not found\n")
    assert gpu_check.judge_build(0, "") == ("skipped", "CMake was not found", [])
    assert gpu_check.judge_build(1, "error\n")[0] == "failed"


def test_a_long_log_keeps_its_end(gpu_check, step, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "MOST_LOG_BYTES", 1000)
    gpu_check.check([step("loud", "print('x' * 5000 + 'end')")], tmp_path)
    text = (tmp_path / "loud.log").read_text()
    assert len(text) < 1100
    assert text.endswith("end\n")


def test_without_a_gpu_it_says_so_in_one_line(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "_gpu", lambda: None)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("gpu-check: PyTorch can use no NVIDIA GPU here")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """All steps but the build, which would replace libraries that this process has loaded."""
    steps = ["report", "tests", "memory", "barriers", "races", "benchmark"]
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--rehearse", "--steps", *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert lines[-1] == "gpu-check: PASS 6 steps"
    assert len(lines) <= 70
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8
    assert [name for name in names if name.endswith(".log")] == sorted(f"{s}.log" for s in steps)
    summary = json.loads((tmp_path / "summary.json").read_text())
    report, tests, memory, barriers, races, benchmark = summary["steps"]
    assert "gram_matrix (1, 32, 64, 64)" in (tmp_path / "report.log").read_text()
    assert " passed" in tests["reason"]
    for step in (memory, barriers, races):
        assert ", 0 wrong" in step["reason"]
    assert len(benchmark["lines"]) >= 8
    assert report["seconds"] > 0
