"""Where a run computes: device, arithmetic, threads, memory."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

from stylekernels.training.errors import SettingError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """From here on this process keeps the memory of freed tensors for the next ones.

    glibc's malloc gives large blocks back to the system, which hands out others, page by page and
    filled with zeros: a tenth of a training step's time on a CPU. With other C libraries nothing
    changes.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions take no more than 32 MiB. Without a threshold for blocks, the other one
        # would make things worse: it ends the adjustment of both.
        if any(mallopt(_M_MMAP_THRESHOLD, most) for most in (1 << 30, 32 << 20)):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        SettingError: if PyTorch knows no such device, or it is a GPU that isn't there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device: expected cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device: expected cpu, as PyTorch sees no GPU here, got {name!r}")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; ``auto`` is bfloat16 where the device has instructions for it."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Inside, PyTorch uses this many threads on the CPU, or as many as before for None."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
