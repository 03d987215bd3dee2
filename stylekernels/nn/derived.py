"""Classes that `convert` derives from those of a model, for objects that change their class."""

from torch import nn

_ORIGIN = "_stylekernels_origin"


class Derived(nn.Module):
    """Base of such classes. An ``__init_subclass__`` of the model's is not for them."""

    def __init_subclass__(cls, **options) -> None:
        pass


def derive(name: str, base: type[Derived], kind: type[nn.Module], **members: object) -> type:
    """Return a class that derives from ``base`` and ``kind``, for objects of ``kind``."""
    return type(name, (base, kind), {"__module__": kind.__module__, **members, _ORIGIN: kind})


def origin(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that one was derived from by `derive`; others as they are."""
    return vars(kind).get(_ORIGIN, kind)
