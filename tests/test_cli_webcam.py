"""The command line's verb for a camera: what the window shows, its keys, and refusals."""

import io
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from stylekernels.cli import live_view
from stylekernels.cli.main import main
from stylekernels.inference import Stylizer
from stylekernels.media import camera_devices, looped_video, opencv, virtual_camera, window
from stylekernels.media.camera import CameraError, CameraSource
from stylekernels.media.camera_devices import CameraDevice
from stylekernels.media.frames import Frame
from stylekernels.media.pattern import PatternSource
from tests.pictures import complaints, load, written

PATTERN = ["webcam", "--camera", "pattern", "--size", "640x480"]


class FakeWindow:
    """A window whose user presses keys, a number of pictures after one another, and then closes it,
    at once or 200 pictures later. It keeps what it showed."""

    keys: tuple[str, ...] = ()
    pictures = 3
    closes_at_once = True

    def __init__(self, title):
        FakeWindow.last = self
        self.shown, self.pressed, self.switched, self.closed = [], list(self.keys), 0, False
        self._waiting = self.pictures

    def show(self, rgb):
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous
        self.shown.append(rgb)
        self._waiting -= 1

    def key(self):
        if self._waiting > 0 or not self.pressed:
            return ""
        self._waiting = self.pictures
        return self.pressed.pop(0)

    @property
    def is_open(self):
        if not self.closes_at_once and len(self.shown) < 200:
            return True
        return bool(self.pressed) or self._waiting > 0

    def toggle_full_screen(self):
        self.switched += 1

    def close(self):
        self.closed = True


@pytest.fixture
def screen(folder, monkeypatch):
    """Windows are fake; styles invert colours. Pictures are those of the pattern."""
    monkeypatch.setattr(window, "Window", FakeWindow)
    monkeypatch.setattr(FakeWindow, "keys", ())
    monkeypatch.setattr(Stylizer, "__call__", lambda self, frame, **options: 255 - frame)
    return FakeWindow


@pytest.fixture
def overlays(monkeypatch):
    """What was written over each picture. The pictures stay without it."""
    seen = []
    monkeypatch.setattr(live_view, "draw_overlay", lambda rgb, overlay: seen.append(overlay))
    return seen


@pytest.fixture
def still(monkeypatch):
    """The pattern does not move: every frame is this one."""
    (frame,) = [next(iter(PatternSource((640, 480))))]
    first = frame.rgb

    def frames(self):
        while not self._closed.wait(0.002):
            yield Frame(first, frame.time, frame.duration)

    monkeypatch.setattr(PatternSource, "__iter__", frames)
    return first


def press(screen, monkeypatch, *keys, options=(), style="wave", code=0):
    """Run the command while a user presses keys; return the window."""
    monkeypatch.setattr(screen, "keys", keys)
    assert main([*PATTERN, "-s", style, *options]) == code
    return screen.last


def test_a_mirror_of_the_camera_until_q(screen, overlays, still, style, monkeypatch, capsys):
    shown = press(screen, monkeypatch, "q", style=style)
    np.testing.assert_array_equal(shown.shown[-1], 255 - still[:, ::-1])
    assert shown.closed
    assert capsys.readouterr() == ("", "")
    assert overlays[-1].left == "brush"
    assert re.fullmatch(r"[\d.]+ fps, latency \d+ ms", overlays[-1].right)
    assert overlays[-1].notice == "h shows the keys"


@pytest.mark.parametrize("key", ["\x1b", "q", "Q"])
def test_keys_that_quit(screen, overlays, still, style, monkeypatch, key):
    monkeypatch.setattr(screen, "closes_at_once", False)
    assert len(press(screen, monkeypatch, key, style=style).shown) < 100


def test_closing_the_window_quits(screen, overlays, still, style, monkeypatch):
    """The last key does nothing."""
    assert len(press(screen, monkeypatch, "x", style=style).shown) < 100


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("m", lambda rgb: 255 - rgb),
        ("mm", lambda rgb: 255 - rgb[:, ::-1]),
        ("-----", lambda rgb: np.full_like(rgb, 127.5)),
        ("----------", lambda rgb: rgb[:, ::-1]),
        ("-+=", lambda rgb: 255 - rgb[:, ::-1]),
        ("M", lambda rgb: 255 - rgb),
    ],
)
def test_keys_change_the_picture(screen, overlays, still, style, monkeypatch, keys, expected):
    shown = press(screen, monkeypatch, *keys, "x", "q", style=style).shown[-1]
    assert np.abs(shown - expected(still.astype(float))).max() <= 1


