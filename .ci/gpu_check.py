"""All that only a GPU can check, in one go: a report, the build, tests, a memory checker, speed.

``make gpu-check OUT=folder`` on a machine with PyTorch, Triton and this checkout: nothing is
installed, and nothing is fetched. Each step has a time limit, a log in the folder and an outcome
of its own, so that one that fails hides no other; all together take nine minutes at most, in which
a sample of the tests fits. ``--most-cases`` asks for more of them, and allows an hour for it. The
last line is the verdict; the exit status is 0 for PASS, 1 for FAIL and 2 where there is no GPU.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 520.0
#: Parametrised cases of each test function that run: some 770 tests of 4,270. Most make Triton
#: compile kernels, 0.5 to 3 s each on a CPU core: all 4,270 would take several times their step.
MOST_CASES = 12
GRACE_S = 12.0  # of a step's time, to end in: pytest takes 10 to stop what runs in parallel
MOST_LOG_BYTES = 8 << 20
OLDEST_SETUPTOOLS = 77  # as pyproject.toml says
#: With tests of the GPU. No others are collected: some import what such a machine lacks.
TEST_FILES = (
    "test_benchmarks_cuda.py",
    "test_dispatch.py",
    "test_frame_graphs.py",
    "test_gram_losses.py",
    "test_gram_matrix.py",
    "test_instance_norm.py",
    "test_instance_norm_gradients.py",
    "test_norm_conv2d.py",
    "test_norm_conv2d_contract.py",
    "test_norm_conv2d_ends.py",
    "test_training_step.py",
    "test_transforms.py",
    # Of Triton's own tests what the above don't run on a GPU.
    "test_triton_launch.py",
    "test_triton_norm_conv2d_out.py",
    "test_triton_plan.py",
    "test_triton_tuning.py",
    "test_triton_upsample_block.py",
    "test_upsample_block.py",
    "test_upsample_block_convolution.py",
)

PASSED, FAILED, SKIPPED, CUT_SHORT = "passed", "failed", "skipped", "cut short"


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        status: passed, failed, skipped or cut short.
        reason: in one line.
        seconds, limit_s: how long it took, and how long it might have.
        lines: what to show of it.
    """

    step: str
    status: str
    reason: str
    seconds: float = 0.0
    limit_s: float = 0.0
    lines: list[str] = field(default_factory=list)


#: From exit status and log to status, reason and lines to show.
Judge = Callable[[int, str], tuple[str, str, list[str]]]


def by_exit_status(status: int, log: str) -> tuple[str, str, list[str]]:
    """Passed if the exit status is 0."""
    if status == 0:
        return PASSED, "", []
    return FAILED, f"exit status {status}", log.strip().splitlines()[-3:]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        limit_s: it ends then.
        reserve_s: so much is kept for it, however long the steps before it take.
        command: of the seconds it has until it is interrupted.
        judge: what its exit status and log mean.
        unable: why it can't run here, if it can't.
        environment: added to the process's own.
    """

    name: str
    limit_s: float
    reserve_s: float
    command: Callable[[float], Sequence[str | Path]]
    judge: Judge = by_exit_status
    unable: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def judge_build(status: int, log: str) -> tuple[str, str, list[str]]:
    """setup.py succeeds where it can't build, and leaves the reason in a file."""
    reason = ROOT / "stylekernels/not_built.txt"
    if status == 0 and reason.exists():
        return SKIPPED, reason.read_text().strip(), []
    return by_exit_status(status, log)


def judge_tests(status: int, log: str) -> tuple[str, str, list[str]]:
    """The counts are pytest's last line; tests that never ran are no success."""
    found = re.findall(r"^=*\s*(\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", log, re.MULTILINE)
    counts = found[-1] if found else "no tests ran"
    failed = re.findall(r"^(?:FAILED|ERROR) .*", log, re.MULTILINE)
    if not found:  # it was stopped: each test has a line, "tests/a.py::b PASSED" or the other way
        passed = len(re.findall(r"::.* PASSED|PASSED .*::", log))
        failed = re.findall(r".*(?:::.* FAILED|FAILED .*::).*", log)
        if passed or failed:
            counts = f"{len(failed)} failed, {passed} passed until then"
    lines = [line[:160] for line in failed[:8]]
    if len(failed) > len(lines):
        lines.append(f"and {len(failed) - len(lines)} more in the log")
    good = status == 0 and " passed" in counts
    return (PASSED if good else FAILED), counts, lines


def judge_memory(status: int, log: str) -> tuple[str, str, list[str]]:
    """compute-sanitizer's sum, and how far the cases came."""
    if "Device not supported" in log:
        return SKIPPED, "compute-sanitizer: Device not supported", []
    said = [line for line in log.splitlines() if re.search(r"ERROR SUMMARY|cases, \d+ wrong", line)]
    reason = "; ".join(line.strip("= ") for line in said[-2:])
    if status == 0:
        return PASSED, reason, []
    wrong = re.findall(r".*(?:wrong: |Error: |Invalid ).*", log)
    return FAILED, reason or f"exit status {status}", [line[:160] for line in wrong[:6]]


