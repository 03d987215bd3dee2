"""Public names, and modules that importing the package must not import."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stylekernels

ROOT = Path(stylekernels.__file__).parents[1]
LAZY = ("stylekernels", "stylekernels.models", "stylekernels.training")
PACKAGES = (*LAZY, "stylekernels.nn", "stylekernels.ops", "stylekernels.reference")


def python(source: str) -> str:
    """Return the output of a new process that runs ``source``."""
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names(package) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        public = getattr(module, name)
        assert inspect.getdoc(public), f"{name} has no documentation"
        assert public.__name__.rpartition(".")[2] == name


@pytest.mark.parametrize("package", LAZY)
def test_the_package_itself_imports_no_torch(package) -> None:
    source = (
        f"import sys, {package} as p; print('torch' in sys.modules, set(p.__all__) <= set(dir(p)))"
    )
    assert python(source) == "False True"


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_same_names(package) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and "TYPE" in ast.unparse(node.test)
        and not isinstance(node.test, ast.UnaryOp)
    )
    for statement in block.body:
        for alias in statement.names:
            there = getattr(importlib.import_module(statement.module), alias.name)
            assert getattr(module, alias.name) is there
    names = [alias.name for statement in block.body for alias in statement.names]
    assert sorted(names) == sorted(module.__all__)


@pytest.mark.parametrize(
    "before", ["", "import stylekernels.conversion", "from stylekernels.conversion import Report"]
)
def test_convert_is_the_function_whatever_was_imported_before(before) -> None:
    source = f"{before}\nimport stylekernels\nprint(stylekernels.convert.__module__)"
    assert python(source) == "stylekernels.conversion"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"^module 'stylekernels' has no attribute 'blend'$"):
        getattr(stylekernels, "blend")  # noqa: B009
    with pytest.raises(ImportError, match=r"^cannot import name 'blend' from 'stylekernels'"):
        from stylekernels import blend  # noqa: F401
