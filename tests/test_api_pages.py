"""The pages of docs/api have every public name, from where it is defined."""

import importlib
import re
from pathlib import Path

import pytest

import stylekernels

PAGES = Path(stylekernels.__file__).parents[1] / "docs" / "api"
ENTRIES = [
    entry
    for page in sorted(PAGES.glob("*.md"))
    for entry in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]
PACKAGES = ("", ".nn", ".models", ".losses", ".inference", ".training")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_a_page(package) -> None:
    module = importlib.import_module(f"stylekernels{package}")
    names = {entry.rpartition(".")[2] for entry in ENTRIES if entry.startswith(module.__name__)}
    missing = {name for name in module.__all__ if name != "nn"} - names
    assert not missing


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_have_docstrings(entry) -> None:
    module, _, name = entry.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found.__module__ == module
    assert found.__doc__


def test_no_entry_occurs_twice() -> None:
    assert len(set(ENTRIES)) == len(ENTRIES) > 30
