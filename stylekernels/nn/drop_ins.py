"""Classes of torch's and ours that compute the same, and subclasses of torch's that add nothing."""

import functools

from torch import nn

from stylekernels.nn.conv_transpose2d import ConvTranspose2d
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


def added(kind: type[nn.Module]) -> list[str]:
    """Return what a class defines beyond its `base_of` that may change what it computes."""
    others = [each for each in kind.__mro__ if each not in base_of(kind).__mro__]
    return [name for each in others for name in vars(each) if name not in _HARMLESS]


def theirs(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that a class of ours is the drop-in of; None for another class."""
    return _TORCHS.get(kind) or getattr(kind, "replaced", None)


class _Replacing(nn.Module):
    """A drop-in of a subclass of torch's."""

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (type(self).replaced,), *state


@functools.cache
def ours(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the drop-in of a class of `OURS`, or of a subclass that adds nothing: a class of its
    name that derives from both, and knows the subclass as ``replaced``."""
    if kind in OURS:
        return OURS[kind]
    members = {"__module__": kind.__module__, "__init__": kind.__init__, "replaced": kind}
    return type(kind.__name__, (_Replacing, OURS[base_of(kind)], kind), members)


def _new(kind: type[nn.Module]) -> nn.Module:
    """Return an empty object for pickle or copy to fill."""
    made = ours(kind)
    return made.__new__(made)
