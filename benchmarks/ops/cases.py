"""The cases for a CPU: op, shape, dtype and layout, and their targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.dtypes import DTYPES

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Shape = tuple[int, ...]

NORM_SHAPES: tuple[Shape, ...] = ((1, 32, 512, 512), (1, 128, 128, 128))
#: Volumes: layers of a network for medical images, from its first to its deepest.
NORM_3D_SHAPES: tuple[Shape, ...] = (
    (1, 32, 64, 128, 128),
    (2, 32, 128, 128, 128),
    (2, 320, 8, 8, 8),
)
#: Blocks of the decoder of a latent diffusion model, the first and the last.
GROUP_NORM_SHAPES: tuple[Shape, ...] = ((1, 512, 64, 64), (1, 128, 512, 512))
#: The first layer of a style loss, of one photo, as in training.
STYLE_SHAPES: tuple[Shape, ...] = ((1, 64, 256, 256),)
GRAM_SHAPES: tuple[Shape, ...] = (
    (4, 64, 256, 256),
    (4, 128, 128, 128),
    (4, 256, 64, 64),
    (4, 512, 32, 32),
)
UPSAMPLE_SHAPES: tuple[Shape, ...] = ((1, 128, 128, 128), (1, 64, 256, 256))

#: Variants of the upsampling block: upsample (``transpose`` if not named), kernel, padding mode.
UPSAMPLE_VARIANTS = {
    "k4": ("transpose", 4, "zeros"),
    "k4-replicate": ("transpose", 4, "replicate"),
    "k3": ("transpose", 3, "zeros"),
    "nearest-k3": ("nearest", 3, "reflect"),
}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return ``x`` in a layout of `LAYOUTS`; volumes have a channels_last of their own."""
    volume = x.dim() == 5 and layout == "channels_last"
    return x.contiguous(memory_format=torch.channels_last_3d if volume else LAYOUTS[layout])


