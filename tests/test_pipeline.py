"""The pipeline: order, overlap, bounded queues, and its end after errors and Ctrl-C."""

import signal
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from stylekernels.media.frames import Frame
from stylekernels.media.pipeline import run_pipeline
from stylekernels.media.stages import Channel


def frames(count, start=0):
    for i in range(start, start + count):
        yield Frame(np.full((2, 3, 3), i % 251, np.uint8), Fraction(i, 25), Fraction(1, 25))


class List:
    """A sink that keeps what it gets."""

    def __init__(self, fail_at=None):
        self.items, self.finished, self._fail_at = [], 0, fail_at
        self.threads = set()

    def write(self, item):
        if len(self.items) == self._fail_at:
            raise OSError("disk full")
        self.items.append(item)
        self.threads.add(threading.get_ident())

    def finish(self):
        self.finished += 1
        self.threads.add(threading.get_ident())

    @property
    def values(self):
        return [item.rgb[0, 0, 0] if isinstance(item, Frame) else item for item in self.items]


def invert(rgb):
    return 255 - rgb


def test_frames_are_painted_and_everything_else_passes_in_order():
    first, second = frames(2)
    sink, painted = List(), []
    run_pipeline(
        ["a", first, "b", "c", second, "d"], invert, sink, painted=lambda: painted.append(1)
    )
    assert sink.values == ["a", 255, "b", "c", 254, "d"]
    assert [item.time for item in sink.items if isinstance(item, Frame)] == [0, Fraction(1, 25)]
    assert len(painted) == 2
    assert sink.finished == 1


def test_the_painter_has_the_calling_thread_and_the_others_one_each():
    readers, painters = set(), set()

    def source():
        for frame in frames(5):
            readers.add(threading.get_ident())
            yield frame

    def paint(rgb):
        painters.add(threading.get_ident())
        return rgb

    sink = List()
    run_pipeline(source(), paint, sink)
    assert painters == {threading.get_ident()}
    assert len(readers) == len(sink.threads) == 1
    assert not painters & readers | painters & sink.threads | readers & sink.threads


def test_an_endless_source_waits_for_the_painter():
    """No more is read ahead than the queue holds, and the reader ends with the painter."""
    read, ends, most = [0], [], 0
    before = threading.active_count()

    def source():
        try:
            for frame in frames(10**9):
                read[0] += 1
                yield frame
        finally:
            ends.append(1)

    done = 0

    def paint(rgb):
        nonlocal done, most
        if done == 30:
            raise KeyboardInterrupt
        time.sleep(0.002)
        most = max(most, read[0] - done)
        done += 1
        return rgb

    sink = List()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(source(), paint, sink, ahead=3)
    assert most <= 3 + 2  # one is being painted, one waits to be put
    assert sink.values == [*range(30)]
    assert sink.finished == 1
    for _ in range(100):  # a thread needs a moment to end after its last line
        if threading.active_count() > before:
            time.sleep(0.01)
    assert threading.active_count() == before


def test_source_painter_and_sink_overlap():
    """Three stages of 5 ms, 30 frames: 150 ms and not 450."""

    def source():
        for frame in frames(30):
            time.sleep(0.005)
            yield frame

    class Slow(List):
        def write(self, item):
            time.sleep(0.005)
            super().write(item)

    def paint(rgb):
        time.sleep(0.005)
        return rgb

    best = min(timed(lambda: run_pipeline(source(), paint, Slow())) for _ in range(3))
    assert best < 0.35


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_an_error_of_the_source_comes_after_its_frames():
    def source():
        yield from frames(3)
        raise ValueError("damaged")

    sink = List()
    with pytest.raises(ValueError, match="damaged"):
        run_pipeline(source(), invert, sink)
    assert len(sink.items) == 3
    assert sink.finished == 1


def test_an_error_of_the_sink_ends_everything():
    sink = List(fail_at=4)
    with pytest.raises(OSError, match="disk full"):
        run_pipeline(frames(10**9), invert, sink)
    assert len(sink.items) == 4
    assert sink.finished == 1


def test_an_error_of_the_sink_is_not_hidden_by_ctrl_c():
    class Broken(List):
        def finish(self):
            raise OSError("disk full")

    def paint(rgb):
        raise KeyboardInterrupt

    with pytest.raises(OSError, match="disk full"):
        run_pipeline(frames(3), paint, Broken())


def test_a_second_ctrl_c_waits_until_the_sink_is_finished():
    sink = List()
    main = threading.main_thread().ident

    def finish():
        for _ in range(2):
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.02)
        List.finish(sink)

    sink.finish = finish
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(frames(3), invert, sink)
    assert len(sink.items) == 3
    assert sink.finished == 1


def test_a_closed_channel_gives_what_it_holds_and_takes_no_more():
    channel = Channel(2)
    assert channel.put(1)
    assert channel.put(2)
    channel.close()
    assert not channel.put(3)
    assert [*channel] == [1, 2]
