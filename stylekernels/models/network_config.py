"""Settings of a network as plain values, which files of weights hold."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

_Config = TypeVar("_Config", bound="NetworkConfig")


class NetworkConfig:
    """Base of the dataclasses that say what a network is like."""

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: for an unknown name or a value that is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or not values.keys() <= known:
            raise ValueError(f"config: expected fields among {', '.join(sorted(known))}, "
                             f"got {values!r}")  # fmt: skip
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)
