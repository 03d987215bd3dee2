"""The cameras of this machine."""

import sys
from dataclasses import dataclass
from pathlib import Path

from stylekernels.media.opencv import opencv

_SYSFS = Path("/sys/class/video4linux")
_TRIED = 10  # indices that are tried where the system lists no cameras


@dataclass(frozen=True)
class CameraDevice:
    """A camera.

    Attributes:
        index: its number, as in ``/dev/video0``.
        name: what the system calls it; elsewhere than on Linux the size of its pictures.
        virtual: whether a program makes its pictures, as with v4l2loopback. Known on Linux only.
    """

    index: int
    name: str
    virtual: bool = False


def list_cameras() -> list[CameraDevice]:
    """Return the cameras in the order of their indices.

    On Linux the system knows their names, and none is opened. Elsewhere each of the first ten
    indices is opened for a moment.
    """
    return _linux_cameras(_SYSFS) if sys.platform == "linux" else _opened_cameras()


def _linux_cameras(sysfs: Path) -> list[CameraDevice]:
    found = []
    for folder in sysfs.glob("video*"):
        # A camera has further devices for its metadata, with other indices.
        if folder.name[5:].isdecimal() and _text(folder / "index") in ("0", ""):
            virtual = "/devices/virtual/" in str(folder.resolve())
            name = _text(folder / "name") or folder.name
            found.append(CameraDevice(int(folder.name[5:]), name, virtual))
    return sorted(found, key=lambda camera: camera.index)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _opened_cameras() -> list[CameraDevice]:
    cv2 = opencv()
    found = []
    for index in range(_TRIED):
        capture = cv2.VideoCapture(index)
        if capture.isOpened():
            width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
            height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            found.append(CameraDevice(index, f"{width}x{height}"))
        capture.release()
    return found
