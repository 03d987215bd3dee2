"""Plans on a GPU: launches recorded in CUDA graphs, and copies that overlap with computation."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Frames of a stream in flight: one is computed while others are copied in or out.
SLOTS = 2


@dataclass
class _Slot:
    """Buffers for one frame on the device.

    Calls and streams take slots in turn. The events order their use: ``came`` after the frames are
    copied in, ``computed`` after the picture is computed, ``went`` after it is copied out.
    """

    frames: Tensor
    picture: Tensor
    came: torch.cuda.Event
    computed: torch.cuda.Event
    went: torch.cuda.Event
    graph: torch.cuda.CUDAGraph | None = None


@dataclass
class _HostSlot:
    """Buffers for one frame in pinned memory of the host. They belong to one stream of frames until
    it has taken the picture."""

    frames: Tensor
    picture: Tensor
    went: torch.cuda.Event


class FrameGraphs:
    """Runs a function of frames on a CUDA device by replaying its launches.

    A frame needs some 40 launches, which take the host longer than a small frame takes the device.
    A CUDA graph repeats them in one launch. If a graph cannot be captured, for example because
    another library forbids it, the function is called for each frame.

    Args:
        run: a function (frames, picture) that writes the picture. Both are channels_last views
            (N, 3, H, W) of bytes on the device. It must not allocate memory that outlives the call.
        shape: shape of the frames, (N, H, W, 3).
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
                _Slot(*self._buffers(device=device), *(torch.cuda.Event() for _ in range(3)))
                for _ in range(SLOTS)
            ]
            self._free: list[_HostSlot] = []
            self._used = 0  # the number of times that a slot was taken
            self.captured = self._capture()
            torch.cuda.synchronize()

    def _buffers(self, **options) -> list[Tensor]:
        return [torch.zeros(self._shape, dtype=torch.uint8, **options) for _ in range(2)]

    def _take_slot(self) -> _Slot:
        self._used += 1
        return self._slots[self._used % SLOTS]

    def _take_host_slot(self) -> _HostSlot:
        if self._free:
            return self._free.pop()
        with torch.cuda.device(self._device):
            return _HostSlot(*self._buffers(pin_memory=True), torch.cuda.Event())

    def _launch(self, slot: _Slot) -> None:
        self._run(slot.frames.permute(0, 3, 1, 2), slot.picture.permute(0, 3, 1, 2))

    def _capture(self) -> bool:
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            self._launch(self._slots[0])  # compiles the kernels
        self._compute.synchronize()
        try:
            # A failed capture leaves its stream current: the outer `with` restores the old one.
            # thread_local lets other threads allocate meanwhile.
            with torch.cuda.stream(torch.cuda.current_stream()):
                for slot in self._slots:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(
                        graph, stream=self._compute, capture_error_mode="thread_local"
                    ):
                        self._launch(slot)
                    slot.graph = graph
        except RuntimeError as error:
            warnings.warn(
                f"frames are launched one by one, not as a CUDA graph: {error}", stacklevel=2
            )
            for slot in self._slots:
                slot.graph = None
            return False
        return True

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the picture of frames (N, H, W, 3): a new tensor on their device (or the host)."""
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
        """Yield the pictures of frames on the host, in order.

        While one is computed, the next is copied in and the last is copied out. Several streams,
        and calls, may alternate.
        """
        in_flight: deque[_HostSlot] = deque()
        try:
            for given in frames:
                if len(in_flight) == SLOTS:
                    yield self._collect(in_flight.popleft())
                in_flight.append(self._take_host_slot())
                self._submit(in_flight[-1], given)
            while in_flight:
                yield self._collect(in_flight.popleft())
        finally:
            self._free += in_flight

    def _submit(self, host: _HostSlot, frames: Tensor) -> None:
        slot = self._take_slot()
        host.went.synchronize()  # a stream that was abandoned may have left copies in flight
        host.frames.copy_(frames)
        with torch.cuda.device(self._device):
            with torch.cuda.stream(self._incoming):
                slot.computed.wait()
                slot.frames.copy_(host.frames, non_blocking=True)
                slot.came.record()
            with torch.cuda.stream(self._compute):
                slot.came.wait()
                slot.went.wait()
                self._replay(slot)
                slot.computed.record()
            with torch.cuda.stream(self._outgoing):
                slot.computed.wait()
                host.picture.copy_(slot.picture, non_blocking=True)
                slot.went.record()
                host.went.record()

    def _replay(self, slot: _Slot) -> None:
        if slot.graph is not None:
            slot.graph.replay()
        else:
            self._launch(slot)

    def _collect(self, host: _HostSlot) -> Tensor:
        host.went.synchronize()
        picture = host.picture.clone()
        self._free.append(host)
        return picture
