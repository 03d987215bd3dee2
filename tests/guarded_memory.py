"""Memory around a tensor, guarded by AddressSanitizer (`make sanitize`)."""

import ctypes

from torch import Tensor

_poison = getattr(ctypes.CDLL(None), "__asan_poison_memory_region", None)


def guard(buffer: Tensor, begin: int, end: int) -> None:
    """Let AddressSanitizer report accesses to elements of ``buffer``, a whole allocation of rank
    1, before ``begin`` and from ``end`` on, until it is freed. Do nothing without it."""
    if _poison is None or not buffer.is_cpu:
        return
    address, size = buffer.data_ptr(), buffer.element_size()
    for first, last in ((0, begin), (end, buffer.numel())):
        _poison(ctypes.c_void_p(address + first * size), ctypes.c_size_t((last - first) * size))