def judge_benchmark(out: Path) -> Judge:
    """The rows of the result: a loss is a result, and a wrong answer a failure."""
    start = time.time()

    def judge(status: int, log: str) -> tuple[str, str, list[str]]:
        # Results of earlier runs may lie beside it.
        found = [path for path in out.glob("ops-*.json") if path.stat().st_mtime >= start]
        if not found:
            return by_exit_status(status or 1, log)
        document = json.loads(found[0].read_text())
        rows, failed, left_out = (document[key] for key in ("rows", "failed", "left_out"))
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        reason = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        if failed:
            reason += f", {len(failed)} failed"
        if left_out:
            reason += f"; {len(left_out)} left out for time"
        lines = [f"{name}: {error}"[:160] for name, error in failed.items()][:5]
        lines.append(f"{'case':<68} {'ours':>11} {'floor':>5} {'/best':>5} rival      verdict")
        lines += [_benchmark_line(row) for row in rows]
        return (PASSED if status == 0 and rows else FAILED), reason, lines

    return judge


def _benchmark_line(row: dict) -> str:
    ours, share = row["seconds"].get("ours"), row["share_of_floor"]
    over = row["speedup_over_best"]
    return (
        f"{row['id']:<68} "
        f"{'-' if ours is None else format(ours['median'] * 1e6, '.1f'):>8} us "
        f"{'-' if share is None else format(share, '.0%'):>5} "
        f"{'-' if over is None else format(over['median'], '.2f'):>5} "
        f"{row['best_rival'] or '-':<10} {row['verdict']}"
    )


def find_sanitizer() -> str | None:
    """compute-sanitizer, of PATH or of the CUDA toolkit."""
    toolkits = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(f"{folder}/bin" for folder in toolkits)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def old_setuptools() -> str | None:
    """Why setup.py can't run, if setuptools is why."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return "no setuptools"
    if int(version.partition(".")[0]) < OLDEST_SETUPTOOLS:
        return f"setuptools {version}, and {OLDEST_SETUPTOOLS} or later is needed"
    return None


def _pytest(rehearse: bool, most_cases: int) -> list[str | Path]:
    """A sample of the tests of the GPU; in a rehearsal a few of the CPU."""
    files = [path for name in TEST_FILES for path in sorted((ROOT / "tests").glob(name))]
    chosen = ["-m", "gpu"]
    if rehearse:
        files, chosen = [ROOT / "tests/test_gram_matrix.py"], ["-k", "test_loss_options and cpu"]
    parallel = []
    if importlib.util.find_spec("xdist"):
        # Compiling takes the time, a core each; two are left for pytest itself and the system.
        parallel = ["-n", str(max(1, min(16, (os.cpu_count() or 1) - 2)))]
    plugins = ["-p", "no:cacheprovider", "-p", "gpu_sample", "--most-cases", str(most_cases)]
    if importlib.util.find_spec("pytest_benchmark"):
        plugins += ["-p", "no:benchmark"]  # it warns beside xdist
    shown = ["-v", "--tb=short", "--color=no", "--maxfail=100"]
    return [sys.executable, "-m", "pytest", *chosen, *parallel, *plugins, *shown, *files]


def steps(out: Path, rehearse: bool, most_cases: int = MOST_CASES) -> list[Step]:
    """All steps in order; in a rehearsal on the CPU, with little to do."""
    python, ci = sys.executable, ROOT / ".ci"
    device = "cpu" if rehearse else "cuda"
    sanitizer = None if rehearse else find_sanitizer()
    # Out-of-bounds accesses show only where each tensor is an allocation of its own.
    memory_environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    memcheck: list[str] = []
    if sanitizer is not None:
        memcheck = [sanitizer, "--tool", "memcheck", "--error-exitcode", "66"]
        memcheck += ["--report-api-errors", "no", "--target-processes", "application-only"]

    def memory(seconds: float) -> Sequence[str | Path]:
        limit = f"{seconds * 0.6:.0f}"  # the rest to start, and to finish a slow case
        return [*memcheck, python, ci / "gpu_ops.py", "--device", device, "--time-limit", limit]

    def benchmark(seconds: float) -> Sequence[str | Path]:
        limit = f"{max(1, seconds - 45):.0f}"  # the rest likewise, and to measure the limits
        command = [python, "-m", "benchmarks", "ops", "--device", device, "--time-limit", limit]
        if rehearse:
            command += ["--quick", "--shape", "1x8x16x16", "--dtype", "float32"]
            command += ["--seconds", "0", "--rivals", "eager"]
        return [*command, "--json", out]

    tests_s = (180, 130) if 0 < most_cases <= MOST_CASES else (3600, 3600)
    return [
        Step("report", 60, 25, lambda _: [python, ci / "gpu_report.py", "--device", device]),
        Step(
            "build", 100, 60, lambda _: [python, "setup.py", "build_ext", "--inplace"],
            judge_build, old_setuptools(),
        ),
        Step(
            "tests", *tests_s, lambda _: _pytest(rehearse, most_cases), judge_tests,
            None if importlib.util.find_spec("pytest") else "no pytest",
            # With it cuBLAS is deterministic, as the tests ask of everybody.
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        ),
        Step(
            "memory", 90, 50, memory, judge_memory,
            None if rehearse or sanitizer else "no compute-sanitizer", memory_environment,
        ),
        Step("benchmark", 280, 220, benchmark, judge_benchmark(out)),
    ]  # fmt: skip


def run(step: Step, seconds: float, log: Path) -> Outcome:
    """Run a step for at most so many seconds."""
    if step.unable is not None:
        return Outcome(step.name, SKIPPED, step.unable)
    if seconds < 1:
        return Outcome(step.name, CUT_SHORT, "no time was left to start it")
    python_path = filter(None, [str(ROOT), str(ROOT / ".ci"), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path)}
    environment |= {"PYTHONUNBUFFERED": "1", **step.environment}
    start, working_s = time.monotonic(), max(1.0, seconds - GRACE_S)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in step.command(working_s)], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_hear_interrupts,
        )  # fmt: skip
        try:
            status = process.wait(working_s)
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGINT)  # pytest then tells what has failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            _end(process)
    took = time.monotonic() - start
    _shorten(log)
    text = log.read_text(errors="replace")
    if status is None:
        _, reason, lines = step.judge(1, text)
        reason = f"stopped after {took:.0f} s: {reason}"
        return Outcome(step.name, CUT_SHORT, reason, took, seconds, lines)
    judged, reason, lines = step.judge(status, text)
    return Outcome(step.name, judged, reason, took, seconds, lines)


def _hear_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would what it starts itself."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen) -> None:
    """End a step, and what it started and left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def _shorten(log: Path) -> None:
    """Keep the end of a log that is too long."""
    if log.stat().st_size > MOST_LOG_BYTES:
        with log.open("rb") as file:
            file.seek(-MOST_LOG_BYTES, os.SEEK_END)
            end = file.read()
        log.write_bytes(b"(the beginning is left out)\n" + end)


