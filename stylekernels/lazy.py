"""Packages whose names are imported when they are first used (PEP 562): PyTorch takes seconds, and
the command line's help and its refusals need none of it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any


def lazy(
    package: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package's ``__init__.py``.

    Args:
        package: the package's name.
        places: the module, within the package, of each public name. A module that has the name
            itself is what the name stands for; a function must not be called as its module is,
            because importing the module would put it in the function's place. Every module of the
            package is found under its own name without being listed.
    """

    def get(name: str) -> Any:
        place = places.get(name, name)
        if name not in places and (name.startswith("_") or not find_spec(f"{package}.{name}")):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{place}")
        value = module if place == name else getattr(module, name)
        vars(sys.modules[package])[name] = value  # found without this function the next time
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
