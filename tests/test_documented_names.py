"""Names and Python in README.md and docs/ work in a process that has imported nothing else."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stylekernels

ROOT = Path(stylekernels.__file__).parents[1]
TEXTS = [path for pattern in ("*.md", "docs/*.md", "stylekernels/weights/*.md")
         for path in sorted(ROOT.glob(pattern))]  # fmt: skip
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOTTED = re.compile(r"(?<![\w./-])stylekernels(?:\.[A-Za-z_]\w*)+")
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{index}")
    for path in TEXTS
    for index, block in enumerate(FENCED.findall(path.read_text()))
]
NAMES = sorted({name for path in TEXTS for name in DOTTED.findall(path.read_text())})


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)


def test_there_is_something_to_test() -> None:
    assert len(BLOCKS) >= 4
    assert {"stylekernels.explain", "stylekernels.triton.tuning.autotune"} <= {*NAMES}
    assert DOTTED.findall("torch.ops.stylekernels.x, `stylekernels.a.b()`") == ["stylekernels.a.b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_works_after_import_stylekernels(name) -> None:
    if name.startswith("stylekernels.triton.") and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    result = run(f"import stylekernels\n{name}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", BLOCKS)
def test_the_imports_of_an_example_work(block) -> None:
    tree = ast.parse(block)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports, "an example says where its names come from"
    result = run("\n".join(map(ast.unparse, imports)))
    assert result.returncode == 0, result.stderr
