"""The sample of tests of `make gpu-check`: few cases of each function, in a shuffled order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[1] / ".ci/gpu_sample.py"

SAMPLED = """
import pytest

@pytest.mark.parametrize("value", range(60))
def test_of_many_cases(value):
    pass

@pytest.mark.parametrize("value", range(60))
@pytest.mark.parametrize("wanted", [True, False])
def test_of_the_marker(value, wanted):
    pass

@pytest.mark.parametrize("value", range(4))
def test_of_few_cases(value):
    pass

class TestOfTheSameName:
    @pytest.mark.parametrize("value", range(60))
    def test_of_many_cases(self, value):
        pass

def test_of_no_cases():
    pass
"""
# As tests/conftest.py marks GPU tests.
MARKING = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "False" not in item.name:
            item.add_marker(pytest.mark.gpu)
"""


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Run pytest; return the names of the tests that ran, in order, its exit status and its
    output."""
    folder = tmp_path_factory.mktemp("sampled")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (folder / "conftest.py").write_text(MARKING)
    (folder / "test_sampled.py").write_text(SAMPLED)

    def run(*arguments: str) -> tuple[list[str], int, str]:
        command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "gpu_sample"]
        command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "-m", "gpu", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(PLUGIN.parent), "PYTEST_ADDOPTS": ""}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )
        words = [word for line in done.stdout.splitlines() for word in line.split()]
        names = [word.partition("::")[2] for word in words if "::" in word]
        return names, done.returncode, done.stdout + done.stderr

    return run


def cases(names: list[str]) -> dict[str, int]:
    functions = [name.partition("[")[0] for name in names]
    return {function: functions.count(function) for function in sorted(functions)}


def test_a_sample_has_at_most_so_many_cases_of_each_function(sampled):
    names, status, said = sampled("--most-cases", "9")
    assert status == 0
    assert cases(names) == {
        "TestOfTheSameName::test_of_many_cases": 9,
        "test_of_few_cases": 4,
        "test_of_many_cases": 9,
        "test_of_no_cases": 1,
        "test_of_the_marker": 9,
    }
    # 60 do not have the marker, and 51 of three functions are too many: none counts twice.
    assert f"32 passed, {60 + 3 * 51} deselected" in said
    assert not any("False" in name for name in names), "chosen before -m"
    fewer, _, _ = sampled("--most-cases", "3")
    assert set(fewer) < set(names)


def test_a_sample_is_in_an_order_that_favours_no_function(sampled):
    names, _, _ = sampled("--most-cases", "9")
    assert names == sampled("--most-cases", "9")[0]
    everything, _, _ = sampled()
    assert names == [name for name in everything if name in set(names)]
    half = cases(names[:16])
    assert "test_of_few_cases" in half, "those of many cases come first"
    assert all(2 <= half[name] <= 7 for name in half if "many" in name or "marker" in name), half
    assert everything[:60] != [f"test_of_many_cases[{value}]" for value in range(60)]


def test_every_worker_has_the_same_sample(sampled):
    pytest.importorskip("xdist")
    names, status, said = sampled("--most-cases", "9", "-n", "2")
    assert status == 0, said  # workers that collect differently are an error
    assert "32 passed" in said
    assert set(names) == set(sampled("--most-cases", "9")[0])


@pytest.mark.parametrize("arguments", [(), ("--most-cases", "0")])
def test_without_a_number_all_cases_run(sampled, arguments):
    names, _, said = sampled(*arguments)
    assert cases(names) == {
        "TestOfTheSameName::test_of_many_cases": 60,
        "test_of_few_cases": 4,
        "test_of_many_cases": 60,
        "test_of_no_cases": 1,
        "test_of_the_marker": 60,
    }
    assert "185 passed, 60 deselected" in said


def test_a_sample_of_a_negative_number_is_refused(sampled):
    _, status, said = sampled("--most-cases", "-1")
    assert status == 4
    assert "expected 0 or more, got -1" in said
