"""Sources and sinks of live pictures: the pattern, looped files, cameras, virtual cameras."""

import itertools
import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from stylekernels.media import camera as cameras
from stylekernels.media import camera_devices, virtual_camera
from stylekernels.media.camera import CameraError, CameraSource
from stylekernels.media.camera_devices import CameraDevice
from stylekernels.media.fitting import fill, letterbox
from stylekernels.media.frames import Frame
from stylekernels.media.live import LiveSink
from stylekernels.media.pattern import PatternSource
from stylekernels.media.virtual_camera import VirtualCamera, VirtualCameraError


def until(condition, seconds=20.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def take(source, count):
    """Return the first frames of a source, and close it."""
    found = []
    for frame in source:
        found.append(frame)
        if len(found) == count:
            source.close()
    return found


# ---- sizes --------------------------------------------------------------------------------------


def test_pictures_are_scaled_without_distortion():
    """A white square stays one."""
    rgb = np.zeros((60, 120, 3), np.uint8)
    rgb[20:40, 50:70] = 255
    for fitted, side in ((fill(rgb, (80, 60)), 20), (letterbox(rgb, (80, 60)), 13.3)):
        assert fitted.shape == (60, 80, 3)
        white = fitted[..., 0] > 127
        assert abs(white.any(0).sum() - side) <= 1
        assert abs(white.any(1).sum() - side) <= 1
    bright = np.full((60, 120, 3), 200, np.uint8)
    assert (fill(bright, (80, 60)) == 200).all()
    assert (letterbox(bright, (80, 60))[[0, -1]] == 0).all()
    assert fill(bright, (120, 60)) is bright


# ---- the pattern and files ----------------------------------------------------------------------


def test_the_pattern_moves_at_its_rate():
    began = time.monotonic()
    frames = take(PatternSource((320, 48), rate=50), 15)
    assert time.monotonic() - began >= 14 / 50
    for before, after in itertools.pairwise(frames):
        assert (after.time - before.time) % Fraction(1, 50) == 0
        assert after.time > before.time
        assert np.abs(after.rgb.astype(int) - before.rgb).mean() > 0.05
    assert frames[0].rgb.shape == (48, 320, 3)
    assert frames[0].rgb.std() > 20


def test_the_pattern_leaves_out_what_nobody_took():
    source = iter(PatternSource((64, 48), rate=100))
    next(source)
    time.sleep(0.1)
    assert next(source).time >= Fraction(9, 100)


def test_a_video_is_repeated_at_its_own_rate(tmp_path):
    pytest.importorskip("av")
    from stylekernels.media.looped_video import LoopedVideo
    from tests.clips import make_clip, read_clip

    path = make_clip(tmp_path / "in.mp4", rate=50, tracks=1)
    began = time.monotonic()
    frames = take(LoopedVideo(path), 30)
    assert time.monotonic() - began >= 29 / 50
    assert [frame.time for frame in frames] == [Fraction(number, 50) for number in range(30)]
    rgb = read_clip(path).rgb
    for number, frame in enumerate(frames):
        assert np.abs(frame.rgb.astype(int) - rgb[number % 12]).mean() < 4
    assert take(LoopedVideo(path, (32, 32)), 1)[0].rgb.shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["pattern", "video", "camera"])
def test_a_source_that_waits_can_be_closed(tmp_path, kind):
    if kind == "pattern":
        source = PatternSource((64, 48), rate=0.001)
    elif kind == "camera":
        source = CameraSource(0, (8, 8), open_camera=Fakes(CameraError("gone")), waits=(1000,))
    else:
        pytest.importorskip("av")
        from stylekernels.media.looped_video import LoopedVideo
        from tests.clips import make_clip

        source = LoopedVideo(make_clip(tmp_path / "in.mkv", times=[0, 10**6], rate=1))
    reader = threading.Thread(target=lambda: [*source], daemon=True)
    reader.start()
    time.sleep(0.1)
    source.close()
    reader.join(20)
    assert not reader.is_alive()


# ---- cameras ------------------------------------------------------------------------------------


class Fakes:
    """Opens fake cameras, one after the other: each an error, or a number of pictures until it is
    unplugged. The last one is repeated."""

    def __init__(self, *cameras):
        self.cameras, self.opened, self.closed = list(cameras), [], 0

    def __call__(self, index, size):
        self.opened.append((index, size, time.monotonic()))
        camera = self.cameras[min(len(self.opened), len(self.cameras)) - 1]
        if isinstance(camera, Exception):
            raise camera
        pictures = [np.full((6, 8, 3), number, np.uint8) for number in range(camera)]

        def close():
            self.closed += 1

        return SimpleNamespace(
            read=lambda: pictures.pop(0) if pictures else None,
            close=close,
        )


