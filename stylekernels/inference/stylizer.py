"""The Stylizer, which turns frames into stylised frames."""

import copy
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stylekernels.hardware import fast_dtype
from stylekernels.inference.graphs import FrameGraphs
from stylekernels.inference.layers import can_plan, layers_of
from stylekernels.inference.plan import Plan, pack
from stylekernels.inference.sweep import Progress, Work
from stylekernels.inference.tiling import Tiler, check_tiling
from stylekernels.models.generator import check_size
from stylekernels.ops.dispatch import choose
from stylekernels.ops.forcing import use_impl
from stylekernels.tensors import DTYPES

_FLAT_SIDE = 32  # pixels of a frame of one colour that are painted
_SAMPLES = 48  # pixels of the longer side from which a mean colour is estimated

Frames = TypeVar("Frames", np.ndarray, Tensor)


class Stylizer:
    """Stylises 8-bit frames with a generator.

    A ``StyleGenerator`` runs as a plan: one `norm_conv2d` per convolution, with packed weights and
    preallocated memory for all intermediate tensors. A new size of frame makes a new plan; frames
    of the same size allocate only the picture. Under ``use_impl("reference")``, on devices without
    kernels and for other modules the network itself runs. A Stylizer makes one picture at a time:
    use one per thread.

    Args:
        generator: maps RGB in [0, 1], (N, 3, H, W), to the same, as ``StyleGenerator`` does. It is
            copied: training it further has no effect here.
        dtype: dtype of the network's arithmetic; by default bfloat16 on a GPU with instructions for
            it and on a CPU with AMX or AVX512-BF16, else float32.
        device: the device that the network runs on; by default the generator's.
        tile: pixels a side. Larger images are stylised in tiles of this size, in bounded memory.
            None: images are never divided.
        tile_mode: ``exact`` gives the same picture as without tiles; ``thumbnail`` gives a similar
            one in a fraction of the time: see `Tiler`.

    Raises:
        TypeError: if tile is not an int, or dtype not a floating-point dtype of torch.
        ValueError: if tile is below 64, if there is no such mode, or if this network cannot be run
            in tiles.
    """

    def __init__(
        self,
        generator: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        tile: int | None = None,
        tile_mode: str = "exact",
    ) -> None:
        check_tiling(tile, tile_mode)
        if tile is not None and not can_plan(generator):
            raise ValueError(
                f"tile: expected None for this network, got {tile}; tiles need an unmodified "
                "StyleGenerator with kernels of at most 9, whose instance norms can be given the "
                "statistics of the whole image"
            )
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(
                f"dtype: expected None or one of {', '.join(map(str, DTYPES))}, got {dtype!r}"
            )
        if device is None:
            device = next(generator.parameters(), torch.empty(0)).device
        self.device = torch.device(device)
        self.dtype = fast_dtype(self.device) if dtype is None else dtype
        network = copy.deepcopy(generator).eval().requires_grad_(False).to(self.device)
        # The device with its index, since the GPU that "cuda" names may change.
        self.device = next(network.parameters(), torch.empty(0, device=self.device)).device
        self._layers = layers_of(network, self.dtype) if can_plan(network) else None
        self._centering = self._center_by_bias()
        self._generator = network.to(self.dtype, memory_format=torch.channels_last)
        self._packed: list[Tensor] = []
        self._packed_for: str | None = None
        self._plan: Plan | FrameGraphs | None = None
        self._planned_for: tuple[int, ...] | None = None
        self._tile, self._tile_mode = tile, tile_mode

    @torch.no_grad()
    def __call__(self, frames: Frames, *, progress: Progress | None = None) -> Frames:
        """Stylise one frame or a batch.

        Args:
            frames: (H, W, 3) or (N, H, W, 3) uint8, RGB; a NumPy array, or a tensor on any device.
            progress: a function (done, total) that is called after each tile, if there are tiles.

        Returns:
            New frames of the same kind, shape and device.

        Raises:
            TypeError: if frames has another kind or dtype.
            ValueError: if frames has another shape, or fewer pixels a side than the generator
                takes.
        """
        given = as_frames("frames", frames)
        batch = (given if given.dim() == 4 else given[None]).contiguous()
        used = self._implementation()
        tiled = self._tile is not None and max(batch.shape[1:3]) > self._tile
        if used == "reference" and not tiled:
            y = self._run_network(batch)
        else:
            check_size("frames", *batch.shape[1:3])
            if self.device.type == "cuda" and not tiled:
                y = self._plan_for(batch.shape[:3], used)(batch)
            else:
                y = self._paint_one_by_one(batch.to(self.device), used, tiled, progress)
        y = y.view(given.shape).to(given.device)
        return y.numpy() if isinstance(frames, np.ndarray) else y

    def stream(self, frames: Iterable[Frames]) -> Iterator[Frames]:
        """Stylise the frames of a video in order.

        On a GPU one frame is computed while the next one is copied to it and the last one back. A
        picture is yielded after the next two frames were taken. On other devices this is the same
        as calling the Stylizer on each frame.

        Args:
            frames: as for a call; sizes may change.

        Yields:
            The pictures, in order, of the frames' kind and shape, in the host's memory.

        Raises:
            TypeError, ValueError: as for a call.
        """
        used = self._implementation()
        if self.device.type != "cuda" or self._tile is not None or used == "reference":
            yield from map(self, frames)
            return
        arrays: deque[bool] = deque()  # for each frame in flight: whether it is a NumPy array

        def tensors() -> Iterator[Tensor]:
            for frame in frames:
                tensor = as_frames("frames", frame)
                arrays.append(isinstance(frame, np.ndarray))
                yield tensor

        for shape, group in itertools.groupby(tensors(), key=lambda tensor: tensor.shape):
            size = torch.Size((1, *shape))[-4:]
            check_size("frames", *size[1:3])
            pictures = self._plan_for(size[:3], used).stream(tensor.view(size) for tensor in group)
            for picture in pictures:
                picture = picture.view(shape)
                yield picture.numpy() if arrays.popleft() else picture

    @torch.inference_mode(False)  # the bias may be written outside of inference mode
    def _center_by_bias(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Give the first layer a bias, which :meth:`_center` sets, if that changes no picture.

        Returns:
            Minus the sums of the kernels, (Cout, 3) float64, and memory for a colour and a bias;
            None if there is no such bias.
        """
        if self._layers is None or self.device.type != "cpu":
            return None
        first = self._layers[0]
        if first.norm is None or first.bias is not None or first.padding_mode == "zeros":
            return None
        bias = torch.zeros(first.out_channels, dtype=first.norm[0].dtype)
        self._layers[0] = dataclasses.replace(first, bias=bias)
        sums = -first.weight.double().sum((2, 3))
        return sums, sums.new_empty(3), sums.new_empty(len(sums))

    def _center(self, frame: Tensor) -> None:
        """Subtract the mean colour of a frame, (1, H, W, 3), from what the first layer convolves.

        The instance norm cancels it again. Without it the output has a mean that grows with the
        brightness, and is rounded relative to that: frames of little contrast drown in rounding.
        """
        if self._centering is not None:
            sums, mean, bias = self._centering
            step = max(1, max(frame.shape[1:3]) // _SAMPLES)
            mean.numpy()[:] = frame[:, ::step, ::step].numpy(force=True).mean((0, 1, 2))
            self._layers[0].bias.copy_(torch.mv(sums, mean, out=bias))

    def _paint_one_by_one(
        self, batch: Tensor, used: str, tiled: bool, progress: Progress | None
    ) -> Tensor:
        """Stylise frames (N, H, W, 3) by plans or tiles, one by one: mean colours differ."""
        y = torch.empty_like(batch)
        if self.device.type == "cpu" and used != "reference":
            flat = is_flat(batch.numpy())
        else:
            flat = np.zeros(len(batch), bool)
        work = Work(len(flat) - int(flat.sum()), progress)
        for frame, picture, one_color in zip(batch[:, None], y[:, None], flat, strict=True):
            if one_color:
                picture.copy_(self._flat_picture(frame))
                continue
            self._center(frame)
            x, z = frame.permute(0, 3, 1, 2), picture.permute(0, 3, 1, 2)  # channels_last: no copy
            if tiled:
                Tiler(self._layers, self._pack(used), self._tile, self._tile_mode)(x, z, work)
            else:
                self._plan_for(frame.shape[:3], used)(x, z)
        return y

    def _run_network(self, batch: Tensor) -> Tensor:
        """Stylise frames (N, H, W, 3) by the network itself."""
        x = batch.to(self.device).permute(0, 3, 1, 2)
        y = self._generator(x.to(self.dtype).div_(255))
        y = y.float().mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        return y.permute(0, 2, 3, 1).contiguous()

    def _flat_picture(self, frame: Tensor) -> Tensor:
        """Stylise a frame of one colour, (1, H, W, 3).

        Every plane of the network is constant then. The kernels' rounding depends on the place in a
        tile, and an instance norm would divide it by the square root of eps: a pattern of full
        contrast. Plain sums have the same rounding everywhere.
        """
        _, height, width, _ = frame.shape
        check_size("frames", height, width)
        with use_impl("reference"):
            small = self._run_network(frame[:, :_FLAT_SIDE, :_FLAT_SIDE])
        return small[:, :1, :1].expand(1, height, width, 3).contiguous()

    def _implementation(self) -> str:
        """Return the implementation of a plan; ``reference`` if the network itself runs."""
        return "reference" if self._layers is None else choose("norm_conv2d", self.device.type)

    @torch.inference_mode(False)  # the plan's tensors may be used outside of inference mode
    @torch.no_grad()
    def _plan_for(self, size: torch.Size, used: str) -> Plan | FrameGraphs:
        """Return the plan for frames (N, H, W), an implementation and the number of threads."""
        wanted = (*size, torch.get_num_threads(), used)
        if wanted != self._planned_for:
            self._plan = self._planned_for = None  # free its memory for the next plan
            plan = Plan(self._layers, self._pack(used), *size)
            if self.device.type == "cuda":
                plan = FrameGraphs(plan, (*size, 3), self.device)
            self._plan, self._planned_for = plan, wanted
        return self._plan

    def _pack(self, used: str) -> list[Tensor]:
        """Return the packed weights, whose layout depends on the implementation."""
        if self._packed_for != used:
            self._packed, self._packed_for = pack(self._layers), used
        return self._packed


def is_flat(frames: np.ndarray) -> np.ndarray:
    """Return for each of several frames, (N, H, W, 3), whether it has one colour; (N,) bool."""
    first = frames[:, :1, :1]
    # Few frames need a look at all of their pixels.
    found = (frames[:, ::31, ::29] == first).all((1, 2, 3))
    return (frames == first).all((1, 2, 3)) if found.any() else found


def as_frames(name: str, frames: np.ndarray | Tensor) -> Tensor:
    """Check frames, and return them as a tensor that shares their memory if possible.

    Raises:
        TypeError: if frames is not a NumPy array or tensor of uint8.
        ValueError: if its shape is not (H, W, 3) or (N, H, W, 3).
    """
    if not isinstance(frames, np.ndarray | Tensor):
        raise TypeError(
            f"{name}: expected a NumPy array or a torch tensor, got {type(frames).__name__}"
        )
    if frames.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{name}: expected uint8, got {frames.dtype}")
    if frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise ValueError(
            f"{name}: expected RGB frames (H, W, 3) or (N, H, W, 3), got {tuple(frames.shape)}"
        )
    if isinstance(frames, Tensor):
        return frames
    # PyTorch supports neither negative strides (mirrored views have them) nor read-only memory.
    shareable = all(stride >= 0 for stride in frames.strides) and frames.flags.writeable
    return torch.from_numpy(frames if shareable else frames.copy())
