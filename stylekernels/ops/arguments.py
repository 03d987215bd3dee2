"""Checks of op arguments. A message names the argument, what was expected and what was given."""

import numbers
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from stylekernels.tensors import DTYPES, knows_autocast

#: Kernel sizes that each mode of `norm_conv2d` takes, in words and as a predicate.
CONV_KERNELS = {
    "none": ("k from 1 to 9", lambda k: 1 <= k <= 9),
    "nearest": ("k = 3, 5, 7 or 9", lambda k: 3 <= k <= 9 and k % 2 == 1),
    "transpose": ("k = 3 or 4", lambda k: k in (3, 4)),
}


_SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


def check_image_batch(x: Tensor, name: str = "x", ranks: tuple[int, ...] = (4,)) -> None:
    """``x`` must be a floating-point tensor of one of these ranks: (N, C, L), (N, C, H, W) or
    (N, C, D, H, W)."""
    check_floating(x, name)
    if x.dim() not in ranks:
        shapes = " or ".join(_SHAPES[rank] for rank in ranks)
        remedy = f"; make it a batch of one with {name}[None]" if x.dim() + 1 in ranks else ""
        raise ValueError(f"{name}: expected shape {shapes}, got {tuple(x.shape)}{remedy}")


def check_channels(x: Tensor, name: str = "x", rank: int = 2) -> None:
    """``x`` must be a floating-point tensor (N, C, ...) with at least ``rank`` dimensions."""
    check_floating(x, name)
    if x.dim() < rank:
        raise ValueError(
            f"{name}: expected shape (N, C, ...) of {rank} dimensions or more, got {tuple(x.shape)}"
        )


def check_floating(x: Tensor, name: str) -> None:
    """``x`` must be a tensor of a floating-point dtype."""
    check_tensor(x, name)
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected dtype float32, bfloat16, float16 or float64, got {x.dtype}; "
            f"convert with {name}.float()"
        )


def check_tensor(tensor: object, name: str) -> None:
    """``tensor`` must be a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


def check_not_empty(x: Tensor, name: str) -> None:
    """``x`` must have a value."""
    if x.numel() == 0:
        raise ValueError(f"{name}: expected at least one value, got shape {tuple(x.shape)}")


def check_has_planes(x: Tensor, name: str = "x") -> None:
    """``x`` must have a channel and a pixel; the batch may be empty."""
    if 0 in x.shape[1:]:
        raise ValueError(
            f"{name}: expected at least one channel and one pixel, got {tuple(x.shape)}"
        )


def check_like(tensor: Tensor, name: str, x: Tensor) -> None:
    """``tensor`` must have the shape, dtype and device of ``x``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(tensor).__name__}")
    if tensor.shape != x.shape:
        raise ValueError(f"{name}: expected x's shape {tuple(x.shape)}, got {tuple(tensor.shape)}")
    check_dtype(tensor, name, x)
    check_device(tensor, name, x)


