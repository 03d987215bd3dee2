"""The cases: which op, on what shape, dtype and layout, how much work it is, and what is aimed at.

Work is what the op cannot do without: bytes of tensors read and written once per pass, and
multiplications with one triangle of a symmetric product, whoever computes more.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import stylekernels
from benchmarks.dtypes import DTYPES
from benchmarks.ops import peers

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Shape = tuple[int, int, int, int]

NORM_SHAPES: tuple[Shape, ...] = ((1, 32, 512, 512), (1, 128, 128, 128))
GRAM_SHAPES: tuple[Shape, ...] = (
    (4, 64, 256, 256),
    (4, 128, 128, 128),
    (4, 256, 64, 64),
    (4, 512, 32, 32),
)
UPSAMPLE_SHAPES: tuple[Shape, ...] = ((1, 128, 128, 128), (1, 64, 256, 256))

#: Variants of the upsampling block: upsample (transpose where not named), kernel, padding mode.
UPSAMPLE_VARIANTS = {
    "k4": ("transpose", 4, "zeros"),
    "k4-replicate": ("transpose", 4, "replicate"),
    "k3": ("transpose", 3, "zeros"),
    "nearest-k3": ("nearest", 3, "reflect"),
}


@dataclass(frozen=True)
class ConvVariant:
    """A layer of the generator.

    Attributes:
        kernel, stride, padding_mode, upsample: the convolution's; padded by half the kernel.
        shapes: of its input.
        out_channels: for so many input channels.
        norm: normalise the input and apply ReLU. The first layer gets a picture instead.
        skip: add a residual in place of the ReLU, and return the sum.
        stats: take statistics of the output, for the norm that follows all layers but the last.
    """

    kernel: int
    shapes: tuple[Shape, ...]
    out_channels: Callable[[int], int]
    stride: int = 1
    padding_mode: str = "reflect"
    upsample: str = "none"
    norm: bool = True
    skip: bool = False
    stats: bool = True


def _half(channels: int) -> int:
    return max(1, channels // 2)


#: Variants of the deferred-norm convolution, the layers of a 32-64-128 generator at 512 x 512.
CONV_VARIANTS = {
    "k3": ConvVariant(3, ((1, 128, 128, 128),), lambda c: c),
    "k3-skip": ConvVariant(3, ((1, 128, 128, 128),), lambda c: c, skip=True),
    "k9-first": ConvVariant(9, ((1, 3, 512, 512),), lambda c: 32, norm=False),
    "k9-last": ConvVariant(9, ((1, 32, 512, 512),), lambda c: 3, stats=False),
    "k3-stride2": ConvVariant(
        3, ((1, 32, 512, 512), (1, 64, 256, 256)), lambda c: 2 * c, stride=2
    ),
    "transpose-k4": ConvVariant(
        4, UPSAMPLE_SHAPES, _half, padding_mode="replicate", upsample="transpose"
    ),
    "nearest-k3": ConvVariant(3, UPSAMPLE_SHAPES, _half, upsample="nearest"),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What a case aims at besides never being slower than a rival."""

    max_copies: float | None = None  # time over that of a plain copy
    min_speedup: float | None = None  # time of eager PyTorch over ours


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    op: str
    variant: str  # what the op does beyond its name, "" for nothing
    shape: Shape
    dtype: str
    layout: str
    backward: bool
    target: Target = field(default=Target(), compare=False)

    @property
    def id(self) -> str:
        """Unique, and what ``--only`` searches."""
        shape = "x".join(map(str, self.shape))
        parts = (self.op, self.variant, self.direction, shape, self.dtype, self.layout)
        return "/".join(part for part in parts if part)

    @property
    def direction(self) -> str:
        return "fwd+bwd" if self.backward else "fwd"

    @property
    def limited_by(self) -> str:
        """``"memory"`` for what is compared to a copy, ``"arithmetic"`` for products."""
        return "memory" if self.op.startswith("instance_norm") else "arithmetic"


@dataclass
class Problem:
    """A case with its tensors, ready to run.

    Attributes:
        inputs: arguments of every function below.
        wanted: positions among ``inputs`` that gradients are taken for.
        grad: gradient of the result; None where only the forward pass is timed.
        ours: our op.
        expressions: the same in torch, by name.
        bytes, flops: the work, see the top of this file.
    """

    inputs: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    grad: Tensor | None
    ours: peers.Expression
    expressions: dict[str, peers.Expression]
    bytes: float
    flops: float


Aim = Callable[[str], Target]  # of a dtype


