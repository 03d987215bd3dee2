"""The benchmark of live pictures: what is measured, and what is a miss."""

import statistics
import time
from dataclasses import replace

import pytest

from benchmarks import cli
from benchmarks.live.our_camera import Part, run
from benchmarks.live.suite import Case, LiveSuite, Row
from benchmarks.timing import Summary

CASE = Case("lite", (64, 64), "float32", 100)


def test_a_run_measures_the_pictures_shown():
    def paint(rgb):
        time.sleep(0.02)
        return 255 - rgb

    parts = run(paint, (64, 48), 100, 60)
    assert len(parts) == 10
    assert 1 < statistics.median(part.fps for part in parts) < 60
    for part in parts:
        assert 0.02 <= part.latency < 2
        assert part.memory is None or part.memory > 50 << 20


def row(share=0.95, size=(640, 480), fps=(20, 20), latency=(0.06, 0.06), memory=(100, 101)):
    parts = [Part(*values) for values in zip(fps, latency, memory, strict=True)]
    return Row(replace(CASE, size=size), Summary(share, share, share, 5), 20.0, parts)


@pytest.mark.parametrize(
    ("measured", "misses"),
    [
        (row(), []),
        (row(share=0.85), ["85% of the Stylizer's frames a second"]),
        (row(share=0.25, size=(64, 64)), []),
        (row(latency=(0.06, 0.2)), ["latency grew to 4.0 frames"]),
        (row(latency=(0.06, 0.2), fps=(20, 5)), []),  # the machine was slower
        (row(memory=(100, 120)), ["memory grew 1.20 times"]),
        (row(memory=(None, None)), []),
    ],
)
def test_misses(measured, misses):
    assert measured.misses == misses
    assert measured.verdict == ("short" if misses else "win")


def test_cases_and_table(capsys):
    suite = LiveSuite.of(cli.parse(["live", "--quick", "--only", "lite"]))
    assert [case.pictures for case in suite.cases] == [1000]
    assert not suite.complete
    line = suite.line(row())
    assert line.split() == [
        *("lite", "640x480", "f32", "100", "19.0", "20.0", "95%", "60.0", "60.0"),
        *("0.00", "0.00", "win"),
    ]
    assert LiveSuite.of(cli.parse(["live"])).complete
    assert cli.main(["live", "--pictures", "3"]) == 2
    assert "--pictures: expected at least 20, got 3" in capsys.readouterr().err
