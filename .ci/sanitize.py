"""Runs the tests of the compiled ops under GCC's sanitizers: ``sanitize.py address`` or ``thread``.

``address`` is AddressSanitizer and UndefinedBehaviorSanitizer together, ``thread`` is
ThreadSanitizer. The library is built with them for this CPU in ``build/sanitize-<name>``, beside
copies of the package and of the tests, which run there: no process can load the usual library by
mistake. PyTorch and Python are not instrumented. The exit status is 0 if nothing is reported and
all tests pass. Further arguments are pytest's, in place of the usual files.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Prints the capabilities of this CPU; the usual library must have been built.
CAPABILITIES = "from stylekernels import _C; print(*_C.cpu_capabilities(), sep=';')"
#: Prints which library a process loads, and fails if it loads none.
LOADED = """
import sys
from stylekernels import _C, native
print(native.__file__, _C.build_info()["flags"], native.cpu_capability, sep="\\n")
sys.exit(native.cpu_missing)
"""
VARIABLE = "STYLEKERNELS_CPU_CAPABILITY"


@dataclass(frozen=True)
class Sanitizer:
    """A build and its tests.

    Attributes:
        flags: what -fsanitize= takes.
        preloaded: GCC's libraries that must be loaded before Python.
        environment: further variables. Those named ``*SAN_OPTIONS`` also get a log_path, because
            pytest hides what a test prints before the sanitizer ends its process.
        files: patterns of the files of tests.
        repeated: the tests run once per capability of this CPU.
        chosen: the tests of these files, as pytest's -k takes them.
    """

    flags: str
    preloaded: tuple[str, ...]
    environment: dict[str, str]
    files: tuple[str, ...]
    repeated: bool = False
    chosen: str = "not triton"


SANITIZERS = {
    "address": Sanitizer(
        flags="address,undefined,float-cast-overflow",
        # AddressSanitizer looks for libstdc++'s __cxa_throw at the start.
        preloaded=("libasan.so", "libubsan.so", "libstdc++.so"),
        environment={
            # Python and PyTorch do not free all their memory at exit.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            # As many random cases as a usual run draws, but on every CPU.
            "STYLEKERNELS_FUZZ_CASES": "100",
        },
        files=(
            "test_concurrent_calls.py",
            "test_cpu_capability.py",  # repeats tests of the ops
            "test_direct_calls.py",
            "test_fuzz_*.py",
            "test_gram_*.py",
            "test_group_norm*.py",
            "test_instance_norm*.py",
            "test_norm_conv2d*.py",
            "test_upsample_block*.py",
        ),
    ),
    "thread": Sanitizer(
        flags="thread",
        preloaded=("libtsan.so",),
        environment={
            # PyTorch's threads synchronise in libgomp, which is not instrumented, so that accesses
            # by such libraries would be reported. csrc/cpu/parallel.cpp tells of our own.
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
            "OMP_NUM_THREADS": "4",  # with fewer cores too
            # Calls go through Python while Triton interprets, and its lock lets none overlap.
            "TRITON_INTERPRET": "0",
        },
        files=("test_concurrent_calls.py",),
        repeated=True,
        # ThreadSanitizer ends a forked process that starts threads, as DataLoader's workers do.
        chosen="not triton and not forked",
    ),
}


def output_of(*command: str | Path, **options) -> str:
    return subprocess.check_output([str(word) for word in command], text=True, **options).strip()


def build(sanitizer: Sanitizer, folder: Path, capabilities: str) -> Path:
    """Build the package for these capabilities. Return the folder that has it and the tests."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    variables = {
        "STYLEKERNELS_SANITIZE": sanitizer.flags,
        "STYLEKERNELS_ONLY_CAPABILITIES": capabilities,
    }
    command = [sys.executable, "setup.py", "-q", "build"]
    command += ["--build-base", str(folder), "--build-lib", str(tree)]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    shutil.copytree(ROOT / "tests", tree / "tests")
    shutil.copy2(ROOT / "pyproject.toml", tree)
    return tree


def environment_of(sanitizer: Sanitizer, tree: Path, reports: Path) -> dict[str, str]:
    """Return the environment of processes that load the library in ``tree``, from any folder, and
    may write reports."""
    compiler = os.environ.get("CXX") or "g++"
    preloaded = [output_of(compiler, f"-print-file-name={name}") for name in sanitizer.preloaded]
    for path in preloaded:
        if not Path(path).exists():
            raise SystemExit(f"CXX: expected GCC with its sanitizers; {compiler} has no {path}")
    logged = {
        name: f"{value}:log_path={reports / name}" if name.endswith("SAN_OPTIONS") else value
        for name, value in sanitizer.environment.items()
    }
    own = {"LD_PRELOAD": " ".join(preloaded), "PYTHONPATH": str(tree)}
    return {**os.environ, **logged, **own}


def loads(sanitizer: Sanitizer, tree: Path, environment: dict[str, str]) -> bool:
    """Print which library is loaded. Return whether it is the instrumented one."""
    command = [sys.executable, "-c", LOADED]
    loaded = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    print(loaded.stdout, end="", flush=True)
    file, flags, *_ = [*loaded.stdout.splitlines(), "", ""]
    return loaded.returncode == 0 and Path(file).is_relative_to(tree) and sanitizer.flags in flags


def show(reports: Path) -> int:
    """Print the reports, and the first line of each at the end. Return how many there are."""
    texts = {path: path.read_text(errors="replace") for path in sorted(reports.iterdir())}
    for path, text in texts.items():
        print(f"\n== {path}\n{text[:8000]}")
    found = [
        line
        for text in texts.values()
        for line in text.splitlines()
        if re.search("ERROR: Addr|WARNING: Thread|runtime error: ", line)
    ]
    print(*found, sep="\n")
    return max(len(texts), len(found))


def main(name: str, *arguments: str) -> int:
    sanitizer, folder = SANITIZERS[name], ROOT / "build" / f"sanitize-{name}"
    capabilities = output_of(sys.executable, "-c", CAPABILITIES, cwd=ROOT)
    tree, reports = build(sanitizer, folder, capabilities), folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    environment = environment_of(sanitizer, tree, reports)

    files = [path for pattern in sanitizer.files for path in sorted((tree / "tests").glob(pattern))]
    plugins = ["-p", "no:benchmark", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    # UBSan writes to stderr whatever its log_path: only Python's own output is captured.
    plugins += ["--capture=sys"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-k", sanitizer.chosen, *plugins]
    command += arguments or [str(path) for path in files]
    good = True
    for capability in capabilities.split(";") if sanitizer.repeated else [None]:
        if capability is not None:
            environment[VARIABLE] = capability
        good &= loads(sanitizer, tree, environment)
        good &= subprocess.run(command, cwd=tree, env=environment).returncode == 0
    count = show(reports)
    print(f"sanitize: {'PASS' if good and not count else 'FAIL'}: {name}, {count} reports")
    return 0 if good and not count else 1


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SANITIZERS:
        given = "nothing" if len(sys.argv) < 2 else sys.argv[1]
        raise SystemExit(f"SANITIZER: expected one of {', '.join(SANITIZERS)}, got {given}")
    raise SystemExit(main(*sys.argv[1:]))
