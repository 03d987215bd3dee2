"""Checks that need an NVIDIA GPU: a report, the build, tests, compute-sanitizer, speed.

``make gpu-check OUT=folder`` on a machine with PyTorch, Triton and this checkout. It installs and
fetches nothing. Each step has a time limit, a log in the folder and an outcome of its own, so that
a failing step does not hide others. All together take at most nine minutes, enough for a sample of
the tests. ``--most-cases`` runs more of them, and allows an hour more. The last line is the
verdict; the exit status is 0 for PASS, 1 for FAIL and 2 without a GPU.
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
#: Parametrised cases of each test function that run: some 770 of 4,270 tests. In most of them
#: Triton compiles kernels, 0.5 to 3 s each on a CPU core: all 4,270 would take far too long.
MOST_CASES = 12
GRACE_S = 12.0  # a step's last seconds, for ending: pytest takes 10 to stop its workers
MOST_LOG_BYTES = 8 << 20
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml
#: Files with GPU tests. Others are not collected: some import packages that such a machine lacks.
TEST_FILES = (
    "test_benchmarks_cuda.py",
    "test_cuda_gram_matrix.py",
    "test_cuda_group_norm.py",
    "test_cuda_instance_norm.py",
    "test_cuda_streams.py",
    "test_dispatch.py",
    "test_frame_graphs.py",
    "test_gram_losses.py",
    "test_gram_matrix.py",
    "test_group_norm.py",
    "test_instance_norm.py",
    "test_instance_norm_gradients.py",
    "test_instance_norm_ranks.py",
    "test_norm_conv2d.py",
    "test_norm_conv2d_contract.py",
    "test_norm_conv2d_ends.py",
    "test_training_step.py",
    "test_transforms.py",
    # Triton's own tests that the files above do not run on a GPU.
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
    """The result of a step.

    Attributes:
        status: passed, failed, skipped or cut short.
        reason: one line.
        seconds, limit_s: the time it took, and its limit.
        lines: output to show.
    """

    step: str
    status: str
    reason: str
    seconds: float = 0.0
    limit_s: float = 0.0
    lines: list[str] = field(default_factory=list)


#: A function of exit status and log that returns status, reason and lines to show.
Judge = Callable[[int, str], tuple[str, str, list[str]]]


def by_exit_status(status: int, log: str) -> tuple[str, str, list[str]]:
    """Return passed if the exit status is 0, else failed."""
    if status == 0:
        return PASSED, "", []
    return FAILED, f"exit status {status}", log.strip().splitlines()[-3:]


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        limit_s: its time limit.
        reserve_s: time that is reserved for it, however long the steps before it take.
        command: a function of its seconds until it is interrupted that returns the command.
        judge: a function that interprets its exit status and log.
        unable: the reason why it cannot run here, or None.
        environment: variables that are added to the process's own.
    """

    name: str
    limit_s: float
    reserve_s: float
    command: Callable[[float], Sequence[str | Path]]
    judge: Judge = by_exit_status
    unable: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def judge_build(status: int, log: str) -> tuple[str, str, list[str]]:
    """Judge the build. setup.py succeeds even if it cannot build, and leaves the reason in a
    file."""
    reason = ROOT / "stylekernels/not_built.txt"
    if status == 0 and reason.exists():
        return SKIPPED, reason.read_text().strip(), []
    return by_exit_status(status, log)


def judge_tests(status: int, log: str) -> tuple[str, str, list[str]]:
    """Judge the tests by the counts in pytest's last line. Without any test it is no success."""
    found = re.findall(r"^=*\s*(\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", log, re.MULTILINE)
    counts = found[-1] if found else "no tests ran"
    failed = re.findall(r"^(?:FAILED|ERROR) .*", log, re.MULTILINE)
    if not found:  # pytest was stopped: count lines such as "tests/a.py::b PASSED"
        passed = len(re.findall(r"::.* PASSED|PASSED .*::", log))
        failed = re.findall(r".*(?:::.* FAILED|FAILED .*::).*", log)
        if passed or failed:
            counts = f"{len(failed)} failed, {passed} passed until then"
    lines = [line[:160] for line in failed[:8]]
    if len(failed) > len(lines):
        lines.append(f"and {len(failed) - len(lines)} more in the log")
    good = status == 0 and " passed" in counts
    return (PASSED if good else FAILED), counts, lines


def judge_sanitizer(status: int, log: str) -> tuple[str, str, list[str]]:
    """Judge by compute-sanitizer's count of errors or hazards, and by the number of cases that
    ran."""
    if "Device not supported" in log:
        return SKIPPED, "compute-sanitizer: Device not supported", []
    if re.search(r"^0 of 0 cases", log, re.MULTILINE):
        return SKIPPED, "no compiled kernels", []
    summary = r"(?:ERROR|RACECHECK) SUMMARY|cases, \d+ wrong"
    said = [line for line in log.splitlines() if re.search(summary, line)]
    reason = "; ".join(line.strip("= ") for line in said[-2:])
    hazards = re.search(r"RACECHECK SUMMARY: [1-9]", log)  # warnings leave the exit status
    if status == 0 and not hazards:
        return PASSED, reason, []
    wrong = re.findall(r".*(?:wrong: |Error: |Invalid |Barrier error|hazard detected).*", log)
    return FAILED, reason or f"exit status {status}", [line[:160] for line in wrong[:6]]