def _no_aim(dtype: str) -> Target:
    return Target()


def grid(quick: bool = False, shape: Shape | None = None) -> Iterator[Case]:
    """All cases, op by op.

    Args:
        quick: only the first shape and first variant of every op.
        shape: in place of the shapes listed above.
    """

    def rows(
        op: str, variant: str, shapes: tuple[Shape, ...], backward: bool, aim: Aim = _no_aim
    ) -> Iterator[Case]:
        shapes = (shape,) if shape else shapes
        for sizes in shapes[:1] if quick else shapes:
            for dtype in DTYPES:
                for layout in LAYOUTS:
                    yield Case(op, variant, sizes, dtype, layout, backward, aim(dtype))

    yield from rows("instance_norm", "relu", NORM_SHAPES, False, lambda _: Target(max_copies=2.2))
    yield from rows("instance_norm", "relu", NORM_SHAPES, True, lambda _: Target(max_copies=5.0))
    for backward in (False, True):
        yield from rows("instance_norm", "residual", NORM_SHAPES, backward)
    yield from rows("instance_norm_stats", "", NORM_SHAPES, False)
    gram_speedup = {"float32": 1.5, "bfloat16": 2.0}
    yield from rows(
        "gram_matrix", "", GRAM_SHAPES, False, lambda dtype: Target(min_speedup=gram_speedup[dtype])
    )
    yield from rows("gram_loss", "", GRAM_SHAPES, True, lambda _: Target(min_speedup=1.5))
    variants = list(UPSAMPLE_VARIANTS)
    for variant in variants[:1] if quick else variants:
        for backward in (False, True):
            yield from rows("upsample_block", variant, UPSAMPLE_SHAPES, backward)
    variants = list(CONV_VARIANTS)
    for variant in variants[:1] if quick else variants:
        yield from rows("norm_conv2d", variant, CONV_VARIANTS[variant].shapes, False)


