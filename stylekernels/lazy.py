"""Lazy packages: names are imported at their first use (PEP 562). Importing PyTorch takes seconds,
and the command line's help and refusals do not need it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any


def lazy(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package's ``__init__.py``.

    Args:
        package: the package's name.
        modules: for each public name, the module of the package that defines it. If a module has
            the same name, the name means the module. A function must not have the name of its
            module: importing the module would replace the function in the package. Modules need
            not be listed under their own names.
    """

    def get(name: str) -> Any:
        source = modules.get(name, name)
        if name not in modules and (name.startswith("_") or not find_spec(f"{package}.{name}")):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{source}")
        value = module if source == name else getattr(module, name)
        vars(sys.modules[package])[name] = value  # Python finds it without this function next time
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