def check_dtype(
    tensor: Tensor, name: str, x: Tensor, of: str = "x", *, or_float32: bool = False
) -> None:
    """``tensor`` must have the dtype of ``x``, which messages call ``of``, or float32 if
    ``or_float32``."""
    if tensor.dtype != x.dtype and not (or_float32 and tensor.dtype == torch.float32):
        other = " or torch.float32" if or_float32 and x.dtype != torch.float32 else ""
        raise TypeError(
            f"{name}: expected {of}'s dtype {x.dtype}{other}, got {tensor.dtype}; "
            f"convert with {name}.to({of}.dtype)"
        )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives to convolutions of ``x``; None if it is off."""
    device = x.device.type
    if not knows_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def fits(tensor: Tensor, *shapes: tuple[int, ...]) -> bool:
    """Return whether ``tensor`` has one of these shapes.

    Only shapes of the same rank are compared. Python compares tuples from the left: comparing a
    dynamic batch size with a number of channels would become a guard in torch.export.
    """
    own = tensor.shape
    for shape in shapes:  # noqa: SIM110 (any() with a generator takes a microsecond)
        if len(shape) == len(own) and own == shape:
            return True
    return False


def check_per_channel(tensor: Tensor, name: str, x: Tensor, *, channels: int | None = None) -> None:
    """``tensor`` must be (C,) or (N, C), in x's dtype or float32, on x's device. C is ``channels``,
    or by default that of x."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(tensor).__name__}")
    n, c = x.shape[:2] if channels is None else (x.shape[0], channels)
    if not fits(tensor, (c,), (n, c)):
        raise ValueError(
            f"{name}: expected shape (C,) = ({c},) or (N, C) = ({n}, {c}), "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.dtype != x.dtype:
        check_dtype(tensor, name, x, or_float32=True)
    check_device(tensor, name, x)


def check_device(tensor: Tensor, name: str, x: Tensor, of: str = "x") -> None:
    """``tensor`` must be on the device of ``x``, which messages call ``of``."""
    if tensor.device != x.device:
        raise ValueError(
            f"{name}: expected {of}'s device {x.device}, got {tensor.device}; "
            f"move it with {name}.to({of}.device)"
        )


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """``value`` must be one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_number(value: float, name: str) -> None:
    """``value`` must be a real number: of Python, NumPy or a tensor of one value."""
    if type(value) is float:  # the others take longer
        return
    if isinstance(value, Tensor):
        known, came = value.numel() == 1 and not value.is_complex(), _text_of(value)
    else:
        known, came = isinstance(value, numbers.Real), type(value).__name__
    if not known:
        raise TypeError(f"{name}: expected a number, got {came}; pass a float or leave it out")


def _text_of(value: Tensor) -> str:
    return f"Tensor of shape {tuple(value.shape)} and dtype {value.dtype}"


def as_integer(value: int, name: str) -> int:
    """Return an integer of Python, NumPy or a tensor as one of Python."""
    if type(value) is int:
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    came = _text_of(value) if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(f"{name}: expected an int, got {came}; pass an int")


def check_conv_weight(
    weight: Tensor, x: Tensor, upsample: str, kernels: str, takes: Callable[[int], bool]
) -> None:
    """``weight`` must be (Cout, Cin, k, k), or (Cin, Cout, k, k) for a transposed convolution, with
    x's Cin, dtype and device. ``takes(k)`` must be true; ``kernels`` says in words for which k."""
    check_tensor(weight, "weight")
    channels, dim = x.shape[1], 0 if upsample == "transpose" else 1
    if (
        weight.dim() != 4
        or weight.shape[2] != weight.shape[3]
        or weight.shape[dim] != channels
        or not takes(weight.shape[2])
    ):
        shape = "(Cin, Cout, k, k)" if upsample == "transpose" else "(Cout, Cin, k, k)"
        raise ValueError(
            f"weight: expected shape {shape} with Cin = {channels} and {kernels} for "
            f"upsample={upsample!r}, got {tuple(weight.shape)}"
        )
    check_dtype(weight, "weight", x)
    check_device(weight, "weight", x)


def check_conv_bias(bias: Tensor, x: Tensor, channels: int, *, or_float32: bool = False) -> None:
    """``bias`` must be (Cout,) in x's dtype, or in float32 where that is allowed."""
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias: expected a torch.Tensor or None, got {type(bias).__name__}")
    if not fits(bias, (channels,)):
        raise ValueError(f"bias: expected shape (Cout,) = ({channels},), got {tuple(bias.shape)}")
    check_dtype(bias, "bias", x, or_float32=or_float32)
    check_device(bias, "bias", x)


def check_can_reflect(x: Tensor, border: int, upsample: str) -> None:
    """Each side of ``x``, after nearest upsampling, must be longer than the border it reflects."""
    side = min(x.shape[2], x.shape[3]) * (2 if upsample == "nearest" else 1)
    if side <= border:
        after = " after upsampling" if upsample == "nearest" else ""
        raise ValueError(
            f"x: expected more than {border} pixels a side to reflect{after}, got "
            f"{tuple(x.shape)}; use padding_mode='replicate'"
        )


def check_conv_geometry(
    x: Tensor, kernel: int, stride: int, padding: int, padding_mode: str, upsample: str
) -> None:
    """The mode must allow stride and padding, and ``x`` must be large enough for them."""
    for value, name in ((stride, "stride"), (padding, "padding")):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}: expected an int for both directions, got {value!r}")
    if stride not in (1, 2):
        raise ValueError(f"stride: expected 1 or 2, got {stride}")
    if stride != 1 and upsample != "none":
        raise ValueError(
            f"stride: expected 1 with upsample={upsample!r}, got {stride}; it always doubles the "
            "size, leave stride out"
        )
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more, got {padding}")
    if upsample == "nearest" and padding != kernel // 2:
        raise ValueError(
            f"padding: expected k // 2 = {kernel // 2} with upsample='nearest' and a kernel of "
            f"{kernel}, got {padding}"
        )
    if upsample == "transpose" and padding != 0:
        raise ValueError(
            f"padding: expected 0 with upsample='transpose', got {padding}; it always doubles the "
            "size (torch's padding of 1), leave padding out"
        )
    smallest = max(1, kernel - 2 * padding) if upsample == "none" else 1
    if x.shape[2] < smallest or x.shape[3] < smallest:
        raise ValueError(
            f"x: expected at least {smallest} by {smallest} pixels for a kernel of {kernel} and "
            f"padding {padding}, got {tuple(x.shape)}"
        )
    if padding_mode == "reflect":
        check_can_reflect(x, 1 if upsample == "transpose" else padding, upsample)
