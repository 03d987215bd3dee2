"""`make sanitize`: flags reach the compiler, reports fail it, and it names tests that exist."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci/sanitize.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no source tree")


@pytest.fixture
def sanitize(monkeypatch):
    spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sanitize", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_unknown_sanitizers_are_refused() -> None:
    result = subprocess.run([sys.executable, SCRIPT, "memory"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "SANITIZER: expected one of address, thread, got memory\n"


def test_files_of_tests_are_there(sanitize) -> None:
    for sanitizer in sanitize.SANITIZERS.values():
        for pattern in sanitizer.files:
            assert list((ROOT / "tests").glob(pattern)), pattern


def test_the_library_is_compiled_with_it(sanitize, tmp_path, monkeypatch) -> None:
    """A compiler that notes its arguments, and fails at the first file of the library."""
    sanitizer, compiler, log = sanitize.SANITIZERS["address"], tmp_path / "cxx", tmp_path / "log"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *{ROOT}/csrc*) echo "$*" >> {log}; exit 1;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(subprocess.CalledProcessError):
        sanitize.build(sanitizer, tmp_path, "baseline")
    command = log.read_text().splitlines()[0].split()
    assert f"-fsanitize={sanitizer.flags}" in command
    assert "-O3" not in command
    assert not [word for word in command if word.startswith("-DHAVE_")]  # baseline alone


def test_the_usual_library_is_not_taken_for_it(sanitize, tmp_path) -> None:
    """A process that loads another library than the one that was built is a failure."""
    if not list((ROOT / "stylekernels").glob("_C.*.so")):
        pytest.skip("the native code was not built")
    environment = {"PYTHONPATH": str(ROOT)}
    assert not sanitize.loads(sanitize.SANITIZERS["address"], tmp_path, environment)


@pytest.mark.parametrize(
    ("report", "count"),
    [
        (None, 0),
        ("killed before its first line was complete", 1),
        ("a.h:1:2: runtime error: load of misaligned address\n    #0 0x7f in f a.h:1\n", 1),
        ("==1==ERROR: AddressSanitizer: heap-buffer-overflow\nSUMMARY: AddressSanitizer: x\n", 1),
        (2 * "==\nWARNING: ThreadSanitizer: data race\nSUMMARY: ThreadSanitizer: x\n==\n", 2),
    ],
)
def test_reports_are_counted(sanitize, tmp_path, capsys, report, count) -> None:
    if report is not None:
        (tmp_path / "ASAN_OPTIONS.17").write_text(report)
    assert sanitize.show(tmp_path) == count
    assert (report or "") in capsys.readouterr().out
