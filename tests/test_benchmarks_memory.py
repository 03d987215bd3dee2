"""The benchmark of a frame's memory."""

import sys

import pytest

from benchmarks import cli
from benchmarks.model import cases, memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_one_frame():
    found = memory.measure_memory("eager", cases.Case("lite", (256, 256), "float32"))
    # At full size: the input and output of the first norm, 16 channels of float32.
    one = 16 * 256 * 256 * 4
    assert 2 * one <= found.of_frame <= 60 * one
    assert found.peak > found.before > 50 << 20


def test_a_frame_that_fails_says_why():
    error = memory.measure_memory("ours", cases.Case("no such style", (32, 32), "float32"))
    assert error.startswith("exit status 1: ValueError: name_or_path")


def test_memory_is_judged_by_what_the_frame_added():
    case = cases.Case("full", (3840, 2160), "float32")
    found = {
        "ours": memory.Memory(800 << 20, 300 << 20),
        "eager": memory.Memory(1800 << 20, 300 << 20),
        "eager-nhwc": memory.Memory(500 << 20, 300 << 20),
    }
    row = memory.judge(case, found, [])
    assert row.ratio("eager") == pytest.approx(3)
    assert (row.verdict, row.misses) == ("loss", ["eager-nhwc takes 0.40 of ours"])
    less = {name: found[name] for name in ("ours", "eager")}
    assert memory.judge(case, less, []).verdict == "win"
    alone = memory.judge(case, {"ours": found["ours"]}, ["eager: exit status 1"])
    assert (alone.verdict, alone.misses) == ("alone", ["eager: exit status 1"])
    assert memory.judge(case, {}, ["ours: exit status 1"]).verdict == "wrong"
    line = memory.MemorySuite(cli.parse(["model", "--memory"])).line(row)
    expected = "full 3840x2160 f32 800 1800 500 500 1500 200 3.00 0.40 loss"
    assert line.split() == expected.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--memory --rivals eager compile openvino",
            "--rivals: model-memory has eager, eager-nhwc, got compile, openvino",
        ),
        ("--layers --rivals eager", "--rivals: model-layers has none, got eager"),
    ],
)
def test_rivals_that_are_not_measured_are_refused(capsys, arguments, message):
    assert cli.main(["model", *arguments.split(), "--list"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"python -m benchmarks model: error: {message}\n"
    assert captured.out == ""


def test_all_rivals_are_measured_by_default():
    assert memory.MemorySuite(cli.parse(["model", "--memory"])).rivals == ["eager", "eager-nhwc"]
    assert memory.MemorySuite(cli.parse(["model", "--memory", "--rivals"])).rivals == []
