"""The dtype that results which are no images come in, and autocast on each type of device."""

import contextlib

import torch
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over ``x`` (statistics, Gram matrices, losses): float32, but float64 for
    float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def knows_autocast(device_type: str) -> bool:
    """Whether PyTorch can be asked for autocast on this type of device: on ``meta`` it fails."""
    if torch.compiler.is_compiling():  # PyTorch 2.11 can't trace the question below
        return device_type != "meta"
    return torch.amp.is_autocast_available(device_type)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A context without autocast, for formulas whose dtypes are chosen."""
    if not knows_autocast(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