def judge_benchmark(out: Path) -> Judge:
    """Judge the rows of the benchmark: a wrong answer is a failure, a loss against a rival is
    not."""
    start = time.time()

    def judge(status: int, log: str) -> tuple[str, str, list[str]]:
        # Results of earlier runs may be in the same folder.
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
    """Return compute-sanitizer's path, from PATH or the CUDA toolkit; None if there is none."""
    toolkits = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(f"{folder}/bin" for folder in toolkits)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def old_setuptools() -> str | None:
    """Return why setup.py cannot run, if setuptools is the reason."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return "no setuptools"
    if int(version.partition(".")[0]) < OLDEST_SETUPTOOLS:
        return f"setuptools {version}, and {OLDEST_SETUPTOOLS} or later is needed"
    return None


def _pytest(rehearse: bool, most_cases: int) -> list[str | Path]:
    """Return the command for a sample of the GPU tests; in a rehearsal, for a few CPU tests."""
    files = [path for name in TEST_FILES for path in sorted((ROOT / "tests").glob(name))]
    chosen = ["-m", "gpu"]
    if rehearse:
        files, chosen = [ROOT / "tests/test_gram_matrix.py"], ["-k", "test_loss_options and cpu"]
    parallel = []
    if importlib.util.find_spec("xdist"):
        # Compiling takes most of the time, a core for each worker. Two cores are left for pytest
        # itself and the system.
        parallel = ["-n", str(max(1, min(16, (os.cpu_count() or 1) - 2)))]
    plugins = ["-p", "no:cacheprovider", "-p", "gpu_sample", "--most-cases", str(most_cases)]
    if importlib.util.find_spec("pytest_benchmark"):
        plugins += ["-p", "no:benchmark"]  # it warns when xdist is used
    shown = ["-v", "--tb=short", "--color=no", "--maxfail=100"]
    return [sys.executable, "-m", "pytest", *chosen, *parallel, *plugins, *shown, *files]


def steps(out: Path, rehearse: bool, most_cases: int = MOST_CASES) -> list[Step]:
    """Return all steps in order. In a rehearsal they run on the CPU with little work."""
    python, ci = sys.executable, ROOT / ".ci"
    device = "cpu" if rehearse else "cuda"
    sanitizer = None if rehearse else find_sanitizer()
    # Out-of-bounds accesses show only if each tensor is an allocation of its own.
    memory_environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    no_sanitizer = None if rehearse or sanitizer else "no compute-sanitizer"

    def checked(tool: str, *options: str) -> Callable[[float], Sequence[str | Path]]:
        """Return the command of gpu_ops.py under a tool of compute-sanitizer."""
        checker: list[str] = []
        if sanitizer is not None:
            checker = [sanitizer, "--tool", tool, "--error-exitcode", "66"]
            checker += ["--target-processes", "application-only"]
            if tool == "memcheck":
                checker += ["--report-api-errors", "no"]

        def command(seconds: float) -> Sequence[str | Path]:
            limit = f"{seconds * 0.6:.0f}"  # the rest is for starting, and for ending a slow case
            ops = [python, ci / "gpu_ops.py", "--device", device, *options, "--time-limit", limit]
            return [*checker, *ops]

        return command

    def benchmark(seconds: float) -> Sequence[str | Path]:
        limit = f"{max(1, seconds - 45):.0f}"  # the rest is for that and for measuring the limits
        command = [python, "-m", "benchmarks", "ops", "--device", device, "--time-limit", limit]
        if rehearse:
            command += ["--quick", "--shape", "1x8x16x16", "--dtype", "float32"]
            command += ["--seconds", "0", "--rivals", "eager"]
        return [*command, "--json", out]

    tests_s = (180, 130) if 0 < most_cases <= MOST_CASES else (3600, 3600)
    return [
        Step("report", 60, 25, lambda _: [python, ci / "gpu_report.py", "--device", device]),
        Step(
            "build",
            100,
            60,
            lambda _: [python, "setup.py", "build_ext", "--inplace"],
            judge_build,
            old_setuptools(),
        ),
        Step(
            "tests",
            *tests_s,
            lambda _: _pytest(rehearse, most_cases),
            judge_tests,
            None if importlib.util.find_spec("pytest") else "no pytest",
            # cuBLAS is deterministic with it, which the tests demand.
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        ),
        Step(
            "memory",
            90,
            50,
            checked("memcheck"),
            judge_sanitizer,
            no_sanitizer,
            memory_environment,
        ),
        # Only the compiled kernels: Triton has no barriers of ours, and compiles for seconds.
        Step("barriers", 40, 30, checked("synccheck", "--compiled"), judge_sanitizer, no_sanitizer),
        Step("races", 60, 30, checked("racecheck", "--compiled"), judge_sanitizer, no_sanitizer),
        Step("benchmark", 280, 190, benchmark, judge_benchmark(out)),
    ]


def run(step: Step, seconds: float, log: Path) -> Outcome:
    """Run a step for at most this many seconds."""
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
            [str(word) for word in step.command(working_s)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_hear_interrupts,
        )
        try:
            status = process.wait(working_s)
        except subprocess.TimeoutExpired:
            status = None
            process.send_signal(signal.SIGINT)  # pytest then reports failures so far
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
    """Restore SIGINT. Processes that a shell starts in the background ignore it, and so would
    theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen) -> None:
    """End a step and all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)


def _shorten(log: Path) -> None:
    """Shorten a log that is too long to its end."""
    if log.stat().st_size > MOST_LOG_BYTES:
        with log.open("rb") as file:
            file.seek(-MOST_LOG_BYTES, os.SEEK_END)
            end = file.read()
        log.write_bytes(b"(the beginning is left out)\n" + end)


def check(todo: Sequence[Step], out: Path, total_s: float = TOTAL_S) -> list[Outcome]:
    """Run the steps within the total time, and write ``summary.json`` after each."""
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
    """Return the last line of the report."""
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
    """Print the table, then the verdict."""
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
    """Return 0 if every step passed or could not be run, 1 if one failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, with little work")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="run only these")
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
