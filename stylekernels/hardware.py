"""Device, precision, threads and memory of a computation."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from stylekernels import native

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# PyTorch has an exception class for GPUs only. On the CPU the allocator's name identifies the
# error: the word "memory" also occurs in messages about layouts and illegal accesses.
_ALLOCATORS = ("DefaultCPUAllocator:", "std::bad_alloc", "CUDA error: out of memory")


def find_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: if PyTorch has no such device, or if it is a GPU and PyTorch finds none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected cpu, since PyTorch finds no GPU here, got {name!r}")
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the precision that networks run in by default: bfloat16 if the device has instructions
    that multiply in it, else float32. Training and inference share this rule.

    Emulated bfloat16 is slower than float32 and less exact. On the CPU our kernels run most of the
    arithmetic, so their capability decides, which may be lower than the CPU's
    (``STYLEKERNELS_CPU_CAPABILITY``). If they are not loaded, PyTorch's report of the CPU decides.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        if native.cpu_missing is None:
            fast = native.cpu_capability in ("avx512_bf16", "amx")
        else:
            cpu = torch.cpu.get_capabilities()
            fast = bool(cpu.get("amx_bf16") or cpu.get("avx512_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of PyTorch's threads on the CPU inside a ``with`` block, and restore it at the
    end. None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones, from now on.

    glibc's malloc returns large allocations to the system. New ones come page by page, filled with
    zeros: a tenth of a training step's time on a CPU. With other C libraries nothing changes.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions accept at most 32 MiB. Setting either threshold ends the automatic
        # adjustment of both, so M_TRIM_THRESHOLD alone would make things worse.
        if any(mallopt(_M_MMAP_THRESHOLD, most) for most in (1 << 30, 32 << 20)):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def memory_ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated, on the CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS)
