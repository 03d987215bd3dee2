"""``stylekernels webcam``: a camera, painted live."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style, style_title
from stylekernels.cli.terminal import DONE, Refused, complain, say
from stylekernels.models.styles import bundled_styles

if TYPE_CHECKING:
    from stylekernels.inference.live_painter import LivePainter
    from stylekernels.media.frames import LiveSource
    from stylekernels.media.live import LivePipeline, LiveSink
    from stylekernels.media.window import Window

_VGA = (640, 480)
_DEVICE = re.compile(r"(?:/dev/video)?(\d+)")


@dataclasses.dataclass(kw_only=True)
class Webcam:
    """Paint a camera live, in a window or as a virtual camera."""

    style: Annotated[str, option("STYLE", "-s")] = "wave"
    """The style at first, as for `stylekernels stylize`. Keys change between the bundled ones."""

    camera: Annotated[str | None, option("CAMERA", hint="(default: the first camera)")] = None
    """The number of a camera (see --list), on Linux also its device such as /dev/video2; a video
    file, which is shown again and again; or `pattern`, a moving picture that needs no camera."""

    list_: Annotated[bool, tyro.conf.arg(name="list", help_behavior_hint="")] = False
    """List the cameras, and stop."""

    size: Annotated[str | None, option("WIDTHxHEIGHT", hint="(default: 640x480)")] = None
    """Size to capture and to paint in. Pictures of another size are scaled, and cut to its shape.
    A video file keeps its shape by default."""

    strength: Annotated[float, option("0..1")] = 1.0
    """The share of the style in the picture, from 0 (the camera's) to 1 (the stylised picture)."""

    preserve_colors: Annotated[bool, option(hint="")] = False
    """Keep the camera's colours, and take only the brightness of the stylised picture."""

    mirror: Annotated[bool, option(hint="")] = True
    """Do not exchange left and right. A window is a mirror by default; files and a virtual camera
    never are."""

    fps: Annotated[float | None, option("FPS", hint="(default: as many as possible)")] = None
    """Paint at most this many pictures a second."""

    max_cpu: Annotated[float, option("0..1")] = 1.0
    """The most part of the time that is spent painting: after each picture the painter rests for
    the other part. Fewer pictures a second, with the same latency."""

    window: Annotated[bool, option(hint="")] = True
    """Show no window: for --virtual-camera. The terminal shows a status line."""

    virtual_camera: Annotated[bool, option(hint="")] = False
    """Send the pictures to a virtual camera, for meetings and streams."""

    virtual_size: Annotated[str, option("WIDTHxHEIGHT")] = "1280x720"
    """Size of the virtual camera. Pictures of another shape get black bars."""

    virtual_fps: Annotated[float, option("FPS")] = 30.0
    """Pictures a second of the virtual camera."""

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the network runs on, `cpu` or `cuda`."""

    def run(self) -> int:
        from stylekernels.media.opencv import OpenCvError
        from stylekernels.media.video_formats import VideoError
        from stylekernels.media.virtual_camera import VirtualCameraError

        try:
            return self._list() if self.list_ else self._show()
        except OpenCvError as error:
            raise Refused(f"webcam: {error}") from error
        except VideoError as error:
            raise Refused(f"--camera: {error}") from error
        except VirtualCameraError as error:
            raise Refused(f"--virtual-camera: {error}") from error
        except ModuleNotFoundError as error:
            if error.name != "av":
                raise
            raise Refused(
                "--camera: a video file needs PyAV, which is not installed; "
                "pip install stylekernels[webcam]"
            ) from error

    def _list(self) -> int:
        from stylekernels.media.camera_devices import list_cameras

        cameras = list_cameras()
        for camera in cameras:
            say(f"{camera.index}  {camera.name}{'  (virtual)' if camera.virtual else ''}")
        if not cameras:
            complain("no camera was found; --camera pattern needs none")
        return DONE

    def _show(self) -> int:
        from stylekernels.media.live import LivePipeline, Pace

        self._check()
        size = None if self.size is None else _size("--size", self.size)
        virtual_size = _size("--virtual-size", self.virtual_size)
        find_style(self.style)
        with contextlib.ExitStack() as stack:
            window = stack.enter_context(self._open_window(size or _VGA)) if self.window else None
            source, index = self._open_source(size)
            sinks = []
            if self.virtual_camera:
                sinks.append(stack.enter_context(self._virtual_camera(virtual_size, index)))
            painter = self._open_painter()
            stack.callback(painter.close)
            pace = Pace(self.fps, self.max_cpu)
            live = stack.enter_context(LivePipeline(source, painter, pace=pace))
            self._view(live, source, painter, window, sinks)
        return DONE

    def _check(self) -> None:
        """Refuse options that have no sense."""
        if not 0 <= self.strength <= 1:
            raise Refused(f"--strength: expected a number from 0 to 1, got {self.strength}")
        if not 0 < self.max_cpu <= 1:
            raise Refused(f"--max-cpu: expected more than 0 and at most 1, got {self.max_cpu}")
        for name, fps in (("--fps", self.fps), ("--virtual-fps", self.virtual_fps)):
            if fps is not None and not 0 < fps < float("inf"):
                raise Refused(f"{name}: expected more than 0 pictures a second, got {fps}")
        known = self.camera in (None, "pattern") or _DEVICE.fullmatch(self.camera)
        if not known and not Path(self.camera).exists():
            raise Refused(
                "--camera: expected a number from `stylekernels webcam --list`, /dev/videoN, a "
                f"video file or `pattern`, got {self.camera!r}"
            )
        if not self.window and not self.virtual_camera:
            raise Refused("--no-window: expected --virtual-camera with it; nothing shows pictures")

    @contextlib.contextmanager
    def _open_window(self, size: tuple[int, int]) -> Iterator["Window"]:
        """Open the window, before PyAV is imported: the libraries for X11 in its wheels would keep
        Qt in those of OpenCV from ever opening one."""
        import numpy as np

        from stylekernels.media.overlay import Overlay, draw_overlay
        from stylekernels.media.window import Window

        window = Window("stylekernels")
        try:
            dark = np.full((*size[::-1], 3), 24, np.uint8)
            draw_overlay(dark, Overlay(notice=f"opening {style_title(self.style)}"))
            window.show(dark)
            window.key()
            yield window
        finally:
            window.close()

    def _open_source(self, size: tuple[int, int] | None) -> tuple["LiveSource", int | None]:
        """Return the source of pictures, and the index of the camera if it was named."""
        if self.camera == "pattern":
            from stylekernels.media.pattern import PatternSource

            return PatternSource(size or _VGA), None
        device = _DEVICE.fullmatch(self.camera or "")
        if self.camera is None or device:
            from stylekernels.media.camera import CameraSource
            from stylekernels.media.opencv import opencv

            opencv()
            index = int(device[1]) if device else None
            return CameraSource(index, size or _VGA), index
        from stylekernels.media.looped_video import LoopedVideo

        return LoopedVideo(self.camera, size), None

    @contextlib.contextmanager
    def _virtual_camera(self, size: tuple[int, int], avoid: int | None) -> Iterator["LiveSink"]:
        from stylekernels.media.live import LiveSink
        from stylekernels.media.virtual_camera import VirtualCamera

        camera = VirtualCamera(size, self.virtual_fps, avoid)
        say(f"virtual camera: {camera.device}, {self.virtual_size}")
        sink = LiveSink(camera.send)
        try:
            yield sink
        finally:
            sink.finish()

    def _open_painter(self) -> "LivePainter":
        from stylekernels.inference.live_painter import LivePainter, Look

        return LivePainter(
            self.style,
            bundled_styles(),
            lambda style: open_style(style, self.device),
            Look(self.strength, self.preserve_colors),
        )

    def _view(
        self,
        live: "LivePipeline",
        source: "LiveSource",
        painter: "LivePainter",
        window: "Window | None",
        sinks: "list[LiveSink]",
    ) -> None:
        """Show pictures until the end."""
        from stylekernels.cli.live_view import LiveView
        from stylekernels.hardware import memory_ran_out

        try:
            LiveView(live, source, painter, window, sinks=sinks, mirror=self.mirror).run()
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            raise Refused(
                "--size: these pictures need more memory than there is; choose a smaller size"
            ) from error


def _size(option: str, text: str) -> tuple[int, int]:
    """Return width and height of a size such as 640x480."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise Refused(f"{option}: expected WIDTHxHEIGHT such as 640x480, got {text!r}")
    size = int(found[1]), int(found[2])
    if min(size) < 16 or size[0] % 2 or size[1] % 2:
        raise Refused(f"{option}: expected even numbers of at least 16 pixels, got {text}")
    return size
