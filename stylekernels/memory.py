"""Recognition of errors that mean that memory ran out."""

import torch

# PyTorch has an exception class for GPUs only. On the CPU the name of the allocator identifies the
# error; the word "memory" alone also appears in messages about layouts and illegal accesses.
_ALLOCATORS = ("DefaultCPUAllocator:", "std::bad_alloc", "CUDA error: out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS)
