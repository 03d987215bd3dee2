"""Telling that memory ran out from other errors."""

import torch

# PyTorch has a class for GPUs alone. Its own word for tensors, "memory", is in many other errors.
_ALLOCATORS = ("DefaultCPUAllocator:", "std::bad_alloc", "CUDA error: out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS)
