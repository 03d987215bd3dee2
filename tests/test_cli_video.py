"""The command line's verb for videos."""

import io
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from stylekernels.cli.main import main  # noqa: E402
from stylekernels.inference import Stylizer, blend  # noqa: E402
from stylekernels.media.smoothing import Smoother  # noqa: E402
from stylekernels.media.video_sink import VideoSink  # noqa: E402
from stylekernels.signals import ENDING  # noqa: E402
from tests.clips import assert_near, make_clip, pictures, read_clip  # noqa: E402
from tests.pictures import complaints, written  # noqa: E402


@pytest.fixture
def clip(folder):
    """in.mp4 in the working folder, of 12 frames, with sound."""
    return make_clip(folder / "in.mp4", tracks=1)


@pytest.fixture
def quick(monkeypatch):
    """A Stylizer that inverts colours."""
    monkeypatch.setattr(Stylizer, "__call__", lambda self, frame, **options: 255 - frame)


@pytest.mark.parametrize(
    "options",
    [[], ["--strength", "0.4"], ["--preserve-colors"], ["--strength", "0.7", "--preserve-colors"]],
)
def test_frames_are_stylised(clip, style, generator, capsys, options):
    command = ["video", "in.mp4", "out.mp4", "-s", style, "--quality", "1", *options]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("out.mp4: 12 frames, ")
    assert said.err == ""
    assert written(clip.parent.absolute()) == {"in.mp4", "out.mp4"}
    before, after = read_clip(clip), read_clip("out.mp4")
    assert after.times == before.times
    assert after.packets == before.packets
    paint = Stylizer(generator)
    strength = float(options[1]) if "--strength" in options else 1
    for now, then in zip(after.rgb, before.rgb, strict=True):
        mixed = blend(
            then, paint(then), strength=strength, preserve_colors="--preserve-colors" in options
        )
        assert_near(now, mixed, 6)


def test_parts_sizes_and_every_nth_frame(clip, style, quick, capsys):
    command = [
        "video",
        "in.mp4",
        "out.mkv",
        "--size",
        "32",
        "--start",
        "0.08",
        "--duration",
        "0.32",
        "--every",
        "2",
        "-s",
    ]
    assert main([*command, style]) == 0
    before, after = read_clip(clip), read_clip("out.mkv")
    assert after.size == (32, 24)
    assert capsys.readouterr().out.startswith("out.mkv: 4 frames, ")
    seconds = [time - after.seconds[0] for time in after.seconds]
    assert [float(time) for time in seconds] == [0, 0.08, 0.16, 0.24]
    for now, then in zip(after.rgb, before.rgb[2:10:2], strict=True):
        assert_near(now[4:20, 4:28], 255 - then[9:40:2, 9:56:2], 12)


@pytest.mark.parametrize("smooth", ["still", "motion"])
def test_smoothing_comes_before_strength_and_colors(clip, style, generator, smooth):
    pytest.importorskip("cv2")
    options = ["--quality", "1", "--smooth", smooth, "--strength", "0.6"]
    assert main(["video", "in.mp4", "out.mp4", "-s", style, *options]) == 0
    paint = Smoother(Stylizer(generator), smooth)
    for now, then in zip(read_clip("out.mp4").rgb, read_clip(clip).rgb, strict=True):
        assert_near(now, blend(then, paint(then), strength=0.6), 6)


def test_smoothing_without_opencv_says_what_to_install(clip, style, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["video", "in.mp4", "out.mp4", "-s", style, "--smooth", "still"]) == 2
    assert complaints(capsys) == [
        "video: needs OpenCV, which is not installed; pip install stylekernels[video]"
    ]
    assert written(clip.parent.absolute()) == {"in.mp4"}


@pytest.mark.usefixtures("quick")
def test_what_is_left_out_is_one_line(clip, style, capsys):
    make_clip("two.mp4", tracks=2)
    assert main(["video", "two.mp4", "out.gif", "-s", style]) == 0
    assert complaints(capsys) == [
        "out.gif: left out: audio stream 1, audio stream 2; beside the pictures there are only the "
        "sound, subtitles and chapters that .gif can hold"
    ]
    make_clip("three.mp4", chapters=("one", "two"))  # their titles are in a stream of data
    assert main(["video", "three.mp4", "out.ts", "-s", style]) == 0
    assert complaints(capsys) == [
        "out.ts: left out: chapters; beside the pictures there are only the sound, subtitles and "
        "chapters that .ts can hold"
    ]
    assert main(["video", "three.mp4", "out.mkv", "-s", style]) == 0
    assert complaints(capsys) == []


@pytest.mark.usefixtures("quick", "clip")
def test_a_terminal_shows_frames_a_second_and_the_time_left(style, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["video", "in.mp4", "out.mp4", "-s", style]) == 0
    assert re.search(r"0%\|.*\| 0/12, \? frames/s \[00:00<\?\]", terminal.getvalue())


@pytest.mark.usefixtures("quick")
def test_odd_sizes_say_what_players_may_lack(folder, style, capsys):
    make_clip("odd.webm", size=(35, 27), codec="libvpx-vp9")
    assert main(["video", "odd.webm", "out.mp4", "-s", style]) == 0
    assert complaints(capsys) == [
        "out.mp4: 35x27 pixels are stored as 4:4:4, which not all players know; with --size sides "
        "become even"
    ]
    assert main(["video", "odd.webm", "out.webm", "-s", style]) == 0
    assert complaints(capsys) == []


