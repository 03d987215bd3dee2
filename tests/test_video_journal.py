"""Going on with a video after a crash."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")

from stylekernels.cli.main import main  # noqa: E402
from stylekernels.inference import Stylizer  # noqa: E402
from stylekernels.media.smoothing import SETTLED  # noqa: E402
from stylekernels.media.video_formats import VIDEO_FORMATS  # noqa: E402
from stylekernels.media.video_journal import Journal  # noqa: E402
from tests.clips import assert_near, make_clip, pictures, read_clip  # noqa: E402
from tests.pictures import complaints, written  # noqa: E402

COUNT = 300  # the encoder begins a group of pictures after 250 frames
# Paints negatives, and ends the process as `kill -9` does before frame 280.
KILLED = """
import os, signal, sys
from stylekernels.cli.main import main
from stylekernels.inference import Stylizer

count = 0
def paint(self, frame):
    global count
    count += 1
    if count == 280:
        os.kill(os.getpid(), signal.SIGKILL)
    return 255 - frame

Stylizer.__call__ = paint
main(sys.argv[1:])
"""


@pytest.fixture
def clip(folder):
    """in.mp4 in the working folder, with sound."""
    return make_clip(
        folder / "in.mp4", frames=pictures((64, 48), COUNT), tracks=1, rate=Fraction(30000, 1001)
    )


@pytest.fixture
def painted(monkeypatch):
    """A list that gets a frame for each call of the Stylizer, which inverts colours."""
    seen = []

    def paint(self, frame):
        seen.append(frame)
        return 255 - frame

    monkeypatch.setattr(Stylizer, "__call__", paint)
    return seen


def command(style, output, *options):
    return ["video", "in.mp4", output, "-s", style, *options]


def interrupt(monkeypatch, style, output, *options, after=20):
    """Run the verb, and press Ctrl-C after some frames."""
    count = 0

    def paint(self, frame):
        nonlocal count
        count += 1
        if count == after:
            os.kill(os.getpid(), signal.SIGINT)
        return 255 - frame

    with monkeypatch.context() as patch:
        patch.setattr(Stylizer, "__call__", paint)
        assert main(command(style, output, *options)) == 130


@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.ts", "out.webm"])
def test_a_killed_run_goes_on(clip, style, painted, output):
    assert main(command(style, "whole" + output)) == 0
    expected = read_clip("whole" + output)
    argv = [sys.executable, "-c", KILLED, *command(style, output)]
    killed = subprocess.run(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert killed.returncode == -signal.SIGKILL
    assert not Path(output).exists()
    del painted[:]
    assert main(command(style, output, "--resume")) == 0
    assert 0 < len(painted) <= COUNT - 128  # VP9 begins a group after 128 frames
    after = read_clip(output)
    assert after.times == expected.times
    assert (after.time_base, after.duration) == (expected.time_base, expected.duration)
    assert after.packets == expected.packets
    for now, then in zip(after.rgb, expected.rgb, strict=True):
        assert_near(now, then, 4)
    assert not Path(output + ".resume").exists()


def test_an_interrupted_run_goes_on_twice(clip, style, painted, monkeypatch, capsys):
    assert main(command(style, "whole.mp4")) == 0
    expected = read_clip("whole.mp4")
    interrupt(monkeypatch, style, "out.mp4")
    assert complaints(capsys)[-1].endswith("; the same command with --resume goes on")
    done = len(read_clip("out.mp4").frames)
    count = len(painted)

    def paint(self, frame):
        painted.append(frame)
        if len(painted) == count + 100:
            os.kill(os.getpid(), signal.SIGINT)
        return 255 - frame

    with monkeypatch.context() as patch:
        patch.setattr(Stylizer, "__call__", paint)
        assert main(command(style, "out.mp4", "--resume")) == 130
    more = len(read_clip("out.mp4").frames)
    assert done < 30 < done + 90 < more
    del painted[:]
    assert main(command(style, "out.mp4", "--resume")) == 0
    assert len(painted) == COUNT - more
    after = read_clip("out.mp4")
    assert after.times == expected.times
    assert after.packets == expected.packets
    for now, then in zip(after.rgb, expected.rgb, strict=True):
        assert_near(now, then, 4)
    assert written(clip.parent.absolute()) == {"in.mp4", "out.mp4", "whole.mp4"}


@pytest.mark.usefixtures("clip", "painted")
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_two_commands_do_not_write_one_video(style, capsys, options):
    other = Journal(Path("out.mp4.resume"), {"of": "another command"})
    assert main(command(style, "out.mp4", *options)) == 2
    assert complaints(capsys) == [
        "OUTPUT: out.mp4 is being painted by another command, or its folder is on a file system "
        "without locks; wait for the other's end, or choose another OUTPUT"
    ]
    other.close()
    assert main(command(style, "out.mp4")) == 0


@pytest.mark.usefixtures("clip", "painted")
def test_pictures_of_another_encoder_are_not_used(style, monkeypatch, capsys):
    interrupt(monkeypatch, style, "out.mp4")
    capsys.readouterr()
    monkeypatch.setitem(
        VIDEO_FORMATS, ".mp4", replace(VIDEO_FORMATS[".mp4"], options={"preset": "medium"})
    )
    assert main(command(style, "out.mp4", "--resume")) == 2
    (line,) = complaints(capsys)
    assert line.endswith(
        "frames that were painted by another version of stylekernels; remove that file to paint "
        "anew, without --resume"
    )


@pytest.mark.usefixtures("clip", "painted")
def test_what_does_not_fit_is_refused(style, monkeypatch, capsys):
    def complaint(*argv):
        assert main(list(argv)) == 2
        return complaints(capsys)[-1]

    assert complaint(*command(style, "out.mp4", "--resume")) == (
        "--resume: out.mp4.resume: no such file; leave --resume out to paint anew"
    )
    assert complaint(*command(style, "out.gif", "--resume")) == (
        "--resume: expected a video, got .gif, which is always painted anew"
    )
    journal, text = Path("out.mp4.resume"), "my own notes, long enough to be looked at" * 99
    journal.write_text(text)
    for options in ([], ["--resume"]):
        assert complaint(*command(style, "out.mp4", *options)).endswith(
            "pictures of the video are kept in that file while it is painted: move it away, or "
            "choose another OUTPUT"
        )
    assert journal.read_text() == text
    journal.write_text("")  # a process that was killed as it began
    interrupt(monkeypatch, style, "out.mp4", "--quality", "30")
    capsys.readouterr()
    kept = journal.read_bytes()

    def both(*options):
        """Return how the frames found differ, as said without --resume and with it."""
        said = [
            complaint(*command(style, "out.mp4", *options, *last)) for last in ((), ("--resume",))
        ]
        for line, argument in zip(said, ("OUTPUT", "--resume"), strict=True):
            assert line.startswith(f"{argument}: out.mp4.resume has ")
            assert "; remove that file to paint anew" in line.replace(", or", ";")
        (how,) = {line.partition(" were painted ")[2].partition(";")[0] for line in said}
        return how

    quality = ["--quality", "30"]
    assert both(*quality, "--strength", "0.5") == "with --strength 1.0"
    assert both(*quality, "--size", "32") == "without --size"
    assert both(*quality, "--preserve-colors") == "without --preserve-colors"
    assert both() == "with --quality 30"
    assert complaint(*command(style, "out.mp4", *quality)).endswith(
        "frames that were painted by this command before; add --resume to go on, or remove that "
        "file to paint anew"
    )
    os.utime(style, (1, 1))
    assert both(*quality) == "before the style's file changed"
    os.utime("in.mp4", (1, 1))
    assert both(*quality) == "before INPUT changed"
    Path("in.mp4").rename("film.mp4")
    Path("in.mp4").symlink_to("film.mp4")
    assert both(*quality) == f"from {Path('in.mp4').absolute()}, another file than INPUT"
    assert journal.read_bytes() == kept
    journal.unlink()
    assert main(command(style, "out.mp4", "--strength", "0.5")) == 0
    assert not journal.exists()


def test_the_input_is_not_taken_for_a_journal(clip, style, capsys):
    film = clip.rename("film.mp4.resume").read_bytes()
    assert main(["video", "film.mp4.resume", "film.mp4", "-s", style]) == 2
    assert complaints(capsys)[-1] == (
        "OUTPUT: film.mp4.resume: the result would replace this file, which is one of the inputs; "
        "choose another path"
    )
    assert Path("film.mp4.resume").read_bytes() == film


def test_another_style_under_the_same_name_is_noticed(clip, style, painted, monkeypatch, capsys):
    interrupt(monkeypatch, style, "out.mp4")
    before = Path(style).stat()
    Path(style).write_bytes(Path(style).read_bytes())  # as long, and with the same contents
    os.utime(style, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    del painted[:]
    assert main(command(style, "out.mp4", "--resume")) == 2
    assert "before the style's file changed" in complaints(capsys)[-1]
    assert not painted


def test_smoothing_goes_on_without_a_jump(folder, style, monkeypatch):
    """The style paints frames darker or lighter at random; the video itself hardly changes."""
    pytest.importorskip("cv2")
    levels = np.random.default_rng(0).integers(0, 2, 80) * 6 + 100
    make_clip(folder / "in.mp4", frames=[np.full((48, 64, 3), n, np.uint8) for n in levels])
    calls = []

    def paint(self, frame):
        calls.append(frame)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return np.full_like(frame, 180 if frame.mean() > 103 else 80)

    monkeypatch.setattr(Stylizer, "__call__", paint)
    stop = None
    assert main(command(style, "whole.mp4", "--smooth", "still")) == 0
    calls, stop = [], 40
    assert main(command(style, "out.mp4", "--smooth", "still")) == 130
    done = len(read_clip("out.mp4").frames)
    calls, stop = [], None
    assert main(command(style, "out.mp4", "--smooth", "still", "--resume")) == 0
    whole, after = (read_clip(name).rgb for name in ("whole.mp4", "out.mp4"))
    assert done > 30
    for now, then in zip(after, whole, strict=True):
        assert_near(now, then, 5)
    assert len(calls) == 80 - done + SETTLED


def packet(number, is_keyframe=False):
    made = av.Packet(bytes([number]) * 9)
    made.time_base, made.pts, made.dts = Fraction(1, 25), number, number - 2
    made.duration, made.is_keyframe = 1, is_keyframe
    return made


def test_groups_are_kept_whole(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {"style": "ink"})
    for number in range(7):
        journal.add(packet(number, number % 3 == 0))
    journal.close()
    with pytest.raises(FileExistsError):
        Journal(path, {"style": "udnie"})
    again = Journal(path)
    assert (again.settings, again.count) == ({"style": "ink"}, 6)
    found = list(again.packets(Fraction(1, 25)))
    assert [(p.pts, p.dts, p.duration, bytes(p)) for p in found] == [
        (n, n - 2, 1, bytes([n]) * 9) for n in range(6)
    ]
    assert [p.is_keyframe for p in found] == [True, False, False] * 2
    again.add(packet(6, True))
    again.end()
    again.close()
    again = Journal(path)
    assert again.count == 7
    again.finish()
    again.close()
    assert not path.exists()


def test_a_journal_of_nothing_is_deleted(tmp_path):
    journal = Journal(tmp_path / "journal", {})
    journal.add(packet(0, True))
    journal.close()
    assert not journal.path.exists()
