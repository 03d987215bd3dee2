"""Calls of norm_conv2d_out with guarded memory, and the check of everything that they write.

All memory that is written starts as NaN (bytes: 0xA5), with guards of the same value before and
after it. Elements that were not written, and writes outside of a tensor, show.
"""

import contextlib
import random as python_random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels
from stylekernels import instance_norm_stats, norm_scale_shift
from stylekernels.tensors import conv_channels, conv_size
from tests.conftest import DTYPES, allowed_errors, assert_accurate, random
from tests.convolutions import PADDING_MODES, in_torch, inputs, is_possible, padding_of
from tests.convolve_into import convolve_into
from tests.instance_norms import ACTIVATIONS

OPS = torch.ops.stylekernels
GUARD = 64  # elements
POISON = 0xA5
WINOGRAD = 5e-6  # the least that is allowed a float32 kernel of 3: docs/design.md


class GuardedMemory:
    """Allocates results with guards around them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[Tensor] = []

    def make(self, shape, dtype: torch.dtype, layout: str = "contiguous") -> Tensor:
        size = torch.Size(shape).numel()
        poison = torch.nan if dtype.is_floating_point else POISON
        buffer = torch.full((size + 2 * GUARD,), poison, dtype=dtype, device=self._device)
        self._buffers.append(buffer)
        tensor = buffer[GUARD : GUARD + size]
        if layout == "contiguous":
            return tensor.view(shape)
        n, c, h, w = shape
        return tensor.view(n, h, w, c).permute(0, 3, 1, 2)

    def assert_surroundings_are_untouched(self) -> None:
        for buffer in self._buffers:
            around = torch.cat((buffer[:GUARD], buffer[-GUARD:]))
            same = around.isnan() if buffer.is_floating_point() else around == POISON
            assert same.all(), f"written outside of a tensor of {len(buffer) - 2 * GUARD} elements"


class Norm(NamedTuple):
    """The instance norm of the output."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5


class Result(NamedTuple):
    y: Tensor
    input: Tensor | None
    next: Tensor | None


