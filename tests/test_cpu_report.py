"""`.ci/cpu_report.py` finds loops that keep vectors in memory."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci/cpu_report.py"
COMPILER = shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="no source tree"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64's instructions"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("g++", "objdump", "c++filt"))), reason="needs GCC and binutils"
    ),
]

CODE = """
#include <cstdint>
#include <cstring>

namespace stylekernels::avx512 {

typedef float Vec __attribute__((vector_size(64)));
struct Pair { Vec a, b; };

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, const Pair& pair) { std::memcpy(p, &pair, sizeof(pair)); }

// Squares in registers. The loop around it has another loop in it.
void in_registers(const float* x, int64_t count, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; ++r, x += count) {
    Pair sum{};
    for (int64_t i = 0; i < count; i += 32) {
      const Vec a = load(x + i), b = load(x + i + 16);
      sum.a += a * a, sum.b += b * b;
    }
    store(out + 32 * r, sum);
  }
}

// Reads and writes other memory at each turn.
void elementwise(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const Vec product = load(x + i) * load(out + i);
    std::memcpy(out + i, &product, sizeof(product));
  }
}

[[gnu::noinline]] static void add_squares(const Pair& x, Pair& sum) {
  sum.a += x.a * x.a, sum.b += x.b * x.b;
}
void calls(const float* x, int64_t count, float* out) {
  Pair sum{};
  for (int64_t i = 0; i < count; i += 32) add_squares({load(x + i), load(x + i + 16)}, sum);
  store(out, sum);
}

void array(const float* a, const float* b, int64_t count, float* out) {
  Vec sums[8] = {};
  for (int64_t i = 0; i < count; i += 16) {
    const Vec column = load(b + i);
#pragma GCC unroll 1
    for (int r = 0; r < 8; ++r) sums[r] += load(a + r * count + i) * column;
  }
  std::memcpy(out, sums, sizeof(sums));
}

void by_reference(const float* x, int64_t count, Pair& sum) {
  for (int64_t i = 0; i < count; i += 32) {
    const Vec a = load(x + i), b = load(x + i + 16);
    sum.a += a * a, sum.b += b * b;
  }
}

}  // namespace stylekernels::avx512
"""


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("cpu_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpu_report"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cpu_report"]


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """A build folder of which CODE is a kernel."""
    folder = tmp_path_factory.mktemp("build")
    objects = folder / "CMakeFiles/kernels_avx512.dir/csrc"
    objects.mkdir(parents=True)
    source = folder / "squares.cpp"
    source.write_text(CODE)
    flags = ("-std=c++20", "-O3", "-mavx512f", "-mfma", "-ffp-contract=fast")
    subprocess.run([COMPILER, *flags, "-c", source, "-o", objects / "squares.cpp.o"], check=True)
    return folder


@pytest.fixture
def loops(report, build) -> dict:
    """The loops by their function."""
    found: dict = {}
    for name, loop in report.read_loops(build):
        assert name.startswith("avx512 squares ")
        found.setdefault(name.split()[-1], []).append(loop)
    return found


def test_loops_in_registers_pass(loops) -> None:
    (squares,) = loops["in_registers"]
    assert (squares.arithmetic, squares.stores, squares.called) == (2, 0, ())
    assert not squares.is_wrong
    assert not any(loop.is_wrong for loop in loops["elementwise"])


@pytest.mark.parametrize("function", ["array", "by_reference"])
def test_sums_in_memory_fail(loops, function) -> None:
    assert all(loop.stores > 0 and loop.is_wrong for loop in loops[function])


def test_calls_of_small_functions_fail(loops) -> None:
    (loop,) = loops["calls"]
    assert loop.called == ("add_squares",)
    assert loop.is_wrong


def test_known_loops_pass(report, build, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu_report.py", str(build)])
    monkeypatch.setattr(report, "KNOWN", ())
    assert report.main() == 1
    assert "avx512 squares calls at" in capsys.readouterr().out

    monkeypatch.setattr(report, "KNOWN", (report.Known("squares (array|by_ref)", 2, "a reason"),))
    assert report.main() == 1  # calls are never known
    printed = capsys.readouterr().out
    assert "squares calls at" in printed
    assert "squares array at" not in printed
    assert "known loops of squares (array|by_ref): a reason" in printed


def test_a_known_loop_with_more_stores_fails(report, loops) -> None:
    loop = loops["by_reference"][0]
    for stores, allowed in ((loop.stores, True), (loop.stores - 1, False)):
        known = report.Known("by_reference", stores, "a reason")
        assert report.is_allowed(known, "avx512 squares by_reference", loop) == allowed


def test_a_folder_without_kernels_is_an_error(report, tmp_path) -> None:
    with pytest.raises(SystemExit, match="expected object files of kernels"):
        list(report.read_loops(tmp_path))
