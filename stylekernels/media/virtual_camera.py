"""A virtual camera as a sink: other programs see its pictures as those of a camera."""

import sys
from typing import Any

from stylekernels.media.camera_devices import list_cameras
from stylekernels.media.fitting import letterbox
from stylekernels.media.stages import Latest

_DRIVERS = {
    "linux": "install v4l2loopback (the package v4l2loopback-dkms) and load it: sudo modprobe "
    'v4l2loopback exclusive_caps=1 card_label="stylekernels"',
    "win32": "install OBS Studio, whose virtual camera is used",
    "darwin": "install OBS Studio, and start and stop its virtual camera once",
}


class VirtualCameraError(RuntimeError):
    """There is no virtual camera to write to. The message says what to install, in one line."""


class VirtualCamera:
    """A virtual camera of the system, which always sends at its rate.

    Args:
        size: width and height. Pictures of another shape get black bars.
        fps: pictures a second. Programs expect a steady rate: a picture is sent again if there is
            no newer one.
        avoid: the index of the camera that is read, which must not be written to.

    Attributes:
        device: what the system calls it, such as ``/dev/video2``.

    Raises:
        VirtualCameraError: if pyvirtualcam is not installed, or if there is no driver.
    """

    def __init__(self, size: tuple[int, int], fps: float, avoid: int | None = None) -> None:
        self._size = size
        self._camera = _open(size, fps, avoid)
        self.device: str = self._camera.device

    def send(self, frames: Latest) -> None:
        """Send the newest of the frames, until their mailbox is closed; then close the camera."""
        with self._camera:
            frame = frames.take()
            while frame is not None:
                picture = letterbox(frame.rgb, self._size)
                newer = None
                while newer is None and not frames.closed:
                    self._camera.send(picture)
                    self._camera.sleep_until_next_frame()
                    newer = frames.take(0)
                frame = newer


def _open(size: tuple[int, int], fps: float, avoid: int | None) -> Any:
    try:
        from pyvirtualcam import Camera
    except ModuleNotFoundError as error:
        if error.name != "pyvirtualcam":
            raise
        raise VirtualCameraError(
            "needs pyvirtualcam, which is not installed; pip install stylekernels[virtual-camera]"
        ) from error
    install = _DRIVERS.get(sys.platform, "no driver of this system is supported")
    problem = f"no virtual camera was found; {install}"
    for device in _devices(avoid):
        try:
            return Camera(*size, fps, device=device)
        except RuntimeError as error:
            if device is not None:
                reason = " ".join(str(error).split())
                problem = f"{device}: cannot be written to: {reason}; is it used already?"
    raise VirtualCameraError(problem)


def _devices(avoid: int | None) -> list[str | None]:
    """Return the devices to try; None is one that pyvirtualcam chooses."""
    if sys.platform != "linux":
        return [None]
    cameras = [camera.index for camera in list_cameras() if camera.virtual]
    return [f"/dev/video{index}" for index in cameras if index != avoid]
