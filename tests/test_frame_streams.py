"""Streams of frames that alternate on one GPU, with calls between them, on a stand-in for
torch.cuda. Its streams run in any order that their events allow."""

import contextlib
import itertools
import random
import types

import pytest
import torch
from torch import Tensor

from stylekernels.inference import graphs
from stylekernels.inference.graphs import FrameGraphs


class Simulation:
    """Streams of work that is done in random order, and only when somebody waits for it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.streams: list[Stream] = []
        self.current = self.new_stream()

    def new_stream(self) -> "Stream":
        self.streams.append(Stream(self))
        return self.streams[-1]

    @contextlib.contextmanager
    def use(self, stream: "Stream"):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def finish(self, stream: "Stream", count: int) -> None:
        """Run streams until one has done this much of its work."""
        while stream.done < count:
            able = [s for s in self.streams if s.can_go_on()]
            self.random.choices(able, [s.speed for s in able])[0].go_on()


class Stream:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.work: list = []  # functions, and pairs of a stream to wait for and its amount of work
        self.done = 0
        self.speed = 10.0 ** simulation.random.uniform(-3, 0)

    def can_go_on(self) -> bool:
        if self.done == len(self.work):
            return False
        first = self.work[self.done]
        return callable(first) or first[0].done >= first[1]

    def go_on(self) -> None:
        first = self.work[self.done]
        if callable(first):
            first()
        self.done += 1

    def wait_stream(self, other: "Stream") -> None:
        self.work.append((other, len(other.work)))

    def synchronize(self) -> None:
        self.simulation.finish(self, len(self.work))


class Event:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.recorded = None

    def record(self) -> None:
        stream = self.simulation.current
        self.recorded = stream, len(stream.work)

    def wait(self) -> None:
        if self.recorded is not None:
            self.simulation.current.work.append(self.recorded)

    def synchronize(self) -> None:
        if self.recorded is not None:
            self.simulation.finish(*self.recorded)


class FakeTensor:
    """A tensor of the device, or of the host in memory that the device can copy."""

    def __init__(self, simulation: Simulation, tensor: Tensor, on_host: bool) -> None:
        self.simulation, self.tensor, self.on_host = simulation, tensor, on_host
        self.device = types.SimpleNamespace(type="cpu" if on_host else "cuda")

    def permute(self, *axes: int) -> "FakeTensor":
        return FakeTensor(self.simulation, self.tensor.permute(*axes), self.on_host)

    def copy_(self, source, non_blocking: bool = False) -> None:
        given = source.tensor if isinstance(source, FakeTensor) else source
        if self.on_host and not non_blocking:
            self.tensor.copy_(given)
        else:
            self.simulation.current.work.append(lambda: self.tensor.copy_(given))

    def clone(self):
        if self.on_host:
            return self.tensor.clone()
        copy = FakeTensor(self.simulation, torch.zeros_like(self.tensor), False)
        copy.copy_(self)
        return copy


def negative(given: FakeTensor, picture: FakeTensor) -> None:
    """Two launches with a tensor between them that belongs to the plan."""
    work = given.simulation.current.work
    work.append(lambda: negative.between.copy_(given.tensor))
    work.append(lambda: picture.tensor.copy_(255 - negative.between))


@pytest.fixture(params=range(20))
def simulation(request, monkeypatch) -> Simulation:
    simulation = Simulation(request.param)

    def zeros(shape, dtype, device=None, pin_memory=False) -> FakeTensor:
        return FakeTensor(simulation, torch.zeros(shape, dtype=dtype), pin_memory)

    @contextlib.contextmanager
    def no_capture(graph, stream, capture_error_mode):
        raise RuntimeError("not here")
        yield

    cuda = types.SimpleNamespace(
        Stream=simulation.new_stream,
        Event=lambda: Event(simulation),
        CUDAGraph=object,
        graph=no_capture,
        device=lambda _: contextlib.nullcontext(),
        stream=simulation.use,
        current_stream=lambda: simulation.current,
        synchronize=lambda: [stream.synchronize() for stream in simulation.streams],
    )
    fake = types.SimpleNamespace(cuda=cuda, zeros=zeros, uint8=torch.uint8)
    monkeypatch.setattr(graphs, "torch", fake)
    monkeypatch.setattr(negative, "between", torch.zeros(1, 3, 2, 2), raising=False)
    return simulation


pytestmark = pytest.mark.filterwarnings("ignore:frames are launched one by one")


@pytest.fixture
def run(simulation) -> FrameGraphs:
    return FrameGraphs(negative, (1, 2, 2, 3), "cuda")


def frame(value: int) -> Tensor:
    return torch.full((1, 2, 2, 3), value, dtype=torch.uint8)


def values(pictures) -> list[int]:
    found = []
    for picture in pictures:
        assert picture.unique().numel() == 1
        found.append(255 - int(picture.unique()))
    return found


def test_two_streams_that_take_turns(run) -> None:
    first, second = range(1, 8), range(101, 108)
    pairs = zip(run.stream(map(frame, first)), run.stream(map(frame, second)), strict=True)
    pictures = [picture for pair in pairs for picture in pair]
    assert values(pictures[::2]) == list(first)
    assert values(pictures[1::2]) == list(second)


def test_streams_of_other_lengths_and_speeds(run, simulation) -> None:
    expected = {
        begin: list(range(begin, begin + length))
        for begin, length in ((1, 9), (51, 3), (101, 1), (151, 6))
    }
    streams = {begin: run.stream(map(frame, of)) for begin, of in expected.items()}
    found = {begin: [] for begin in expected}
    while streams:
        begin = simulation.random.choice(list(streams))
        try:
            found[begin] += values([next(streams[begin])])
        except StopIteration:
            del streams[begin]
    assert found == expected


def test_calls_inside_a_stream(run, simulation) -> None:
    """With frames of the host and of the device, made just before the call."""
    made, on_device, found = iter(range(101, 200)), [], []

    def call(times: int) -> None:
        for value in itertools.islice(made, times):
            given = FakeTensor(simulation, frame(0), on_host=False)
            given.copy_(frame(value))
            on_device.append((value, run(given)))

    def source():
        for value in range(1, 8):
            yield frame(value)
            if value == 3:
                assert values([run(frame(50))]) == [50]
            call(simulation.random.randrange(3))

    for picture in run.stream(source()):
        found += values([picture])
        call(simulation.random.randrange(4))
    assert found == list(range(1, 8))
    simulation.current.synchronize()
    assert [values([picture.tensor]) for _, picture in on_device] == [[v] for v, _ in on_device]


def test_a_stream_over_the_pictures_of_another(run) -> None:
    assert values(255 - p for p in run.stream(run.stream(map(frame, range(9))))) == list(range(9))


def test_a_stream_that_nobody_reads_to_its_end(run) -> None:
    """Its buffers go to the next one, with copies in flight."""
    for _ in range(5):
        left = run.stream(map(frame, range(200, 210)))
        next(left)
        left.close()
        assert values(run.stream(map(frame, range(5)))) == list(range(5))
    assert len(run._free) <= graphs.SLOTS


def test_a_source_that_fails(run) -> None:
    def source():
        yield frame(1)
        raise OSError("no more frames")

    with pytest.raises(OSError, match="no more frames"):
        next(run.stream(source()))
    assert values(run.stream(map(frame, range(5)))) == list(range(5))
