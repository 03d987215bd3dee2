"""A plan on a GPU: its launches recorded once for a size of frame, and frames on their way in and
out while another is computed."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Frames of a stream under way at once: one is computed while another comes in or goes out.
SLOTS = 2


@dataclass
class _Slot:
    """Places for one frame on the device. Whoever comes next takes the next slot: the events keep
    a frame there until it has been used."""

    frames: Tensor
    picture: Tensor
    came: torch.cuda.Event
    computed: torch.cuda.Event
    went: torch.cuda.Event
    graph: torch.cuda.CUDAGraph | None = None


@dataclass
class _OnHost:
    """Places for one frame in memory of the host that the device can copy. They belong to one
    stream of frames until it has taken the picture."""

    frames: Tensor
    picture: Tensor
    went: torch.cuda.Event


class FrameGraphs:
    """Runs a function of frames on a CUDA device by replaying what it launched.

    Some 40 launches a frame take the host longer than the device takes for a small one; a CUDA
    graph repeats them for one. Where a graph can't be captured (another library forbids it, say),
    the function is called instead.

    Args:
        run: writes the picture of frames, both channels_last views (N, 3, H, W) of bytes on the
            device; allocates nothing that must live on.
        shape: of the frames, (N, H, W, 3).
        device: a CUDA device.

    Attributes:
        captured: whether graphs are replayed.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], None],
        shape: tuple[int, int, int, int],
        device: torch.device,
    ) -> None:
        self._run, self._shape, self._device = run, shape, device
        with torch.cuda.device(device):
            self._compute = torch.cuda.Stream()
            self._incoming, self._outgoing = torch.cuda.Stream(), torch.cuda.Stream()
            self._slots = [
                _Slot(*self._places(device=device), *(torch.cuda.Event() for _ in range(3)))
                for _ in range(SLOTS)
            ]
            self._free: list[_OnHost] = []
            self._used = 0  # slots so far, those taken again counted again
            self.captured = self._capture()
            torch.cuda.synchronize()

    def _places(self, **options) -> list[Tensor]:
        return [torch.zeros(self._shape, dtype=torch.uint8, **options) for _ in range(2)]

    def _take_slot(self) -> _Slot:
        self._used += 1
        return self._slots[self._used % SLOTS]

    def _take_on_host(self) -> _OnHost:
        if self._free:
            return self._free.pop()
        with torch.cuda.device(self._device):
            return _OnHost(*self._places(pin_memory=True), torch.cuda.Event())

    def _launch(self, slot: _Slot) -> None:
        self._run(slot.frames.permute(0, 3, 1, 2), slot.picture.permute(0, 3, 1, 2))

    def _capture(self) -> bool:
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            self._launch(self._slots[0])  # compiles what will be launched
        self._compute.synchronize()
        try:
            # A failed capture leaves its stream the current one: the outer block mends that.
            # thread_local: other threads may go on allocating.
            with torch.cuda.stream(torch.cuda.current_stream()):
                for slot in self._slots:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(
                        graph, stream=self._compute, capture_error_mode="thread_local"
                    ):
                        self._launch(slot)
                    slot.graph = graph
        except RuntimeError as error:
            warnings.warn(f"frames are launched one by one, not as a CUDA graph: {error}",
                          stacklevel=2)  # fmt: skip
            for slot in self._slots:
                slot.graph = None
            return False
        return True

    def __call__(self, frames: Tensor) -> Tensor:
        """The picture of frames (N, H, W, 3), a new tensor where the frames are: on the host or on
        the device."""
        if frames.device.type == "cpu":
            return next(self.stream([frames]))
        slot = self._take_slot()
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._compute.wait_stream(current)
            with torch.cuda.stream(self._compute):
                slot.went.wait()
                slot.frames.copy_(frames)
                self._replay(slot)
                slot.computed.record()
            current.wait_stream(self._compute)
            picture = slot.picture.clone()
            self._compute.wait_stream(current)  # the next frame must not overtake the copy
        return picture

    def stream(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pictures of frames on the host, in order; while one is computed the next one comes in and
        the last one goes out. Streams may take turns, with calls between them."""
        under_way: deque[_OnHost] = deque()
        try:
            for given in frames:
                if len(under_way) == SLOTS:
                    yield self._collect(under_way.popleft())
                under_way.append(self._take_on_host())
                self._submit(under_way[-1], given)
            while under_way:
                yield self._collect(under_way.popleft())
        finally:
            self._free += under_way

    def _submit(self, on_host: _OnHost, frames: Tensor) -> None:
        slot = self._take_slot()
        on_host.went.synchronize()  # a stream that nobody read to its end may have left copies
        on_host.frames.copy_(frames)
        with torch.cuda.device(self._device):
            with torch.cuda.stream(self._incoming):
                slot.computed.wait()
                slot.frames.copy_(on_host.frames, non_blocking=True)
                slot.came.record()
            with torch.cuda.stream(self._compute):
                slot.came.wait()
                slot.went.wait()
                self._replay(slot)
                slot.computed.record()
            with torch.cuda.stream(self._outgoing):
                slot.computed.wait()
                on_host.picture.copy_(slot.picture, non_blocking=True)
                slot.went.record()
                on_host.went.record()

    def _replay(self, slot: _Slot) -> None:
        if slot.graph is not None:
            slot.graph.replay()
        else:
            self._launch(slot)

    def _collect(self, on_host: _OnHost) -> Tensor:
        on_host.went.synchronize()
        picture = on_host.picture.clone()
        self._free.append(on_host)
        return picture
