"""The cases for an NVIDIA GPU: sizes that fill it. They are few, for compiling takes seconds."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.ops.cases import LAYOUTS, Case, Shape, Target, chosen

_BOTH = tuple(LAYOUTS)
_FIRST, _LAST = ("contiguous",), ("channels_last",)
_BFLOAT16, _FLOAT16, _FLOAT32 = "bfloat16", "float16", "float32"

#: A target for one pass over memory: a seventh slower than a copy at most.
_MEMORY = Target(min_share=0.85)
_OVER_BEST = Target(min_speedup=1.5, over="best")
_OVER_COMPILE = Target(min_speedup=1.5, over="compile")

_FULL_HD: Shape = (1, 32, 1080, 1920)  # the first layer of a generator
_RESIDUAL: Shape = (1, 128, 270, 480)  # its residual blocks in Full HD
_TRAINING: Shape = (8, 32, 256, 256)
_TRAINING_RESIDUAL: Shape = (8, 128, 64, 64)


@dataclass(frozen=True)
class Group:
    """Cases of one op that differ in shape and layout."""

    op: str
    variant: str
    shapes: tuple[Shape, ...]
    dtype: str = _BFLOAT16
    layouts: tuple[str, ...] = _BOTH
    backward: bool = False
    target: Target = field(default=Target())


GROUPS = (
    Group(
        "instance_norm",
        "relu",
        (_FULL_HD, (1, 32, 2160, 3840), (1, 32, 512, 512), _RESIDUAL, _TRAINING),
        target=_MEMORY,
    ),
    Group("instance_norm", "relu", (_FULL_HD, _TRAINING), _FLOAT32, _FIRST, target=_MEMORY),
    Group("instance_norm", "relu", (_TRAINING,), backward=True),
    Group("instance_norm", "relu", (_TRAINING_RESIDUAL,), layouts=_LAST, backward=True),
    Group("instance_norm", "relu", (_TRAINING,), _FLOAT32, _FIRST, backward=True),
    Group("instance_norm", "residual", (_RESIDUAL,), target=_MEMORY),
    Group("instance_norm", "residual", (_TRAINING_RESIDUAL,), layouts=_LAST, backward=True),
    Group("instance_norm_stats", "", (_FULL_HD,), target=_MEMORY),
    Group("gram_matrix", "", ((4, 64, 256, 256), (4, 128, 128, 128)), target=_MEMORY),
    Group("gram_matrix", "", ((4, 256, 64, 64), (4, 512, 32, 32))),
    Group("gram_matrix", "", ((4, 64, 256, 256), (4, 256, 64, 64)), _FLOAT32, _FIRST),
    Group("gram_loss", "", ((4, 64, 256, 256), (4, 512, 32, 32)), layouts=_FIRST, backward=True),
    Group("gram_loss", "style_loss", ((4, 64, 256, 256),), backward=True, target=_OVER_COMPILE),
    Group("gram_loss", "style_loss", ((4, 64, 256, 256),), _FLOAT32, _FIRST, backward=True),
    Group(
        "upsample_block",
        "k4-replicate",
        ((1, 128, 540, 960), (1, 64, 540, 960)),
        layouts=_LAST,
        target=_OVER_BEST,
    ),
    Group("upsample_block", "nearest-k3", ((1, 128, 540, 960),), layouts=_LAST, target=_OVER_BEST),
    # With zeros, because the backward pass of replicate in channels_last fails under torch.compile
    # (2.13, on a CPU).
    Group("upsample_block", "k4", ((8, 64, 128, 128),), layouts=_LAST, backward=True),
    Group("upsample_block", "k4-replicate", ((1, 64, 540, 960),), _FLOAT32, _LAST),
    Group("norm_conv2d", "k3", (_RESIDUAL,), layouts=_LAST),
    Group("norm_conv2d", "k3-skip", (_RESIDUAL,), layouts=_LAST),
    Group("norm_conv2d", "k3-stride2", (_FULL_HD,), layouts=_LAST),
    Group("norm_conv2d", "k9-first", ((1, 3, 1080, 1920),), layouts=_LAST),
    Group("norm_conv2d", "k9-last", (_FULL_HD,), layouts=_LAST),
    Group("norm_conv2d", "transpose-k4", (_RESIDUAL,), layouts=_LAST),
    Group("norm_conv2d", "nearest-k3", (_RESIDUAL,), layouts=_LAST),
    # cuDNN's graph pads with zeros, and is for float16.
    Group("norm_conv2d", "k3-zeros", (_RESIDUAL,), _FLOAT16, _LAST),
    Group("norm_conv2d", "stride2-zeros", (_FULL_HD,), _FLOAT16, _LAST),
)


def grid(quick: bool = False, shape: Shape | None = None) -> Iterator[Case]:
    """Yield all cases, op by op.

    Args:
        quick: only the first shape and layout of every group.
        shape: this shape instead of the listed ones.
    """

    def rows() -> Iterator[Case]:
        for group in GROUPS:
            for sizes in chosen(group.shapes, quick, shape):
                for layout in group.layouts[:1] if quick else group.layouts:
                    yield Case(
                        group.op,
                        group.variant,
                        sizes,
                        group.dtype,
                        layout,
                        group.backward,
                        "cuda",
                        group.target,
                    )

    return iter(dict.fromkeys(rows()))  # with `shape` some groups become equal
