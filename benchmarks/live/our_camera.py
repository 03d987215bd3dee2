"""A run of ``stylekernels webcam`` on a moving pattern, with a window that no one sees."""

import numpy as np

from benchmarks.live.part import Part, parts_of, resident
from stylekernels.cli.live_view import LiveView
from stylekernels.inference import Stylizer
from stylekernels.inference.live_painter import LivePainter
from stylekernels.media.live import LivePipeline, Meter
from stylekernels.media.pattern import PatternSource


class Unseen:
    """A window without a screen, that closes after a number of pictures."""

    def __init__(self, pictures: int) -> None:
        self._left = pictures

    def show(self, rgb: np.ndarray) -> None:
        pass

    def key(self) -> str:
        return ""

    @property
    def is_open(self) -> bool:
        return self._left > 0

    def toggle_full_screen(self) -> None:
        pass

    def count(self) -> None:
        self._left -= 1


class _Notes(Meter):
    """A meter that keeps when each picture was shown, its latency, and the memory then."""

    def __init__(self, window: Unseen) -> None:
        super().__init__()
        self.times: list[float] = []
        self.late: list[float] = []
        self.memory: list[int | None] = []
        self._window = window

    def shown(self, captured: float, now: float) -> None:
        super().shown(captured, now)
        self.times.append(now)
        self.late.append(now - captured)
        self.memory.append(resident())
        self._window.count()


def run(stylizer: Stylizer, size: tuple[int, int], rate: float, pictures: int) -> list[Part]:
    """Show pictures, and return what was measured in each tenth of the run.

    Args:
        stylizer: the painter.
        size: width and height.
        rate: frames a second of the source.
        pictures: number of pictures, at least 20.
    """
    source = PatternSource(size, rate)
    painter = LivePainter("benchmark", [], lambda style: stylizer)
    window = Unseen(pictures)
    with LivePipeline(source, painter) as live:
        view = LiveView(live, source, painter, window)
        notes = view.meter = _Notes(window)
        view.run()
    painter.close()
    return parts_of(notes.times, notes.late, notes.memory)