def test_colours_of_the_camera(screen, overlays, still, style, monkeypatch):
    shown = press(screen, monkeypatch, "c", "x", "q", style=style).shown[-1].astype(float)
    photo = still[:, ::-1].astype(float)
    luma = [0.299, 0.587, 0.114]
    assert np.abs(shown @ luma - (255 - photo) @ luma).max() < 2
    assert overlays[-1].left == "brush, camera's colours"
    press(screen, monkeypatch, "c", "-", "c", "q", style=style)
    assert overlays[-1].left == "brush, 90%"


def test_options_are_the_first_look(screen, overlays, still, style, monkeypatch):
    options = ["--strength", "0.4", "--preserve-colors", "--no-mirror"]
    press(screen, monkeypatch, "q", style=style, options=options)
    assert overlays[-1].left == "brush, 40%, camera's colours"
    shown = press(screen, monkeypatch, "q", style=style, options=["--no-mirror"]).shown[-1]
    np.testing.assert_array_equal(shown, 255 - still)


def test_help_and_full_screen(screen, overlays, still, style, monkeypatch):
    shown = press(screen, monkeypatch, "h", "f", "h", "q", style=style)
    helped = [bool(overlay.keys) for overlay in overlays]
    assert not helped[0]
    assert not helped[-1]
    assert any(helped)
    assert shown.switched == 1
    mentioned = " ".join(keys for keys, _ in live_view.KEYS).split()
    assert {*mentioned} == {*"npcmfsrhq+-", "Esc"}


def test_the_next_and_the_previous_style(screen, overlays, style, monkeypatch):
    """The style from a file comes before the bundled ones."""
    from stylekernels.models.styles import bundled_styles

    monkeypatch.setattr(screen, "pictures", 30)
    press(screen, monkeypatch, "n", "p", "p", "q", style=style)
    names = [overlay.left for overlay in overlays]
    first, last = (bundled_styles()[place].replace("_", " ") for place in (0, -1))
    assert names[0] == "brush"
    assert f"brush, opening {first}" in names
    assert any(name.endswith(f"opening {last}") for name in names)


def test_a_screenshot_and_a_recording(screen, overlays, still, style, monkeypatch, capsys):
    pytest.importorskip("av")
    from tests.clips import assert_near, read_clip

    monkeypatch.setattr(screen, "pictures", 12)
    press(screen, monkeypatch, "r", "s", "s", "r", "r", "q", style=style)
    saved = capsys.readouterr().out.split()
    videos = sorted(name for name in saved if name.endswith(".mp4"))
    screenshots = [name for name in saved if name.endswith(".png")]
    assert len(videos) == len(screenshots) == 2
    assert all(re.fullmatch(r"stylekernels-\d{8}-\d{6}(-\d)?\.\w+", name) for name in saved)
    for name in screenshots:  # not mirrored, and without text
        np.testing.assert_array_equal(load(name), 255 - still)
    video = read_clip(videos[0])
    assert video.size == (640, 480)
    assert len(video.frames) >= 2
    assert video.seconds[0] == 0
    assert_near(video.rgb[-1], 255 - still, 6)
    assert any(re.fullmatch(r"0:0\d", overlay.recording) for overlay in overlays)
    assert not overlays[-1].recording or overlays[-1].recording == "0:00"
    assert any(overlay.notice == f"saved {screenshots[0]}" for overlay in overlays)


def test_a_recording_without_pictures_is_not_said_to_be_saved(
    screen, overlays, style, monkeypatch, capsys, folder
):
    pytest.importorskip("av")

    def nothing(self):
        self._closed.wait()
        yield from ()

    monkeypatch.setattr(PatternSource, "__iter__", nothing)
    press(screen, monkeypatch, "r", "r", "x", "r", "q", style=style)
    assert "no recording: no picture came" in {overlay.notice for overlay in overlays}
    assert capsys.readouterr().out == ""
    assert not [*folder.glob("*.mp4")]


def test_two_recordings_of_a_second_are_two_files(folder):
    first = live_view._new_file(".mp4")
    names = {first}
    for _ in range(9):
        names.add(live_view._new_file(".mp4", names))
    assert len(names) == 10