def frames(
    n: int, channels: int, height: int, width: int, seed: int = 0, device: str = "cpu"
) -> Tensor:
    """Bytes, channels_last, at an odd address as a crop of rows from a file may be."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, height, width, channels)
    size = torch.Size(shape).numel()
    bytes_ = torch.randint(0, 256, (size + 1,), dtype=torch.uint8, generator=generator)
    return bytes_.to(device)[1:].view(shape).permute(0, 3, 1, 2)


def out(
    x,
    weight,
    bias=None,
    scale_shift=None,
    residual=None,
    *,
    activation="none",
    stride=1,
    padding=0,
    padding_mode="zeros",
    upsample="none",
    layout="channels_last",
    y_dtype=None,
    crop=(0, 0),
    norm=None,
    keep=False,
    packed=None,
    more_workspace=0,
) -> Result:
    """Call norm_conv2d_out with memory for its results. ``crop`` leaves out rows and columns."""
    mode = (stride, padding, padding_mode, upsample)
    memory, dtype = GuardedMemory(x.device), weight.dtype
    size = conv_size(x.shape[2:], weight.shape[2], stride, padding, upsample)
    _, channels = conv_channels(weight, upsample)
    y_size = [full - less * (less < full) for full, less in zip(size, crop, strict=True)]
    y = memory.make((len(x), channels, *y_size), y_dtype or dtype, layout)
    kept = memory.make(x.shape, dtype, layout) if keep else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    following = None if norm is None else memory.make((len(x), channels, 2), wide)
    elements = OPS.norm_conv2d_workspace(weight, len(x), *x.shape[2:], *mode) + more_workspace
    workspace = memory.make((elements,), torch.float64)
    if packed is None:
        packed = OPS.norm_conv2d_pack(weight, *mode)
    given = (x, weight, packed, bias, scale_shift, residual, *(norm or ())[:2])
    copies = [t.clone() if isinstance(t, Tensor) else t for t in given]
    convolve_into(
        y,
        workspace,
        x,
        weight,
        packed,
        mode,
        bias=bias,
        scale_shift=scale_shift,
        activation=activation,
        negative_slope=0.2,
        residual=residual,
        norm=norm or (None, None, 0.0),
        input=kept,
        next_scale_shift=following,
    )
    memory.assert_surroundings_are_untouched()
    for tensor, copy in zip(given, copies, strict=True):
        if tensor is not None:
            assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), "an argument was modified"
    return Result(y, kept, following)


def assert_same(a: Result, b: Result) -> None:
    for name, one, other in zip(Result._fields, a, b, strict=True):
        assert (one is None and other is None) or torch.equal(one, other), name


def assert_scale_shift_of(y: Tensor, norm: Norm, scale_shift: Tensor) -> None:
    """Check scale and shift of the instance norm of the stored, rounded ``y``."""
    wide = [t if t is None else t.double() for t in norm[:2]]
    exact = norm_scale_shift(*instance_norm_stats(y.double()), *wide, norm.eps)
    var, mean = torch.var_mean(y.to(scale_shift.dtype), (2, 3), correction=0)
    torchs = norm_scale_shift(mean, var, *norm)
    for index, name in enumerate(("scale", "shift")):
        assert_accurate(scale_shift[..., index], torchs[..., index], exact[..., index], name)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def formula(tensors: dict[str, Tensor], **options) -> tuple[Tensor, Tensor]:
    """`in_torch` on one thread, since two busy threads take 50 ms for PyTorch's float64 convolution
    of a few pixels."""
    with threads(1):
        return in_torch(**tensors, **options)


def check(tensors: dict[str, Tensor], norm: Norm | None = None, **options) -> None:
    """Check everything that a call writes by the accuracy rule."""
    result = out(**tensors, norm=norm, **options)
    x, weight = tensors["x"], tensors["weight"]
    names = ("activation", "stride", "padding", "padding_mode", "upsample")
    options = {name: options[name] for name in names if name in options}
    exact, exact_given = formula({k: t.double() for k, t in tensors.items()}, **options)
    torchs, torchs_given = formula(tensors | {"x": x.to(weight.dtype)}, **options)
    rows, columns = result.y.shape[2:]
    first = (..., slice(rows), slice(columns))
    if result.y.dtype == torch.uint8:
        # PyTorch's result before rounding to bytes, which costs up to half a level.
        _, largest = allowed_errors(torchs, exact)
        allowed = largest * exact.abs().max() + 2e-3
        difference = (result.y.double() - exact[first].clamp(0, 255)).abs().max()
        assert difference <= 0.5 + allowed, f"{difference} levels, {0.5 + allowed} are allowed"
    else:
        direct = weight.dtype != torch.float32 or weight.shape[2] != 3
        assert_accurate(
            result.y, torchs[first], exact[first], "output", at_least=0 if direct else WINOGRAD
        )
    if result.input is not None:
        assert_accurate(result.input, torchs_given, exact_given, "input")
    if norm is not None:
        assert_scale_shift_of(result.y, norm, result.next)


def draw(choose: python_random.Random, mode: tuple[str, int, int]) -> dict:
    """One value of each option; channels and sizes around the widths of vectors and of tiles."""
    while True:
        case = {
            "mode": mode,
            "dtype": choose.choice(DTYPES),
            "x": choose.choice(("bytes", "contiguous", "channels_last")),
            "y": choose.choice(("bytes", "same")),
            "crop": choose.choice(((0, 0), (0, 0), (1, 0), (0, 1), (3, 2))),
            "border": choose.choice(("none", "half", "most")),
            "padding_mode": choose.choice(PADDING_MODES),
            "activation": choose.choice(tuple(ACTIVATIONS)),
            "bias": choose.choice((None, "float32", "x's")),
            "norm": choose.choice((None, "plain", "(C,)")),
            "batch": choose.choice((1, 1, 2, 3)),
            "channels": choose.choice((1, 3, 5, 16, 17)),
            "out_channels": choose.choice((1, 3, 4, 16, 17)),
            "size": choose.choice(((1, 11), (9, 1), (5, 7), (8, 8), (13, 21))),
            **{name: choose.choice((False, True)) for name in ("scale_shift", "residual", "keep")},
        }
        if case["y"] == "bytes" or case["crop"] != (0, 0):
            case["norm"] = None  # a picture has no next layer
        if mode[0] != "none":
            case["crop"] = (0, 0)
        if is_possible(case):
            return case


def norm_of(
    kind: str | None, channels: int, dtype: torch.dtype, device: str = "cpu"
) -> Norm | None:
    if kind is None:
        return None
    if kind == "plain":
        return Norm(eps=0.5)  # one that shows
    weight, bias = (
        random(channels, dtype=dtype, device=device, seed=seed, shift=0.5) for seed in (6, 7)
    )
    return Norm(weight, bias, 0.5)


def check_draws(mode: tuple[str, int, int], count: int, device: str = "cpu") -> None:
    """Some draws of a mode."""
    choose = python_random.Random(str(mode))
    for _ in range(count):
        case = draw(choose, mode)
        upsample, _, stride = mode
        n, layout = case["batch"], "contiguous" if case["x"] == "contiguous" else "channels_last"
        if case["channels"] == 1:
            layout = "contiguous"  # both, and then this counts
        shape = (n, case["channels"], *case["size"])
        tensors = inputs(
            case["mode"],
            shape,
            case["out_channels"],
            case["dtype"],
            layout,
            device,
            scale_shift=case["scale_shift"],
            bias=case["bias"],
            residual=layout if case["residual"] else None,
        )
        if case["x"] == "bytes":
            tensors["x"] = frames(*shape, device=device)
        elif case["y"] == "bytes":
            tensors["weight"] = tensors["weight"] * 100
        if case["y"] == "bytes" and case["bias"]:
            tensors["bias"] = tensors["bias"] * 50 + 128  # reaches both ends of the range
        norm_dtype = choose.choice((torch.float32, case["dtype"]))
        check(
            tensors,
            norm_of(case["norm"], case["out_channels"], norm_dtype, device),
            stride=stride,
            padding=padding_of(mode, case["border"]),
            padding_mode=case["padding_mode"],
            upsample=upsample,
            activation=case["activation"],
            layout=layout,
            keep=case["keep"],
            crop=case["crop"],
            y_dtype=torch.uint8 if case["y"] == "bytes" else None,
        )
