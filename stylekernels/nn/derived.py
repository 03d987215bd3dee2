"""Classes that `convert` derives from those of a model, for objects that change their class."""

from collections.abc import Callable

from torch import nn

_ORIGIN, _MAKER = "_stylekernels_origin", "_stylekernels_maker"


class Derived(nn.Module):
    """Base of such classes. An ``__init_subclass__`` of the model's is not for them."""

    def __init_subclass__(cls, **options) -> None:
        pass

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, getattr(type(self), _MAKER), *state


def derive(
    name: str,
    base: type[Derived],
    kind: type[nn.Module],
    maker: Callable[..., type],
    *arguments: object,
    **members: object,
) -> type:
    """Return a class that derives from ``base`` and ``kind``, for objects of ``kind``.

    Args:
        name: its name.
        base: a class of ours.
        kind: a class of the model's.
        maker: returns the class for ``kind`` and ``arguments``: pickle and copy call it.
        arguments: more arguments of ``maker``.
        members: the attributes of the class.
    """
    members |= {"__module__": kind.__module__, _ORIGIN: kind, _MAKER: (maker, kind, *arguments)}
    return type(name, (base, kind), members)


def _new(maker: Callable[..., type], *arguments: object) -> nn.Module:
    """Return an empty object for pickle or copy to fill."""
    made = maker(*arguments)
    return made.__new__(made)


def origin(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that one was derived from by `derive`; others as they are."""
    return vars(kind).get(_ORIGIN, kind)