@dataclass(frozen=True)
class ConvVariant:
    """A layer of the generator.

    Attributes:
        kernel, stride, padding_mode, upsample: options of the convolution; padded by half the
            kernel.
        shapes: shapes of its input.
        out_channels: the output channels, as a function of the input channels.
        norm: normalise the input and apply ReLU. The first layer has False: its input is a picture.
        skip: add a residual instead of the ReLU, and return the sum.
        stats: compute statistics of the output, for the norm after all layers but the last.
        on_cpu: whether it is among the cases for a CPU.
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
    on_cpu: bool = True


def half(channels: int) -> int:
    return max(1, channels // 2)


#: Variants of the deferred-norm convolution: the layers of a 32-64-128 generator at 512 x 512, and
#: layers with zeros at the border, which cuDNN's graph computes too.
CONV_VARIANTS = {
    "k3": ConvVariant(3, ((1, 128, 128, 128),), lambda c: c),
    "k3-skip": ConvVariant(3, ((1, 128, 128, 128),), lambda c: c, skip=True),
    "k9-first": ConvVariant(9, ((1, 3, 512, 512),), lambda c: 32, norm=False),
    "k9-last": ConvVariant(9, ((1, 32, 512, 512),), lambda c: 3, stats=False),
    "k3-stride2": ConvVariant(3, ((1, 32, 512, 512), (1, 64, 256, 256)), lambda c: 2 * c, stride=2),
    "transpose-k4": ConvVariant(
        4, UPSAMPLE_SHAPES, half, padding_mode="replicate", upsample="transpose"
    ),
    "nearest-k3": ConvVariant(3, UPSAMPLE_SHAPES, half, upsample="nearest"),
    "k3-zeros": ConvVariant(
        3, ((1, 128, 128, 128),), lambda c: c, padding_mode="zeros", on_cpu=False
    ),
    "stride2-zeros": ConvVariant(
        3, ((1, 32, 512, 512),), lambda c: 2 * c, stride=2, padding_mode="zeros", on_cpu=False
    ),
}


@dataclass(frozen=True)
class Target:
    """The target of a case, besides that no rival is faster."""

    max_copies: float | None = None  # the most of our time over that of a plain copy
    min_share: float | None = None  # the least of the floor over our time
    min_speedup: float | None = None  # the least of a rival's time over ours
    over: str = "eager"  # the rival, or "best" for the fastest of all


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    op: str
    variant: str  # options of the op, "" for none
    shape: Shape
    dtype: str
    layout: str
    backward: bool
    device: str = "cpu"
    target: Target = field(default=Target(), compare=False)

    @property
    def id(self) -> str:
        """A unique name, which ``--only`` searches."""
        shape = "x".join(map(str, self.shape))
        parts = (self.op, self.variant, self.direction, shape, self.dtype, self.layout)
        return "/".join(part for part in parts if part)

    @property
    def direction(self) -> str:
        return "fwd+bwd" if self.backward else "fwd"

    @property
    def limited_by(self) -> str:
        """``"memory"`` for ops that are compared to a copy, ``"arithmetic"`` for products."""
        norm = self.op in ("group_norm", "instance_norm", "instance_norm_stats")
        return "memory" if norm else "arithmetic"


Aim = Callable[[str], Target]  # a function of the dtype


def _no_aim(dtype: str) -> Target:
    return Target()


def chosen(listed: tuple[Shape, ...], quick: bool, shape: Shape | None) -> tuple[Shape, ...]:
    """Return the shapes to measure: those listed, with ``quick`` the first; or ``shape`` instead,
    if it has as many dimensions."""
    if shape is not None:
        return (shape,) if len(shape) == len(listed[0]) else ()
    return listed[:1] if quick else listed


def grid(quick: bool = False, shape: Shape | None = None) -> Iterator[Case]:
    """Yield all cases for a CPU, op by op.

    Args:
        quick: only the first shape and first variant of every op.
        shape: this shape instead of the listed ones.
    """

    def rows(
        op: str, variant: str, shapes: tuple[Shape, ...], backward: bool, aim: Aim = _no_aim
    ) -> Iterator[Case]:
        for sizes in chosen(shapes, quick, shape):
            for dtype in DTYPES:
                for layout in LAYOUTS:
                    target = aim(dtype)
                    yield Case(op, variant, sizes, dtype, layout, backward, target=target)

    yield from rows("instance_norm", "relu", NORM_SHAPES, False, lambda _: Target(max_copies=2.2))
    yield from rows("instance_norm", "relu", NORM_SHAPES, True, lambda _: Target(max_copies=5.0))
    for backward in (False, True):
        yield from rows("instance_norm", "residual", NORM_SHAPES, backward)
    for backward, copies in ((False, 2.2), (True, 5.5)):
        target = Target(max_copies=copies)
        yield from rows(
            "instance_norm", "leaky_relu", NORM_3D_SHAPES, backward, lambda _, target=target: target
        )
        yield from rows(
            "group_norm", "silu", GROUP_NORM_SHAPES, backward, lambda _, target=target: target
        )
    yield from rows("instance_norm_stats", "", NORM_SHAPES, False)
    gram_speedup = {"float32": 1.5, "bfloat16": 2.0}
    yield from rows(
        "gram_matrix", "", GRAM_SHAPES, False, lambda dtype: Target(min_speedup=gram_speedup[dtype])
    )
    yield from rows("gram_loss", "", GRAM_SHAPES, True, lambda _: Target(min_speedup=1.5))
    if not quick:
        yield from rows("gram_loss", "style_loss-center", STYLE_SHAPES, True)
    variants = list(UPSAMPLE_VARIANTS)
    for variant in variants[:1] if quick else variants:
        for backward in (False, True):
            yield from rows("upsample_block", variant, UPSAMPLE_SHAPES, backward)
    variants = [name for name, variant in CONV_VARIANTS.items() if variant.on_cpu]
    for variant in variants[:1] if quick else variants:
        yield from rows("norm_conv2d", variant, CONV_VARIANTS[variant].shapes, False)