def test_a_recording_keeps_the_times_of_its_pictures(tmp_path):
    pytest.importorskip("av")
    from fractions import Fraction

    from stylekernels.media.recording import record
    from tests.clips import pictures, read_clip

    times = [Fraction(number, 1000) for number in (7000, 7040, 7300, 7333, 8000)]
    frames = [
        Frame(rgb, time, Fraction(1, 30))
        for rgb, time in zip(pictures((64, 48), 5), times, strict=True)
    ]
    record(iter(frames), tmp_path / "a.mp4")
    assert read_clip(tmp_path / "a.mp4").seconds == [time - 7 for time in times]
    record(iter([]), tmp_path / "b.mp4")
    assert written(tmp_path) == {"a.mp4"}


def test_what_cannot_be_written_is_said_in_the_window(
    screen, overlays, still, style, monkeypatch, folder
):
    (folder / "file").touch()
    monkeypatch.setattr(live_view, "_new_file", lambda suffix, *_: folder / "file" / f"a{suffix}")
    press(screen, monkeypatch, "s", "r", "x", "x", "q", style=style)
    notices = {overlay.notice for overlay in overlays}
    assert any(notice.startswith("no screenshot: ") for notice in notices)
    assert any(notice.startswith("no recording: ") for notice in notices)


def test_small_pictures_are_enlarged_for_the_text(screen, overlays, style, monkeypatch):
    shown = press(screen, monkeypatch, "q", style=style, options=["--size", "160x120"])
    assert shown.shown[-1].shape == (480, 640, 3)


def test_a_camera_that_fails_and_comes_back(screen, overlays, style, monkeypatch, capsys):
    pytest.importorskip("cv2")
    tries = []

    def open_camera(index, size):
        tries.append(index)
        if len(tries) < 3:
            raise CameraError(f"camera {index}: there is no /dev/video{index}")
        return SimpleNamespace(
            read=lambda: time.sleep(0.01) or np.zeros((120, 160, 3), np.uint8), close=lambda: None
        )

    def camera(index, size):
        return CameraSource(index, size, open_camera=open_camera, waits=(0.3,))

    monkeypatch.setattr("stylekernels.media.camera.CameraSource", camera)
    monkeypatch.setattr(screen, "keys", ["x"] * 10 + ["q"])
    assert main(["webcam", "--camera", "/dev/video5", "-s", style]) == 0
    assert tries == [5, 5, 5]
    problem = "camera 5: there is no /dev/video5"
    assert complaints(capsys) == [f"{problem}; trying again", "the camera is back"]
    failing = [o for o in overlays if o.notice == f"{problem}; trying again"]
    assert failing
    assert {overlay.right for overlay in failing} == {""}
    assert overlays[-1].notice != f"{problem}; trying again"


def test_a_window_opens_before_a_video(screen, style, monkeypatch):
    """The other way round Qt hangs: see `Webcam._open_window`."""
    pytest.importorskip("av")
    order = []
    init = FakeWindow.__init__
    monkeypatch.setattr(FakeWindow, "__init__", lambda *a: (order.append("window"), init(*a))[1])

    class Looped(PatternSource):
        def __init__(self, path, size):
            order.append("video")
            super().__init__((64, 48))

    monkeypatch.setattr(looped_video, "LoopedVideo", Looped)
    monkeypatch.setattr(screen, "keys", ["q"])
    assert main(["webcam", "--camera", style, "-s", style]) == 0
    assert order == ["window", "video"]


def test_too_little_memory(screen, style, monkeypatch, capsys):
    def fail(self, frame):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate a lot")

    monkeypatch.setattr(Stylizer, "__call__", fail)
    press(screen, monkeypatch, "q", style=style, code=2)
    assert complaints(capsys) == [
        "--size: these pictures need more memory than there is; choose a smaller size"
    ]


# ---- without a window ---------------------------------------------------------------------------


@pytest.fixture
def virtual(monkeypatch):
    """A virtual camera that interrupts the program after ten pictures."""
    sent = []

    class Camera:
        def __init__(self, width, height, fps, device):
            self.about, self.device = (width, height, fps), device
            sent.append(self.about)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            sent.append("closed")

        def send(self, picture):
            sent.append(picture)

        def sleep_until_next_frame(self):
            time.sleep(0.01)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Camera))
    monkeypatch.setattr(
        virtual_camera, "list_cameras", lambda: [CameraDevice(4, "loopback", virtual=True)]
    )
    return sent


