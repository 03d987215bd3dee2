"""OpenCV, which opens cameras and windows, or the reason why it cannot."""

import functools
import os
import sys
from types import ModuleType

_INSTALL = "pip install stylekernels[webcam]"


class OpenCvError(RuntimeError):
    """OpenCV is missing, or was built without windows. The message says what to do."""


@functools.cache
def opencv() -> ModuleType:
    """Return the module ``cv2``, which prints no warnings of its own.

    Raises:
        OpenCvError: if it is not installed or cannot be loaded.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise OpenCvError(f"OpenCV is not installed; {_INSTALL}") from error
    except ImportError as error:  # a library of the system, such as libGL
        raise OpenCvError(
            f"OpenCV cannot be loaded: {error}; install that library with the system's packages "
            "(libgl1 and libglib2.0-0 on Debian and Ubuntu)"
        ) from error
    # A camera that is missing is said in one line, not in ten.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def check_windows() -> None:
    """Refuse to open windows where it cannot be done.

    Raises:
        OpenCvError: if OpenCV is missing or has no windows; on Linux also if there is no display.
    """
    if not opencv().currentUIFramework():
        raise OpenCvError(
            "this OpenCV was built without windows: opencv-python-headless, which brings the same "
            "module as opencv-python; pip uninstall -y opencv-python-headless and then pip install "
            "--force-reinstall --no-deps opencv-python, which does all that the other does"
        )
    # Qt in OpenCV speaks X11 only, also on Wayland. Without it, it ends the process.
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        raise OpenCvError(
            "there is no display for a window (DISPLAY is not set); --no-window --virtual-camera "
            "needs none"
        )