def test_a_camera_comes_back():
    missing = CameraError("camera 0: there is no /dev/video0")
    fakes = Fakes(missing, missing, 3, CameraError("camera 0: busy"), 2, 4)
    source = CameraSource(0, (8, 6), open_camera=fakes, waits=(0.001,))
    values = []
    for frame in source:
        assert source.problem is None
        values.append(int(frame.rgb[0, 0, 0]))
        if len(values) == 9:
            source.close()
    assert values == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert fakes.closed == 3
    assert len(fakes.opened) == 6
    assert {entry[:2] for entry in fakes.opened} == {(0, (8, 6))}


def test_the_problem_is_named_in_one_line():
    fakes = Fakes(1, CameraError("camera 3: gone"))
    source = CameraSource(3, (8, 6), open_camera=fakes, waits=(9,))
    reader = threading.Thread(target=lambda: [*source], daemon=True)
    reader.start()
    until(lambda: source.problem is not None)
    assert source.problem == (
        "camera 3: it gives no pictures any more; was it unplugged, or is another program using it?"
    )
    source.close()
    reader.join(20)


def test_waits_grow_until_there_is_a_picture():
    gone = CameraError("gone")
    # Of those that open, the second gives no picture: its wait is not the first again.
    fakes = Fakes(gone, gone, 0, gone, 1, gone, gone)
    source = CameraSource(0, (8, 6), open_camera=fakes, waits=(0.05, 0.2, 0.4))
    reader = threading.Thread(target=lambda: [*source], daemon=True)
    reader.start()
    until(lambda: len(fakes.opened) >= 7)
    source.close()
    reader.join(20)
    waits = np.diff([at for *_, at in fakes.opened])[:6]
    least = [0.05, 0.2, 0.4, 0.4, 0.05, 0.2]
    assert (waits >= np.array(least) - 0.005).all(), waits
    assert waits[4] < waits[3]


def test_pictures_get_the_size_that_was_asked_for():
    source = CameraSource(0, (4, 4), open_camera=Fakes(1), waits=(9,))
    (frame,) = take(source, 1)
    assert frame.rgb.shape == (4, 4, 3)