def prepare(case: Case) -> Problem:
    """Make the tensors of a case; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    dtype, memory_format = DTYPES[case.dtype], LAYOUTS[case.layout]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def image(*shape: int) -> Tensor:
        return normal(*shape).to(dtype).contiguous(memory_format=memory_format)

    return _PROBLEMS[case.op](case, normal, image)


Maker = Callable[..., Tensor]


def _grad(case: Case, image: Maker, shape: Shape) -> Tensor | None:
    return image(*shape) if case.backward else None


def _instance_norm(case: Case, normal: Maker, image: Maker) -> Problem:
    c, dtype = case.shape[1], DTYPES[case.dtype]
    x = image(*case.shape) + normal(c, 1, 1).to(dtype)  # each channel has another mean
    weight, bias = (normal(c) + 1).to(dtype), normal(c).to(dtype)
    ours: peers.Expression
    if case.variant == "relu":
        inputs, expressions = (x, weight, bias), peers.instance_norm_relu()
        ours = partial(stylekernels.instance_norm, activation="relu")
        passes = 5 if case.backward else 2  # x, y; x, grad, grad_x
    else:
        inputs, expressions = (x, weight, bias, image(*case.shape)), peers.instance_norm_residual()
        ours = _norm_residual
        passes = 6 if case.backward else 3
    return Problem(
        inputs, tuple(range(len(inputs))), _grad(case, image, case.shape), ours, expressions,
        bytes=passes * x.nbytes, flops=0,
    )  # fmt: skip


def _norm_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return stylekernels.instance_norm(x, weight, bias, residual=residual)


def _instance_norm_stats(case: Case, normal: Maker, image: Maker) -> Problem:
    x = image(*case.shape)
    return Problem(
        (x,), (0,), None, stylekernels.instance_norm_stats, peers.instance_norm_stats(),
        bytes=x.nbytes, flops=0,
    )  # fmt: skip


def _gram_matrix(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    x = image(*case.shape).relu_()  # as the features of a classifier are
    expressions = peers.gram_matrix(x.dtype, 1 / (c * h * w))
    flops = n * c * (c + 1) * h * w
    return Problem(
        (x,), (0,), None, stylekernels.gram_matrix, expressions, bytes=x.nbytes, flops=flops
    )


def _gram_loss(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    x, scale = image(*case.shape).relu_(), 1 / (c * h * w)
    # Half the Gram matrix of other features: far enough from x's that their difference, the
    # gradient, survives rounding to bfloat16.
    style = normal(n, c, min(h * w, 4096)).relu_()
    target = torch.bmm(style, style.mT) * (0.5 / (c * style.shape[2]))
    return Problem(
        (x, target), (0,), torch.ones(()), stylekernels.gram_loss, peers.gram_loss(x.dtype, scale),
        bytes=3 * x.nbytes, flops=n * c * (c + 1) * h * w + 2 * n * c * c * h * w,
    )  # fmt: skip


def _upsample_block(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    out = _half(c)
    upsample, kernel, padding_mode = UPSAMPLE_VARIANTS[case.variant]
    dtype, x = DTYPES[case.dtype], image(*case.shape)
    sizes = (c, out) if upsample == "transpose" else (out, c)
    weight = (normal(*sizes, kernel, kernel) / (c * kernel * kernel / 4) ** 0.5).to(dtype)
    if case.layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    inputs = (x, weight, (normal(out) + 1).to(dtype), normal(out).to(dtype))
    grad = _grad(case, image, (n, out, 2 * h, 2 * w))
    ours = partial(
        stylekernels.upsample_block, upsample=upsample, padding_mode=padding_mode, activation="relu"
    )
    # Of the doubled image each pixel sees a quarter of a transposed kernel, and 2 x 2 sums of
    # the taps of a 3 x 3 kernel over repeated pixels.
    taps = kernel * kernel / 4 if upsample == "transpose" else ((kernel + 1) / 2) ** 2
    flops = 2 * n * c * out * 4 * h * w * taps
    y_bytes = n * out * 4 * h * w * x.element_size()
    times = 3 if case.backward else 1  # the gradients of x and the kernel are a product each
    return Problem(
        inputs, (0, 1, 2, 3), grad, ours, peers.upsample_block(upsample, padding_mode),
        bytes=times * (x.nbytes + y_bytes), flops=times * flops,
    )  # fmt: skip


def _norm_conv2d(case: Case, normal: Maker, image: Maker) -> Problem:
    n, c, h, w = case.shape
    variant, dtype, x = CONV_VARIANTS[case.variant], DTYPES[case.dtype], image(*case.shape)
    out, kernel = variant.out_channels(c), variant.kernel
    transposed = variant.upsample == "transpose"
    sizes = (c, out) if transposed else (out, c)
    weight = (normal(*sizes, kernel, kernel) / (c * kernel * kernel) ** 0.5).to(dtype)
    if case.layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    inputs = (x, weight)
    if variant.norm:
        # The statistics come with x from the convolution before: they are among the inputs, and
        # what makes two numbers of them is timed with the op.
        inputs += ((normal(c) + 1).to(dtype), normal(c).to(dtype))
        inputs += stylekernels.instance_norm_stats(x)
    if variant.skip:
        inputs += (image(*case.shape),)
    # Two kinds of upsampling count their taps as in the upsampling block.
    scale = 2 if variant.upsample != "none" else 1 / variant.stride
    taps = {"none": kernel**2, "transpose": kernel**2 / 4, "nearest": ((kernel + 1) / 2) ** 2}
    pixels = n * math.ceil(h * scale) * math.ceil(w * scale)
    read_and_written = x.nbytes * (3 if variant.skip else 1) + pixels * out * x.element_size()
    return Problem(
        inputs, (0,), None, partial(_deferred_norm_conv2d, variant),
        peers.norm_conv2d(
            variant.stride, variant.padding_mode, variant.upsample, variant.norm, variant.skip
        ),
        bytes=read_and_written, flops=2 * pixels * c * out * taps[variant.upsample],
    )  # fmt: skip


def _deferred_norm_conv2d(
    variant: ConvVariant,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    scale_shift = None
    if mean is not None and var is not None:
        scale_shift = stylekernels.norm_scale_shift(mean, var, norm_weight, norm_bias)
    y, _mean, _var, given = stylekernels.norm_conv2d(
        x, weight, scale_shift=scale_shift, residual=residual, return_input=variant.skip,
        activation="relu" if variant.norm and not variant.skip else "none",
        stride=variant.stride, padding_mode=variant.padding_mode, upsample=variant.upsample,
        padding=0 if variant.upsample == "transpose" else variant.kernel // 2,
        return_stats=variant.stats,
    )  # fmt: skip
    return y if given is None else (y, given)


_PROBLEMS: dict[str, Callable[[Case, Maker, Maker], Problem]] = {
    "instance_norm": _instance_norm,
    "instance_norm_stats": _instance_norm_stats,
    "gram_matrix": _gram_matrix,
    "gram_loss": _gram_loss,
    "norm_conv2d": _norm_conv2d,
    "upsample_block": _upsample_block,
}
