"""A camera as a source of live frames. It may be missing, busy or unplugged, and come back."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from stylekernels.media.camera_devices import list_cameras
from stylekernels.media.fitting import fill
from stylekernels.media.frames import Frame
from stylekernels.media.opencv import opencv

#: Seconds before each new try; the last one is repeated.
WAITS = (1, 2, 4, 8, 15)

_USUAL_RATE = 30
_VGA = 640 * 480


class CameraError(OSError):
    """A camera gives no pictures. The message names it and says why, in one line."""


class Capture(Protocol):
    """An open camera."""

    def read(self) -> np.ndarray | None:
        """Wait for the next picture, (H, W, 3) uint8 RGB. None: there are none any more."""

    def close(self) -> None:
        """Free the camera for other programs."""


class CameraSource:
    """Yields the pictures of a camera. While there are none, it tries to open the camera again,
    after a wait that grows from one second to fifteen.

    Args:
        camera: the camera's index; None: the first one that is no virtual camera, whichever that is
            when it is opened.
        size: width and height to ask the camera for. Pictures of another size are scaled and cut.
        open_camera: a function of index and size that opens a camera, or raises CameraError.
        waits: seconds before each new try.

    Attributes:
        problem: why there are no pictures at the moment, as one line; None if there are.
    """

    def __init__(
        self,
        camera: int | None,
        size: tuple[int, int],
        *,
        open_camera: Callable[[int, tuple[int, int]], Capture] | None = None,
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self.problem: str | None = None
        self._camera, self._size, self._waits = camera, size, waits
        self._open = open_camera or OpenCvCapture
        self._closed = threading.Event()
        self._tries = 0

    def close(self) -> None:
        self._closed.set()

    def __iter__(self) -> Iterator[Frame]:
        began = time.monotonic()
        while not self._closed.is_set():
            try:
                for rgb in self._pictures():
                    now = Fraction(time.monotonic() - began).limit_denominator(1000)
                    yield Frame(rgb, now, Fraction(1, _USUAL_RATE))
            except CameraError as error:
                self.problem = str(error)
                self._closed.wait(self._waits[min(self._tries, len(self._waits) - 1)])
                self._tries += 1

    def _pictures(self) -> Iterator[np.ndarray]:
        """Open the camera and yield its pictures, until it has none any more."""
        index = first_camera() if self._camera is None else self._camera
        with contextlib.closing(self._open(index, self._size)) as capture:
            while not self._closed.is_set():
                rgb = capture.read()
                if rgb is None:
                    raise CameraError(
                        f"camera {index}: it gives no pictures any more; was it unplugged, or is "
                        "another program using it?"
                    )
                self.problem, self._tries = None, 0
                yield fill(rgb, self._size)


def first_camera() -> int:
    """Return the index of the first camera that is no virtual one.

    Raises:
        CameraError: if there is none.
    """
    if sys.platform != "linux":  # listing would open all of them
        return 0
    found = [camera.index for camera in list_cameras() if not camera.virtual]
    if not found:
        raise CameraError("no camera was found; plug one in (--camera pattern needs none)")
    return found[0]


class OpenCvCapture:
    """A camera that OpenCV reads.

    Args:
        camera: its index.
        size: width and height to ask for. Drivers choose the nearest that the camera has.

    Raises:
        CameraError: if there is no such camera, or if it cannot be opened.
        OpenCvError: if OpenCV is missing.
    """

    def __init__(self, camera: int, size: tuple[int, int]) -> None:
        cv2 = opencv()
        _check_device(camera)
        self._cv2 = cv2
        backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
        self._capture = cv2.VideoCapture(camera, backend)
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(f"camera {camera}: cannot be opened; is another program using it?")
        width, height = size
        if width * height > _VGA:  # uncompressed, USB 2 carries a few of these a second
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        self._capture.set(cv2.CAP_PROP_FPS, _USUAL_RATE)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # no older pictures before the newest

    def read(self) -> np.ndarray | None:
        """Wait for the next picture, (H, W, 3) uint8 RGB; None if there are none any more."""
        there, bgr = self._capture.read()
        return self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB) if there else None

    def close(self) -> None:
        self._capture.release()


def _check_device(camera: int) -> None:
    """Refuse a camera of Linux that does not exist or may not be read."""
    if sys.platform != "linux":
        return
    path = Path(f"/dev/video{camera}")
    if not path.exists():
        raise CameraError(
            f"camera {camera}: there is no {path} (stylekernels webcam --list shows the cameras)"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraError(
            f"camera {camera}: no permission to open {path}; add yourself to the group video and "
            "log in again"
        )
