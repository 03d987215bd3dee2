"""Checks of op arguments. A message names the argument, what was expected and what came."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_image_batch(x: Tensor, name: str = "x", ranks: tuple[int, ...] = (4,)) -> None:
    """``x`` must be a floating-point tensor (N, C, H, W), or (N, C, L) where rank 3 is allowed."""
    check_tensor(x, name)
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected dtype float32, bfloat16, float16 or float64, got {x.dtype}; "
            f"convert with {name}.float()"
        )
    if x.dim() not in ranks:
        shapes = " or ".join({3: "(N, C, L)", 4: "(N, C, H, W)"}[rank] for rank in ranks)
        remedy = f"; make it a batch of one with {name}[None]" if x.dim() == 3 else ""
        raise ValueError(f"{name}: expected shape {shapes}, got {tuple(x.shape)}{remedy}")


def check_tensor(tensor: object, name: str) -> None:
    """``tensor`` must be a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


def check_like(tensor: Tensor, name: str, x: Tensor) -> None:
    """``tensor`` must have the shape, dtype and device of ``x``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(tensor).__name__}")
    if tensor.shape != x.shape:
        raise ValueError(f"{name}: expected x's shape {tuple(x.shape)}, got {tuple(tensor.shape)}")
    check_dtype(tensor, name, x)
    check_device(tensor, name, x)


def check_dtype(tensor: Tensor, name: str, x: Tensor) -> None:
    """``tensor`` must have x's dtype."""
    if tensor.dtype != x.dtype:
        raise TypeError(
            f"{name}: expected x's dtype {x.dtype}, got {tensor.dtype}; "
            f"convert with {name}.to(x.dtype)"
        )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to convolutions of ``x``; None where it is off."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def fits(tensor: Tensor, *shapes: tuple[int, ...]) -> bool:
    """Whether ``tensor`` has one of these shapes. Only those of its rank are looked at: Python
    compares tuples from the left, and a batch of any size held against a number of channels is a
    guard for torch.export."""
    return any(tensor.shape == shape for shape in shapes if len(shape) == tensor.dim())


def check_per_channel(tensor: Tensor, name: str, x: Tensor, *, channels: int | None = None) -> None:
    """``tensor`` must be (C,) or (N, C), in x's dtype or float32, on x's device. C is x's own
    unless ``channels`` says otherwise."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(tensor).__name__}")
    n, c = x.shape[0], x.shape[1] if channels is None else channels
    if not fits(tensor, (c,), (n, c)):
        raise ValueError(
            f"{name}: expected shape (C,) = ({c},) or (N, C) = ({n}, {c}), "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.dtype != x.dtype and tensor.dtype != torch.float32:
        or_float32 = "" if x.dtype == torch.float32 else " or torch.float32"
        raise TypeError(
            f"{name}: expected x's dtype {x.dtype}{or_float32}, got {tensor.dtype}; "
            f"convert with {name}.to(x.dtype)"
        )
    check_device(tensor, name, x)


def check_device(tensor: Tensor, name: str, x: Tensor) -> None:
    """``tensor`` must be on x's device."""
    if tensor.device != x.device:
        raise ValueError(
            f"{name}: expected x's device {x.device}, got {tensor.device}; "
            f"move it with {name}.to(x.device)"
        )


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """``value`` must be one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def dense_like(x: Tensor) -> Tensor:
    """An uninitialised tensor for a result in x's layout: channels_last for channels_last ``x``,
    contiguous for everything else (views with gaps included)."""
    channels_last = x.dim() == 4 and not x.is_contiguous()
    if channels_last and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x, memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