@pytest.mark.usefixtures("quick")
def test_a_truncated_video(clip, style, capsys):
    path = make_clip(Path("long.mkv"), frames=pictures((64, 48), 50), options={"g": "10"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert main(["video", "long.mkv", "out.mp4", "-s", style]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("long.mkv: cut short or damaged: ended after ")
    assert line.endswith(" of 2.00 s; what could be read was painted")
    assert 10 < len(read_clip("out.mp4").frames) < 40


# ---- interrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif"])
def test_an_interrupted_video_can_be_played(folder, style, capsys, monkeypatch, number, suffix):
    make_clip("in.mp4", frames=pictures((64, 48), 40), tracks=1)
    count = 0

    def paint(self, frame):
        nonlocal count
        count += 1
        if count == 8:
            os.kill(os.getpid(), number)
        return frame

    monkeypatch.setattr(Stylizer, "__call__", paint)
    output = f"out.{suffix}"
    assert main(["video", "in.mp4", output, "-s", style]) == 130
    line = complaints(capsys)[-1]
    again = "" if suffix == "gif" else "; the same command with --resume goes on"
    assert line in [
        f"interrupted after {frames} of 40 frames, which are in {output}{again}"
        for frames in (7, 8)
    ]
    assert written(folder) == {"in.mp4", output} | ({f"{output}.resume"} if again else set())
    after = read_clip(output)
    assert len(after.frames) == int(line.split()[2])
    for now, then in zip(after.rgb, read_clip("in.mp4").rgb, strict=False):
        assert_near(now, then, 8)
    assert after.packets or suffix == "gif"


def test_interrupted_before_the_first_frame(clip, style, capsys, monkeypatch):
    def paint(self, frame):
        os.kill(os.getpid(), signal.SIGINT)
        return frame

    monkeypatch.setattr(Stylizer, "__call__", paint)
    clip.with_name("out.mp4").write_text("an older one")
    assert main(["video", "in.mp4", "out.mp4", "-s", style]) == 130
    assert complaints(capsys) == ["interrupted"]
    assert written(clip.parent.absolute()) == {"in.mp4", "out.mp4"}
    assert clip.with_name("out.mp4").read_text() == "an older one"


# ---- refused ------------------------------------------------------------------------------------


REFUSED = {
    "video gone.mp4 out.mp4": "INPUT: gone.mp4: no such file",
    "video in.mp4 in.mp4": "OUTPUT: in.mp4: the result would replace this file, which is one of "
    "the inputs; choose another path",
    "video in.mp4 link.mp4": "OUTPUT: link.mp4: the result would replace this file, which is one "
    "of the inputs; choose another path",
    "video in.mp4 out.xyz": "OUTPUT: out.xyz: expected a file name that ends in one of .mp4 .m4v "
    ".mov .mkv .ts .webm .gif, got .xyz",
    "video in.mp4 in.mp4/out.mp4": "OUTPUT: in.mp4: this cannot be a folder, because in.mp4 is a "
    "file",
    "video in.mp4 out.mp4 --size 8": "--size: expected at least 16 pixels, got 8",
    "video in.mp4 out.mp4 --strength 2": "--strength: expected a number from 0 to 1, got 2.0",
    "video in.mp4 out.mp4 --start -1": "--start: expected 0 seconds or more, got -1.0",
    "video in.mp4 out.mp4 --start 9": "INPUT: in.mp4: no picture 9 s after its beginning; it is "
    "0.48 s long",
    "video in.mp4 out.mp4 --duration 0": "--duration: expected more than 0 seconds, got 0.0",
    "video in.mp4 out.mp4 --every 0": "--every: expected at least 1, got 0",
    "video in.mp4 out.mp4 --quality 52": "--quality: expected a number from 0 to 51, got 52",
    "video in.mp4 out.gif --quality 5": "--quality: expected none for .gif, got 5",
    "video in.mp4 out.mp4 --device abacus": "--device: expected cpu or cuda, got 'abacus'",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line(clip, style, capsys, command):
    os.link("in.mp4", "link.mp4")
    before = clip.read_bytes()
    assert main([*command.split(), "-s", style]) == 2
    assert complaints(capsys) == [REFUSED[command]]
    assert written(clip.parent.absolute()) == {"in.mp4", "link.mp4"}
    assert clip.read_bytes() == before


def test_an_unknown_style(clip, capsys):
    assert main(["video", "in.mp4", "out.mp4", "-s", "gone.safetensors"]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--style: ")


@pytest.mark.usefixtures("quick")
def test_a_full_disk(clip, style, capsys, monkeypatch):
    def encode(self, frame):
        raise av.error.FFmpegError(28, "No space left on device")

    monkeypatch.setattr(VideoSink, "_encode", encode)
    clip.with_name("out.mp4").write_text("an older one")
    assert main(["video", "in.mp4", "out.mp4", "-s", style]) == 2
    assert complaints(capsys) == ["OUTPUT: out.mp4: cannot be written: No space left on device"]
    assert written(clip.parent.absolute()) == {"in.mp4", "out.mp4"}
    assert clip.with_name("out.mp4").read_text() == "an older one"


def test_too_little_memory(clip, style, capsys, monkeypatch):
    def fail(self, frame):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate a lot")

    monkeypatch.setattr(Stylizer, "__call__", fail)
    assert main(["video", "in.mp4", "out.mp4", "-s", style]) == 2
    assert complaints(capsys) == [
        "INPUT: in.mp4: frames of 64x48 pixels need more memory than there is; scale down with "
        "--size"
    ]
    assert written(clip.parent.absolute()) == {"in.mp4"}


def test_without_pyav_it_says_what_to_install(clip, style, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["video", "in.mp4", "out.mp4", "-s", style]) == 2
    assert complaints(capsys) == [
        "video: needs PyAV, which is not installed; pip install stylekernels[video]"
    ]


def test_frames_of_the_tests_differ():
    """Otherwise a lost or repeated frame would not be seen."""
    first, second, *_ = pictures((64, 48), 3)
    assert np.abs(first.astype(int) - second).mean() > 1
