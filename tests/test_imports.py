"""Modules import each other in no circle, and folders only those above them in docs/design.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements anywhere below a node, without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for statement in child.orelse:
                yield from import_statements(statement)
        else:
            yield from import_statements(child)


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path, packages: list[str]) -> dict[str, set[str]]:
    """The modules that each module of some packages imports, of the same packages.

    ``from package import name`` imports the package, and the module of that name if there is one.
    A package is not counted for the modules inside it: Python has begun to import it then.
    """
    paths = [path for package in packages for path in (root / package).rglob("*.py")]
    names = {module_name(root, path): path for path in paths}
    graph = {}
    for module, path in names.items():
        found = set()
        for statement in import_statements(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import):
                found.update(alias.name for alias in statement.names)
                continue
            assert statement.level == 0, f"{module}: a relative import"
            found.add(statement.module)
            found.update(f"{statement.module}.{alias.name}" for alias in statement.names)
        graph[module] = {name for name in found & names.keys() if not module.startswith(f"{name}.")}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Return a path of imports that ends at its beginning; None if there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for imported in sorted(graph[module]):
            circle = search(imported, [*path, module])
            if circle:
                return circle
        done.add(module)
        return None

    return next(filter(None, (search(module, []) for module in sorted(graph))), None)


@pytest.mark.parametrize("packages", [["stylekernels"], ["benchmarks", "stylekernels"]])
def test_no_modules_import_each_other(packages) -> None:
    circle = find_circle(import_graph(ROOT, packages))
    assert circle is None, " imports ".join(circle)


#: Folders and modules of the package, in the order of docs/design.md. `python -m` runs the last.
ORDER = (
    "lazy",
    "files",
    "signals",
    "native",
    "hardware",
    "tensors",
    "namespace",
    "reference",
    "triton",
    "ops",
    "nn",
    "conversion",
    "fusion",
    "models",
    "losses",
    "weights",
    "media",
    "training",
    "inference",
    "serve",
    "export",
    "evaluation",
    "cli",
    "__main__",
)


def test_folders_import_only_those_above_them() -> None:
    names = {path.stem for path in (ROOT / "stylekernels").glob("*") if path.suffix in ("", ".py")}
    assert names - {"__init__", "__pycache__"} == set(ORDER)
    wrong = []
    for module, imported in import_graph(ROOT, ["stylekernels"]).items():
        for other in imported:
            folders = [name.split(".")[1:2] for name in (module, other)]
            if all(folders) and ORDER.index(*folders[0]) < ORDER.index(*folders[1]):
                wrong.append(f"{module} imports {other}")
    assert not wrong


@pytest.mark.parametrize(
    ("last", "circle"),
    [
        ("def f():\n    from p import a", ["p.a", "p.b", "p.c", "p.a"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a", None),
        ("import os", None),
    ],
)
def test_a_circle_is_found(tmp_path, last, circle) -> None:
    (tmp_path / "p").mkdir()
    for name, text in (("__init__", ""), ("a", "import p.b"), ("b", "from p.c import x")):
        (tmp_path / "p" / f"{name}.py").write_text(text)
    (tmp_path / "p" / "c.py").write_text(last)
    assert find_circle(import_graph(tmp_path, ["p"])) == circle