def check(todo: Sequence[Step], out: Path, total_s: float = TOTAL_S) -> list[Outcome]:
    """Run the steps, each in what time is left to it, and write ``summary.json`` after each."""
    deadline = time.monotonic() + total_s
    outcomes: list[Outcome] = []
    for index, step in enumerate(todo):
        left = deadline - time.monotonic() - sum(later.reserve_s for later in todo[index + 1 :])
        seconds = min(step.limit_s, left)
        print(f"{step.name}: at most {max(seconds, 0):.0f} s ...", flush=True)
        outcomes.append(run(step, seconds, out / f"{step.name}.log"))
        summary = {
            "verdict": verdict(outcomes),
            "complete": len(outcomes) == len(todo),
            "steps": [asdict(outcome) for outcome in outcomes],
        }
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return outcomes


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The last line."""
    bad = [outcome for outcome in outcomes if outcome.status in (FAILED, CUT_SHORT)]
    if bad:
        listed = ", ".join(
            outcome.step + (" (cut short)" if outcome.status == CUT_SHORT else "")
            for outcome in bad
        )
        return f"gpu-check: FAIL: {listed}"
    skipped = [outcome.step for outcome in outcomes if outcome.status == SKIPPED]
    if "tests" in skipped:
        return "gpu-check: FAIL: tests (skipped)"
    passed = len(outcomes) - len(skipped)
    return f"gpu-check: PASS {passed} steps" + (f", skipped {', '.join(skipped)}" * bool(skipped))


def show(outcomes: Sequence[Outcome]) -> None:
    """The table, and the verdict last."""
    print()
    for outcome in outcomes:
        print(f"{outcome.step:<10} {outcome.status:<9} {outcome.seconds:4.0f} s  {outcome.reason}")
        for line in outcome.lines:
            print(f"  {line}")
    print(verdict(outcomes))


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything passed or could not be run; 1: not so; 2: there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with little to do")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these")
    sample = f"parametrised cases of each test function, {MOST_CASES} by default; 0 for all"
    parser.add_argument("--most-cases", type=int, default=MOST_CASES, metavar="N", help=sample)
    options = parser.parse_args(arguments)
    if options.most_cases < 0:
        parser.error(f"--most-cases: expected 0 or more, got {options.most_cases}")
    if importlib.util.find_spec("torch") is None:
        print(f"gpu-check: no PyTorch for {sys.executable}; PYTHON=... chooses another Python")
        return 2
    gpu = _gpu()
    if gpu is None and not options.rehearse:
        print("gpu-check: PyTorch can use no NVIDIA GPU here; --rehearse runs the steps on the CPU")
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    todo = steps(out, options.rehearse, options.most_cases)
    if options.steps:
        todo = [step for step in todo if step.name in options.steps]
    print("rehearsal on the CPU" if options.rehearse else gpu)
    outcomes = check(todo, out, max(TOTAL_S, sum(step.reserve_s for step in todo)))
    show(outcomes)
    return int("FAIL" in verdict(outcomes))


if __name__ == "__main__":
    sys.exit(main())