def test_a_virtual_camera_without_a_window(virtual, still, style, monkeypatch, capsys, folder):
    monkeypatch.setattr(Stylizer, "__call__", lambda self, frame, **options: 255 - frame)
    pictures = [0]

    def frames(self):
        while len(virtual) < 12:
            yield Frame(still, 0, 0)
            time.sleep(0.005)
            pictures[0] += 1

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(PatternSource, "__iter__", frames)
    options = ["--no-window", "--virtual-camera"]
    assert main([*PATTERN, "-s", style, *options]) == 0
    assert virtual[0] == (1280, 720, 30)
    assert virtual[-1] == "closed"
    sent = virtual[1]
    assert sent.shape == (720, 1280, 3)
    assert (sent[:, :150] == 0).all()  # bars: 640x480 is 960x720
    middle = sent[360, 640].astype(int)
    assert np.abs(middle - (255 - still[240, 320].astype(int))).max() < 8  # not mirrored
    assert capsys.readouterr().out == "virtual camera: /dev/video4, 1280x720\n"
    assert re.search(r"brush  [\d.]+ fps, latency \d+ ms  Ctrl-C quits", terminal.getvalue())


def test_the_camera_that_is_read_is_not_written(virtual, screen, style, capsys):
    pytest.importorskip("cv2")
    assert main(["webcam", "--camera", "4", "--virtual-camera", "-s", style]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--virtual-camera: no virtual camera was found; install v4l2loopback")


# ---- lists and refusals -------------------------------------------------------------------------


def test_the_list_of_cameras(monkeypatch, capsys):
    found = [CameraDevice(0, "HD Webcam"), CameraDevice(10, "stylekernels", virtual=True)]
    monkeypatch.setattr(camera_devices, "list_cameras", lambda: found)
    assert main(["webcam", "--list"]) == 0
    assert capsys.readouterr().out == "0  HD Webcam\n10  stylekernels  (virtual)\n"
    found.clear()
    assert main(["webcam", "--list"]) == 0
    assert complaints(capsys) == ["no camera was found; --camera pattern needs none"]


REFUSED = {
    "--strength 2": "--strength: expected a number from 0 to 1, got 2.0",
    "--max-cpu 0": "--max-cpu: expected more than 0 and at most 1, got 0.0",
    "--max-cpu 1.5": "--max-cpu: expected more than 0 and at most 1, got 1.5",
    "--fps 0": "--fps: expected more than 0 pictures a second, got 0.0",
    "--virtual-fps -1": "--virtual-fps: expected more than 0 pictures a second, got -1.0",
    "--size 640": "--size: expected WIDTHxHEIGHT such as 640x480, got '640'",
    "--size 8x8": "--size: expected even numbers of at least 16 pixels, got 8x8",
    "--size 641x480": "--size: expected even numbers of at least 16 pixels, got 641x480",
    "--virtual-size big": "--virtual-size: expected WIDTHxHEIGHT such as 640x480, got 'big'",
    "--no-window": "--no-window: expected --virtual-camera with it; nothing shows pictures",
    "--camera front": "--camera: expected a number from `stylekernels webcam --list`, /dev/videoN, "
    "a video file or `pattern`, got 'front'",
    "--camera notes.txt": "--camera: notes.txt: expected a video, got text",
    "--device abacus": "--device: expected cpu or cuda, got 'abacus'",
}


@pytest.mark.parametrize("options", REFUSED)
def test_refused_in_one_line(screen, style, capsys, folder, options):
    pytest.importorskip("av")
    (folder / "notes.txt").write_text("Dear diary\n" * 99)
    assert main([*PATTERN[:1], "--camera", "pattern", "-s", style, *options.split()]) == 2
    assert complaints(capsys) == [REFUSED[options]]


def test_an_unknown_style(screen, capsys):
    assert main([*PATTERN, "-s", "gone.safetensors"]) == 2
    (line,) = complaints(capsys)
    assert line.startswith("--style: ")


def test_libraries_that_are_missing(monkeypatch, style, screen, capsys):
    opencv.opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["webcam", "-s", style]) == 2
    assert complaints(capsys) == [
        "webcam: OpenCV is not installed; pip install stylekernels[webcam]"
    ]
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    assert main([*PATTERN, "-s", style, "--virtual-camera"]) == 2
    assert complaints(capsys) == [
        "--virtual-camera: needs pyvirtualcam, which is not installed; "
        "pip install stylekernels[virtual-camera]"
    ]
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["webcam", "--camera", style, "-s", style]) == 2
    assert complaints(capsys) == [
        "--camera: a video file needs PyAV, which is not installed; "
        "pip install stylekernels[webcam]"
    ]
    opencv.opencv.cache_clear()
