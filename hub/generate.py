"""Writes the kernel for Hugging Face ``kernels``: ``generate.py folder``, a new folder.

    build.toml, flake.nix, LICENSE    for kernel-builder
    torch-ext/stylekernels/           modules of the package, and those of hub/torch-ext
    build/torch-<backend>/            the same as `kernels` loads it, with metadata.json

The modules of the package are copied, with ``from stylekernels.x import`` made relative. The ops of
a build variant have a namespace that no other version has: its name has a hash of the sources.
"""

import ast
import hashlib
import json
import sys
from base64 import b64encode
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
HUB = ROOT / "hub"
#: Modules and folders of the package that are part of the kernel.
PARTS = (
    "files.py",
    "lazy.py",
    "tensors.py",
    "conversion.py",
    "reference",
    "triton",
    "ops",
    "nn",
)

#: A module of each variant. kernel-builder writes one of the same names.
OPS = '''"""The ops of this build of the kernel, in a namespace of their own."""

import torch

_NAMESPACE = "{id}"

ops = getattr(torch.ops, _NAMESPACE)


def add_op_namespace_prefix(name: str) -> str:
    """Return the name of an op with its namespace."""
    return f"{{_NAMESPACE}}::{{name}}"
'''

#: Older versions of `kernels` import the package from a folder of its name inside the variant.
IN_A_FOLDER = '''"""The same package for versions of ``kernels`` that look for it in this folder."""

import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    _path = Path(__file__).resolve().parents[1] / "__init__.py"
    _spec = importlib.util.spec_from_file_location("{id}", _path)
    sys.modules["{id}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["{id}"])

_kernel = sys.modules["{id}"]
__all__ = _kernel.__all__
globals().update((name, getattr(_kernel, name)) for name in __all__)
'''


def with_relative_imports(source: str, depth: int) -> str:
    """Return the source of a module of the package whose imports from the package are relative.

    Args:
        source: Python code.
        depth: how many folders below the package's own the module is in.

    Raises:
        ValueError: for ``import stylekernels``, which has no relative form.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(
            alias.name.partition(".")[0] == "stylekernels" for alias in node.names
        ):
            raise ValueError(
                f"line {node.lineno}: expected `from stylekernels... import`, got "
                f"{ast.unparse(node)!r}; a kernel has only relative imports"
            )
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        package, _, module = node.module.partition(".")
        if package == "stylekernels":
            line = lines[node.lineno - 1]
            relative = "." * (depth + 1) + module
            lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from {relative} ", 1)
    return "".join(lines)


def package_sources() -> dict[str, str]:
    """Return the modules of the kernel's Python package by their paths in it."""
    package = ROOT / "stylekernels"
    paths = [path for part in PARTS for path in sorted((package / part).glob("*.py"))]
    paths += [package / part for part in PARTS if part.endswith(".py")]
    sources = {}
    for path in paths:
        inside = path.relative_to(package)
        sources[str(inside)] = with_relative_imports(path.read_text(), len(inside.parts) - 1)
    own = HUB / "torch-ext" / "stylekernels"
    return sources | {path.name: path.read_text() for path in sorted(own.glob("*.py"))}


def variant_files(sources: dict[str, str], general: dict, backend: str) -> dict[str, str]:
    """Return the files of a build variant by their paths in it.

    Args:
        sources: what `package_sources` returns.
        general: the table of this name in build.toml.
        backend: one of its backends.
    """
    text = "".join(f"{path}\n{source}" for path, source in sorted(sources.items()))
    unique = hashlib.sha256(text.encode()).hexdigest()[:10]
    module = general["name"].replace("-", "_")
    name = f"_{module}_{backend}_{unique}"
    files = {
        **sources,
        "_ops.py": OPS.format(id=name),
        f"{module}/__init__.py": IN_A_FOLDER.format(id=name),
    }
    digests = {
        path: b64encode(hashlib.sha256(source.encode()).digest()).decode()
        for path, source in sorted(files.items())
    }
    metadata = {
        "id": name,
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    return {**files, "metadata.json": json.dumps(metadata, indent=2) + "\n"}


def write(folder: Path) -> None:
    """Write the kernel into a folder.

    Raises:
        FileExistsError: if the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"folder: expected a new or empty one, got {folder}; remove it first")
    build = (HUB / "build.toml").read_text()
    general = tomllib.loads(build)["general"]
    sources = package_sources()
    files = {
        "build.toml": build,
        "flake.nix": (HUB / "flake.nix").read_text(),
        "LICENSE": (ROOT / "LICENSE").read_text(),
    }
    files |= {f"torch-ext/stylekernels/{path}": source for path, source in sources.items()}
    for backend in general["backends"]:
        variant = variant_files(sources, general, backend)
        files |= {f"build/torch-{backend}/{path}": text for path, text in variant.items()}
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} folder")
    try:
        write(Path(sys.argv[1]))
    except FileExistsError as error:
        sys.exit(str(error))
