"""Classes of torch's and ours that compute the same, and subclasses of torch's that add nothing."""

import functools

from torch import nn

from stylekernels.nn.conv_transpose2d import ConvTranspose2d
from stylekernels.nn.derived import Derived, derive, origin
from stylekernels.nn.group_norm import GroupNorm
from stylekernels.nn.instance_norm import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)

#: What becomes of each class.
OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.LazyInstanceNorm1d: LazyInstanceNorm1d,
    nn.LazyInstanceNorm2d: LazyInstanceNorm2d,
    nn.LazyInstanceNorm3d: LazyInstanceNorm3d,
}
_TORCHS = {ours: theirs for theirs, ours in OURS.items()}
#: The options of a norm of ours that is torch's.
OPTIONS = {"activation": "none", "negative_slope": 0.01, "residual_first": False}
#: What a subclass may define and compute the same.
_HARMLESS = {"__init__", "reset_parameters", "extra_repr"}
_HARMLESS |= {"__doc__", "__module__", "__qualname__", "__dict__", "__weakref__", "__constants__"}
_HARMLESS |= {"__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"}
_HARMLESS |= {"__firstlineno__", "__static_attributes__"}


def base_of(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class of torch's in `OURS` that a class is or derives from; None if it derives
    from ours."""
    if issubclass(kind, tuple(_TORCHS)):
        return None
    return next((each for each in kind.__mro__ if each in OURS), None)


def added(kind: type[nn.Module], base: type[nn.Module]) -> list[str]:
    """Return what a class defines beyond a base that may change what it computes."""
    others = [each for each in kind.__mro__ if each not in base.__mro__]
    return [name for each in others for name in vars(each) if name not in _HARMLESS]


def theirs(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that a class of ours is the drop-in of; None for another class."""
    if issubclass(kind, _Replacing):
        return origin(kind) if origin(kind) is not kind else None
    return _TORCHS.get(kind)


class _Replacing(Derived):
    """A drop-in of a subclass of torch's."""


@functools.cache
def ours(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the drop-in of a class of `OURS`, or of a subclass that adds nothing: a class of its
    name that derives from both."""
    if kind in OURS:
        return OURS[kind]
    base = OURS[base_of(kind)]
    # Objects that the class itself makes have the options too.
    options = {} if base is ConvTranspose2d else OPTIONS
    mixed = type(base.__name__, (_Replacing, base), {})
    return derive(kind.__name__, mixed, kind, ours, __init__=kind.__init__, **options)
