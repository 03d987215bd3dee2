"""Several processes that train one network, as torchrun starts them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist


class Processes:
    """The processes of a run. Every one has the same weights and a share of each batch.

    Attributes:
        rank: number of this process, from 0; 0 writes the files.
        count: of processes.

    Li et al., "PyTorch distributed: experiences on accelerating data parallel training", 2020.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @classmethod
    @contextmanager
    def joined(cls, device: str) -> Iterator["Processes"]:
        """Meet the other processes, if torchrun started this one, inside a ``with`` block.

        Args:
            device: ``cuda`` or ``cpu``; the processes of a machine share out its GPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            yield cls()
            return
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
        try:
            yield cls(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over the processes, all in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the largest of each value over the processes."""
        if self.count == 1:
            return [*values]
        found = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()
