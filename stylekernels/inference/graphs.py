"""A plan on a GPU: its launches recorded once for a size of frame, and frames on their way in and
out while another is computed."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Frames under way at once: one is computed while another comes in or goes out.
SLOTS = 2


@dataclass
class _Slot:
    """Places for one frame: on the device, and in memory of the host that the device can copy."""

    frames: Tensor
    picture: Tensor
    frames_on_host: Tensor
    picture_on_host: Tensor
    graph: torch.cuda.CUDAGraph | None
    came: torch.cuda.Event
    computed: torch.cuda.Event
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
        self._run = run
        self._device = device
        with torch.cuda.device(device):
            self._compute = torch.cuda.Stream()
            self._incoming, self._outgoing = torch.cuda.Stream(), torch.cuda.Stream()
            self._slots = [self._slot(shape) for _ in range(SLOTS)]
            self.captured = self._capture()
            torch.cuda.synchronize()

    def _slot(self, shape: tuple[int, int, int, int]) -> _Slot:
        def places(**options) -> list[Tensor]:
            return [torch.zeros(shape, dtype=torch.uint8, **options) for _ in range(2)]

        events = (torch.cuda.Event() for _ in range(3))
        return _Slot(*places(device=self._device), *places(pin_memory=True), None, *events)

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
        slot = self._slots[0]
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
        the last one goes out."""
        under_way: list[_Slot] = []
        for index, given in enumerate(frames):
            if len(under_way) == SLOTS:
                yield self._collect(under_way.pop(0))
            slot = self._slots[index % SLOTS]
            self._submit(slot, given)
            under_way.append(slot)
        while under_way:
            yield self._collect(under_way.pop(0))

    def _submit(self, slot: _Slot, frames: Tensor) -> None:
        slot.went.synchronize()  # a stream that nobody read to its end may have left copies
        slot.frames_on_host.copy_(frames)
        with torch.cuda.device(self._device):
            with torch.cuda.stream(self._incoming):
                slot.computed.wait()
                slot.frames.copy_(slot.frames_on_host, non_blocking=True)
                slot.came.record()
            with torch.cuda.stream(self._compute):
                slot.came.wait()
                self._replay(slot)
                slot.computed.record()
            with torch.cuda.stream(self._outgoing):
                slot.computed.wait()
                slot.picture_on_host.copy_(slot.picture, non_blocking=True)
                slot.went.record()

    def _replay(self, slot: _Slot) -> None:
        if slot.graph is not None:
            slot.graph.replay()
        else:
            self._launch(slot)

    def _collect(self, slot: _Slot) -> Tensor:
        slot.went.synchronize()
        return slot.picture_on_host.clone()
