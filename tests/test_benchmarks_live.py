"""The benchmark of live pictures: what is measured, and what is a miss."""

import re
import statistics
import time
from dataclasses import replace

import pytest

from benchmarks import cli
from benchmarks.live import our_camera, our_video
from benchmarks.live.part import Part
from benchmarks.live.suite import Case, LiveSuite, Row
from benchmarks.model.cases import open_network
from benchmarks.timing import Summary
from stylekernels.serve.offer import PAGE

CASE = Case("webcam", "lite", (64, 64), "float32", 100)


def test_a_run_measures_the_pictures_shown():
    def paint(rgb):
        time.sleep(0.02)
        return 255 - rgb

    parts = our_camera.run(paint, (64, 48), 100, 60)
    assert len(parts) == 10
    assert 1 < statistics.median(part.fps for part in parts) < 60
    for part in parts:
        assert 0.02 <= part.latency < 2
        assert part.memory is None or part.memory > 50 << 20


def test_a_video_is_decoded_painted_and_encoded(tmp_path):
    painted = []

    def paint(rgb):
        painted.append(rgb.shape)
        time.sleep(0.02)
        return 255 - rgb

    clip = tmp_path / "clip.mp4"
    our_video.make_clip(clip, (64, 48), 20)
    assert 0.02 <= our_video.run(paint, clip) < 2
    assert painted == [(48, 64, 3)] * 20


def test_the_client_waits_as_the_page_does():
    pytest.importorskip("aiohttp")
    from benchmarks.live import our_server

    text = (PAGE / "engine.js").read_text()
    found = {name: float(value) for name, value in re.findall(r"const (\w+) = ([\d.]+);", text)}
    assert found["MARGIN_MS"] == our_server._MARGIN_MS
    assert found["STEP_MS"] == our_server._STEP_MS


def test_a_served_run_measures_the_pictures_that_come_back(tmp_path):
    pytest.importorskip("aiohttp")
    from benchmarks.live import our_server

    with our_server.serving(open_network("lite"), tmp_path, "cpu") as served:
        parts = served.run((64, 48), 100, 40)
    assert len(parts) == 10
    for part in parts:
        assert 0 < part.latency < 2
        assert part.fps > 1
        assert part.memory is None or part.memory > 50 << 20


def row(
    way="webcam",
    share=0.95,
    size=(640, 480),
    fps=(20, 20),
    latency=(0.06, 0.06),
    memory=(100, 101),
):
    parts = [Part(*values) for values in zip(fps, latency, memory, strict=True)]
    return Row(replace(CASE, way=way, size=size), Summary(share, share, share, 5), 20.0, parts)


@pytest.mark.parametrize(
    ("measured", "misses"),
    [
        (row(), []),
        (row(share=0.85), ["85% of the Stylizer's frames a second"]),
        (row(share=0.25, size=(64, 64)), []),
        (row(latency=(0.06, 0.2)), ["latency grew to 4.0 frames"]),
        (row(latency=(0.105, 0.105)), []),
        (row("serve", latency=(0.105, 0.105)), ["a latency of 2.1 frames"]),
        (row("serve", latency=(0.06, 0.095)), []),
        (row("video", latency=(None, None)), []),
        (row(latency=(0.06, 0.2), fps=(20, 5)), []),  # the machine was slower
        (row(memory=(100, 120)), ["memory grew 1.20 times"]),
        (row(memory=(None, None)), []),
    ],
)
def test_misses(measured, misses):
    assert measured.misses == misses
    assert measured.verdict == ("short" if misses else "win")


def test_cases_and_table(capsys):
    suite = LiveSuite.of(cli.parse(["live", "--quick", "--only", "webcam/lite"]))
    assert [case.pictures for case in suite.cases] == [25, 1000]
    assert not suite.complete
    line = suite.line(row())
    assert line.split() == [
        *("webcam", "lite", "640x480", "f32", "100", "19.0", "20.0", "95%", "60.0", "60.0"),
        *("0.00", "0.00", "win"),
    ]
    assert LiveSuite.of(cli.parse(["live"])).complete
    assert cli.main(["live", "--pictures", "3"]) == 2
    assert "--pictures: expected at least 20, got 3" in capsys.readouterr().err
