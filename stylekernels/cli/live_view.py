"""Views of a live picture: a window with keys, or a status line in the terminal."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stylekernels.cli.styles import style_title
from stylekernels.cli.terminal import complain, say, status_line
from stylekernels.inference.live_painter import LivePainter
from stylekernels.media import Photo, PhotoError, write_photo
from stylekernels.media.fitting import fill
from stylekernels.media.frames import Frame, LiveSource
from stylekernels.media.live import LivePipeline, LiveSink, Meter
from stylekernels.media.opencv import opencv
from stylekernels.media.overlay import Overlay, draw_overlay
from stylekernels.media.recording import record

#: The keys, as the help in the window shows them.
KEYS = (
    ("n  p", "next, previous style"),
    ("+  -", "strength of the style"),
    ("c", "colours of the camera, or of the style"),
    ("m", "mirror"),
    ("f", "full screen"),
    ("s", "screenshot"),
    ("r", "start or stop recording"),
    ("h", "show or hide this help"),
    ("q  Esc", "quit"),
)

_ESCAPE = "\x1b"
_PATIENCE = 0.02  # seconds between looks at the keys
_REDRAWN = 0.1  # seconds after which the text is drawn anew while there are no new pictures
_NUMBERS = 0.5  # seconds for which numbers stand still, so that they can be read
_NOTICE = 3.0  # seconds for which a notice is shown
_LEAST_HEIGHT = 480  # pixels; smaller pictures are enlarged, so that text fits


class AnyWindow(Protocol):
    """Interface of a window that a view draws to; `stylekernels.media.window.Window` has it."""

    is_open: bool

    def show(self, rgb: np.ndarray) -> None: ...
    def key(self) -> str: ...
    def toggle_full_screen(self) -> None: ...


class LiveView:
    """Shows the pictures of a pipeline until the user quits or the source ends.

    Args:
        live: the pipeline, at work.
        source: its source.
        painter: its painter.
        window: shows the pictures; None: a status line in the terminal tells of them.
        sinks: get every picture too.
        mirror: whether left and right are exchanged in the window.
    """

    def __init__(
        self,
        live: LivePipeline,
        source: LiveSource,
        painter: LivePainter,
        window: AnyWindow | None,
        *,
        sinks: Sequence[LiveSink] = (),
        mirror: bool = True,
    ) -> None:
        self.meter = Meter()
        self._live, self._source, self._painter = live, source, painter
        self._window, self._sinks, self._mirror = window, sinks, mirror
        self._picture = np.full((480, 640, 3), 24, np.uint8)
        self._frame: Frame | None = None
        self._numbers, self._numbers_from = "", 0.0
        self._notice, self._notice_until = "h shows the keys", time.monotonic() + _NOTICE
        self._problem: str | None = None
        self._helps = False
        self._recording: tuple[Path, LiveSink, float] | None = None  # file, encoder, beginning
        self._ending: list[tuple[Path, LiveSink]] = []  # recordings that are completed
        self._actions: dict[str, Callable[[], None]] = {
            "n": lambda: painter.choose(1),
            "p": lambda: painter.choose(-1),
            "+": lambda: self._strengthen(0.1),
            "=": lambda: self._strengthen(0.1),  # + without Shift
            "-": lambda: self._strengthen(-0.1),
            "c": self._change_colors,
            "m": self._change_mirror,
            "f": lambda: window.toggle_full_screen(),
            "s": self._save_screenshot,
            "r": self._start_or_stop,
            "h": self._change_help,
        }

    def run(self) -> None:
        """Show pictures until the end. Recordings are complete then.

        Raises:
            BaseException: the error of the source, the painter or a sink.
        """
        try:
            if self._window is None:
                self._run_in_terminal()
            else:
                self._run_in_window(self._window)
        finally:
            self._stop_recording()
            for path, encoder in self._ending:
                self._complete(path, encoder)

    def _run_in_window(self, window: AnyWindow) -> None:
        drawn = 0.0
        while True:
            painted = self._live.take(_PATIENCE)
            if painted is not None:
                self._pass_on(painted.frame)
            elif self._live.ended:
                return
            self._look_after_problems()
            if painted is not None or time.monotonic() - drawn > _REDRAWN:
                window.show(self._drawn())
                drawn = time.monotonic()
            key = window.key().lower()
            if painted is not None:
                self.meter.shown(painted.captured, time.monotonic())
            if key in ("q", _ESCAPE) or not window.is_open:
                return
            self._actions.get(key, lambda: None)()

    def _run_in_terminal(self) -> None:
        with status_line() as line:
            while True:
                painted = self._live.take(_NUMBERS)
                if painted is not None:
                    self._pass_on(painted.frame)
                    self.meter.shown(painted.captured, time.monotonic())
                elif self._live.ended:
                    return
                self._look_after_problems()
                line.set_description_str(f"{self._style()}  {self._measured()}  Ctrl-C quits")

    def _pass_on(self, frame: Frame) -> None:
        """Give a picture to everything that takes one."""
        self._frame, self._picture = frame, frame.rgb
        for sink in self._sinks:
            if sink.ended:
                sink.finish()  # raises its error
            sink.write(frame)
        if self._recording is not None:
            self._recording[1].write(frame)

    def _look_after_problems(self) -> None:
        """Tell of a camera or a style that fails, and of recordings that are complete."""
        problem = self._source.problem
        if problem != self._problem:
            complain(f"{problem}; trying again" if problem else "the camera is back")
            self._problem = problem
        if self._painter.problem is not None:
            self._tell(self._painter.problem)
            self._painter.problem = None
        if self._recording is not None and self._recording[1].ended:
            self._stop_recording()
        for path, encoder in [entry for entry in self._ending if entry[1].ended]:
            self._ending.remove((path, encoder))
            self._complete(path, encoder)

    def _drawn(self) -> np.ndarray:
        """Return the picture as the window shows it."""
        height, width = self._picture.shape[:2]
        times = -(-_LEAST_HEIGHT // height)
        rgb = fill(self._picture, (width * times, height * times))
        rgb = opencv().flip(rgb, 1) if self._mirror else rgb.copy()
        draw_overlay(rgb, self._overlay())
        return rgb

    def _overlay(self) -> Overlay:
        now = time.monotonic()
        notice = self._notice if now < self._notice_until else ""
        if self._source.problem:
            notice = f"{self._source.problem}; trying again"
        recording = ""
        if self._recording is not None:
            minutes, seconds = divmod(int(now - self._recording[2]), 60)
            recording = f"{minutes}:{seconds:02}"
        keys = KEYS if self._helps else ()
        return Overlay(self._style(), self._measured(), recording, notice, keys)

    def _style(self) -> str:
        """Return the style and what differs from the usual look, as a text."""
        painter, parts = self._painter, [style_title(self._painter.style)]
        if painter.look.strength != 1:
            parts.append(f"{painter.look.strength:.0%}")
        if painter.look.preserve_colors:
            parts.append("camera's colours")
        if painter.wanted != painter.style:
            parts.append(f"opening {style_title(painter.wanted)}")
        return ", ".join(parts)

    def _measured(self) -> str:
        """Return frames a second and latency, as a text that changes twice a second; '' if there
        are no pictures."""
        if self._source.problem or not self.meter.count:
            return ""
        now = time.monotonic()
        if now - self._numbers_from > _NUMBERS:
            self._numbers_from = now
            self._numbers = f"{self.meter.fps:.1f} fps, latency {1000 * self.meter.latency:.0f} ms"
        return self._numbers

    def _tell(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.monotonic() + _NOTICE

    def _strengthen(self, step: float) -> None:
        look = self._painter.look
        strength = min(1.0, max(0.0, round(look.strength + step, 2)))
        self._painter.look = replace(look, strength=strength)

    def _change_colors(self) -> None:
        look = self._painter.look
        self._painter.look = replace(look, preserve_colors=not look.preserve_colors)

    def _change_mirror(self) -> None:
        self._mirror = not self._mirror

    def _change_help(self) -> None:
        self._helps = not self._helps

    def _save_screenshot(self) -> None:
        path = _new_file(".png")
        try:
            write_photo(path, Photo(self._picture))
        except (PhotoError, OSError) as error:
            self._tell(f"no screenshot: {error}")
        else:
            self._tell(f"saved {path}")
            say(str(path))

    def _start_or_stop(self) -> None:
        if self._recording is not None:
            self._stop_recording()
            return
        path = _new_file(".mp4", {path for path, _ in self._ending})
        encoder = LiveSink(lambda frames: record(frames, path))
        self._recording = path, encoder, time.monotonic()
        if self._frame is not None:
            encoder.write(self._frame)

    def _stop_recording(self) -> None:
        """Let the encoder complete its file, while pictures go on."""
        if self._recording is not None:
            path, encoder, _ = self._recording
            encoder.close()
            self._ending.append((path, encoder))
            self._recording = None

    def _complete(self, path: Path, encoder: LiveSink) -> None:
        """Wait for the end of a recording, and tell of it."""
        try:
            encoder.finish()
        except ModuleNotFoundError as error:
            if error.name != "av":
                raise
            self._tell("no recording: PyAV is not installed; pip install stylekernels[webcam]")
        except OSError as error:
            self._tell(f"no recording: {path}: {error.strerror or error}")
        else:
            if not path.exists():
                self._tell("no recording: no picture came")
                return
            self._tell(f"saved {path}")
            say(str(path))


def _new_file(suffix: str, taken: Collection[Path] = ()) -> Path:
    """Return the name of a file in the working folder that does not exist: the time. Names in
    ``taken`` belong to files that are still being written."""
    stem = time.strftime("stylekernels-%Y%m%d-%H%M%S")
    path, number = Path(stem + suffix), 1
    while path.exists() or path in taken:
        number += 1
        path = Path(f"{stem}-{number}{suffix}")
    return path