def test_the_first_camera_is_no_virtual_one(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    found = [CameraDevice(0, "loopback", True), CameraDevice(2, "C920")]
    monkeypatch.setattr(cameras, "list_cameras", lambda: found)
    fakes = Fakes(1)
    take(CameraSource(None, (8, 6), open_camera=fakes), 1)
    assert fakes.opened[0][0] == 2
    found.pop()
    with pytest.raises(CameraError, match="no camera was found"):
        cameras.first_camera()


def test_linux_names_its_cameras(tmp_path):
    devices = {
        "video0": ("pci0000:00/usb1", "0", "HD Webcam"),
        "video1": ("pci0000:00/usb1", "1", "HD Webcam"),  # its metadata
        "video10": ("virtual", "0", "stylekernels"),
        "video2": ("pci0000:00/usb2", "0", "C920"),
        "v4l-subdev0": ("pci0000:00/usb2", "0", "sensor"),
    }
    sysfs = tmp_path / "class"
    sysfs.mkdir()
    for device, (bus, index, name) in devices.items():
        folder = tmp_path / "devices" / bus / "video4linux" / device
        folder.mkdir(parents=True)
        (folder / "index").write_text(f"{index}\n")
        (folder / "name").write_text(f"{name}\n")
        (sysfs / device).symlink_to(folder)
    assert camera_devices._linux_cameras(sysfs) == [
        CameraDevice(0, "HD Webcam"),
        CameraDevice(2, "C920"),
        CameraDevice(10, "stylekernels", virtual=True),
    ]
    assert camera_devices._linux_cameras(tmp_path / "gone") == []


@pytest.fixture
def capture(tmp_path, monkeypatch):
    """OpenCV reads a file in place of the cameras 0 and 1, and finds no others."""
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "camera.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), (20, 60, 220), np.uint8))  # BGR
    writer.release()
    real = cv2.VideoCapture

    def opened(index, backend=0):
        return real(path if index < 2 else "gone")

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    monkeypatch.setattr(cameras, "_check_device", lambda camera: None)
    return path


def test_opencv_gives_rgb_until_the_camera_is_gone(capture):
    opened = cameras.OpenCvCapture(0, (64, 48))
    for _ in range(3):
        rgb = opened.read()
        assert np.abs(rgb.astype(int) - (220, 60, 20)).max() < 12
        assert rgb.shape == (48, 64, 3)
    assert opened.read() is None
    opened.close()


def test_a_camera_that_opencv_cannot_open(capture, capfd):
    with pytest.raises(CameraError, match=r"^camera 7: cannot be opened; is another program using"):
        cameras.OpenCvCapture(7, (64, 48))
    assert capfd.readouterr().err == ""


def test_elsewhere_cameras_are_tried(capture):
    assert camera_devices._opened_cameras() == [CameraDevice(i, "64x48") for i in (0, 1)]


def test_devices_of_linux_are_looked_at_first(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(CameraError, match=r"^camera 987: there is no /dev/video987 .*--list"):
        cameras._check_device(987)
    monkeypatch.setattr(cameras.Path, "exists", lambda path: True)
    with pytest.raises(CameraError, match="no permission to open /dev/video987; add yourself to"):
        cameras._check_device(987)


# ---- virtual cameras ----------------------------------------------------------------------------


class FakeVirtual:
    """pyvirtualcam.Camera, of devices that are free unless they are in ``busy``."""

    busy: tuple[str, ...] = ()

    def __init__(self, width, height, fps, device):
        if device in self.busy:
            raise RuntimeError(f"'v4l2loopback' backend: device {device}\nis in use")
        self.shape, self.fps, self.device = (height, width, 3), fps, device or "OBS"
        self.sent, self.closed = [], False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def send(self, picture):
        assert picture.shape == self.shape
        assert picture.dtype == np.uint8
        self.sent.append(int(picture[picture.shape[0] // 2, picture.shape[1] // 2, 0]))

    def sleep_until_next_frame(self):
        time.sleep(0.002)


@pytest.fixture
def driver(monkeypatch):
    """pyvirtualcam with two devices of v4l2loopback, beside a camera."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=FakeVirtual))
    monkeypatch.setattr(FakeVirtual, "busy", ())
    found = [CameraDevice(0, "C920"), CameraDevice(4, "a", True), CameraDevice(5, "b", True)]
    monkeypatch.setattr(virtual_camera, "list_cameras", lambda: found)
    return found


def gray(level):
    return Frame(np.full((48, 64, 3), level, np.uint8), Fraction(0), Fraction(1))


def test_a_virtual_camera_sends_the_newest_picture_again_and_again(driver):
    camera = VirtualCamera((128, 72), 30)
    assert (camera.device, camera._camera.fps) == ("/dev/video4", 30)
    sent = camera._camera.sent
    sink = LiveSink(camera.send)
    sink.write(gray(10))
    until(lambda: sent.count(10) > 3)
    sink.write(gray(20))
    until(lambda: sent.count(20) > 3)
    sink.finish()
    assert sorted(sent) == sent
    assert camera._camera.closed


def test_a_virtual_camera_is_never_the_one_that_is_read(driver, monkeypatch):
    assert VirtualCamera((128, 72), 30, avoid=4).device == "/dev/video5"
    driver.pop()
    with pytest.raises(VirtualCameraError, match="no virtual camera was found; install v4l2loopb"):
        VirtualCamera((128, 72), 30, avoid=4)


def test_a_busy_virtual_camera(driver, monkeypatch):
    monkeypatch.setattr(FakeVirtual, "busy", ("/dev/video4",))
    assert VirtualCamera((128, 72), 30).device == "/dev/video5"
    monkeypatch.setattr(FakeVirtual, "busy", ("/dev/video4", "/dev/video5"))
    with pytest.raises(VirtualCameraError) as error:
        VirtualCamera((128, 72), 30)
    assert str(error.value) == (
        "/dev/video5: cannot be written to: 'v4l2loopback' backend: device /dev/video5 is in use; "
        "is it used already?"
    )


@pytest.mark.parametrize(
    ("platform", "install"), [("linux", "v4l2loopback"), ("win32", "OBS"), ("darwin", "OBS")]
)
def test_without_a_driver_it_says_what_to_install(driver, monkeypatch, platform, install):
    driver.clear()
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(FakeVirtual, "busy", (None,))
    with pytest.raises(VirtualCameraError, match=f"no virtual camera was found; install {install}"):
        VirtualCamera((128, 72), 30)
