"""The live pipeline: the newest frame wins, limits of the painter's work, errors and ends."""

import statistics
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from stylekernels.media.frames import Frame
from stylekernels.media.live import LivePipeline, LiveSink, Meter, Pace
from stylekernels.media.stages import Latest


def frame(number):
    """Return a frame whose first two colours are its number."""
    rgb = np.full((2, 3, 3), number % 256, np.uint8)
    rgb[..., 1] = number // 256
    return Frame(rgb, Fraction(number), Fraction(1))


class Ticks:
    """A source of frames at a fixed rate, as many as asked for, and then an error if there is
    one."""

    problem = None

    def __init__(self, rate=1000.0, count=10**9, error=None):
        self.rate, self.count, self.error = rate, count, error
        self.made = 0
        self.closed = threading.Event()

    def close(self):
        self.closed.set()

    def __iter__(self):
        while self.made < self.count:
            if self.closed.wait(1 / self.rate):
                return
            yield frame(self.made)
            self.made += 1
        if self.error:
            raise self.error


def invert(rgb):
    return 255 - rgb


def until(condition, seconds=20.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_the_newest_item_replaces_the_one_that_waits():
    box = Latest()
    assert box.take(timeout=0) is None
    assert box.put(1)
    assert box.put(2)
    assert box.take() == 2
    assert box.take(timeout=0.01) is None
    box.put(3)
    box.close()
    assert not box.put(4)
    assert [*box] == [3]
    assert box.take() is None


def test_latency_stays_flat_with_a_painter_twice_as_slow_as_the_camera():
    """A queue of a few frames between them would add several paintings to the latency."""
    busy, late, numbers = [], [], []

    def paint(rgb):
        began = time.monotonic()
        time.sleep(0.02)
        busy.append(time.monotonic() - began)
        return rgb

    source = Ticks(rate=100)
    with LivePipeline(source, paint) as live:
        while len(late) < 300:
            painted = live.take(1)
            if painted is not None:
                late.append(time.monotonic() - painted.captured)
                low, high, _ = painted.frame.rgb[0, 0].tolist()
                numbers.append(low + 256 * high)
    painting = statistics.median(busy)
    first, last = statistics.median(late[:100]), statistics.median(late[-100:])
    assert painting <= last <= 2.5 * painting  # 1.5 and what threads need to wake up
    assert last < first + painting / 2
    assert source.made > 400  # frames were left out
    assert (np.diff(numbers) > 0).all()  # and none came twice, or after a newer one


def test_pictures_carry_the_times_of_their_capture():
    with LivePipeline(Ticks(rate=200), invert) as live:
        painted = [p for p in (live.take(1) for _ in range(20)) if p is not None]
    assert len(painted) > 10
    began = painted[0].captured - float(painted[0].frame.time)
    for picture in painted:
        assert abs(float(picture.frame.time) - (picture.captured - began)) < 1e-4
        assert picture.frame.rgb[0, 0, 0] > 4  # inverted


def test_the_first_picture_lasts_as_long_as_a_cameras():
    """How long the machine has been running does not count."""
    with LivePipeline(Ticks(count=1), invert) as live:
        assert float(live.take(20).frame.duration) == pytest.approx(1 / 30, abs=1e-6)


@pytest.mark.parametrize("slow", ["source", "painter"])
def test_a_source_that_ends_gives_its_last_picture(slow):
    def paint(rgb):
        time.sleep(0.02 if slow == "painter" else 0)
        return rgb

    last = None
    with LivePipeline(Ticks(rate=100, count=5), paint) as live:
        until(lambda: live._painter.ended.is_set())
        assert not live.ended
        last = live.take(1)
        assert live.ended
        assert live.take(0.01) is None
    assert last.frame.rgb[0, 0, 0] == 4


def take_all(live):
    while not live.ended:
        live.take(0.1)
    live.take(0)


@pytest.mark.parametrize("where", ["source", "painter"])
def test_an_error_is_raised_where_pictures_are_taken(where):
    def paint(rgb):
        raise ValueError("painter")

    error = ValueError("source") if where == "source" else None
    source = Ticks(count=3, error=error)
    with (
        pytest.raises(ValueError, match=where),
        LivePipeline(source, invert if error else paint) as live,
    ):
        take_all(live)


def test_it_ends_at_once_while_the_source_and_the_painter_wait():
    before = threading.active_count()
    source = Ticks(rate=0.01)
    with LivePipeline(source, invert, pace=Pace(fps=0.01)) as live:
        began = time.monotonic()
        assert live.take(0.05) is None
    assert time.monotonic() - began < 5
    until(lambda: threading.active_count() == before)


def test_a_source_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr("stylekernels.media.live._PATIENCE", 0.1)
    release = threading.Event()

    class Hanging(Ticks):
        def __iter__(self):
            release.wait()
            yield frame(0)

    with LivePipeline(Hanging(), invert):
        began = time.monotonic()
    assert time.monotonic() - began < 5
    release.set()


@pytest.mark.parametrize(
    ("pace", "busy", "rest"),
    [
        (Pace(), 0.1, 0),
        (Pace(share=0.25), 0.1, 0.3),
        (Pace(fps=5), 0.1, 0.1),
        (Pace(fps=20), 0.1, 0),
        (Pace(fps=5, share=0.25), 0.1, 0.3),
        (Pace(fps=1, share=0.25), 0.1, 0.9),
    ],
)
def test_the_painter_rests(pace, busy, rest):
    assert pace.rest(busy) == pytest.approx(rest)


def test_a_share_of_the_time_is_spent_painting():
    busy = []

    def paint(rgb):
        began = time.monotonic()
        time.sleep(0.01)
        busy.append(time.monotonic() - began)
        return rgb

    with LivePipeline(Ticks(), paint, pace=Pace(share=0.2)) as live:
        began = time.monotonic()
        for _ in range(12):
            live.take(5)
        elapsed = time.monotonic() - began
    assert sum(busy[:11]) / elapsed < 0.25


def test_frames_a_second_are_capped():
    with LivePipeline(Ticks(), invert, pace=Pace(fps=25)) as live:
        began = time.monotonic()
        for _ in range(11):
            assert live.take(5) is not None
        assert time.monotonic() - began > 9.9 / 25


def test_the_meter_looks_two_seconds_back():
    meter = Meter()
    assert (meter.fps, meter.latency) == (0, 0)
    for number in range(100):
        meter.shown(captured=number / 10 - 0.05, now=number / 10)
    assert meter.fps == pytest.approx(10)
    assert meter.latency == pytest.approx(0.05)
    for number in range(100):
        meter.shown(captured=10 + number / 40 - 0.2, now=10 + number / 40)
    assert meter.fps == pytest.approx(40)
    assert meter.latency == pytest.approx(0.2)
    assert meter.count == 200


def test_a_sink_takes_the_newest_frame_without_delay():
    taken, go = [], threading.Event()

    def work(frames):
        for item in frames:
            taken.append(int(item.time))
            go.wait()

    sink = LiveSink(work)
    sink.write(frame(0))
    until(lambda: taken == [0])
    for number in range(1, 9):
        sink.write(frame(number))
    sink.close()
    assert not sink.ended
    go.set()
    sink.finish()
    assert sink.ended
    assert taken == [0, 8]


def test_the_error_of_a_sink_is_kept():
    def work(frames):
        raise OSError("disk full")

    sink = LiveSink(work)
    until(lambda: sink.ended)
    sink.write(frame(0))
    with pytest.raises(OSError, match="disk full"):
        sink.finish()
