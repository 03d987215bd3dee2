"""Names and Python code in README.md and docs/ work in a process that imported nothing else."""

import ast
import importlib.util
import json
import re
import subprocess
import sys

from tests.documents import ROOT, fenced

TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "stylekernels/weights/*.md")
    for path in sorted(ROOT.glob(pattern))
]
DOTTED = re.compile(r"(?<![\w./-])stylekernels(?:\.[A-Za-z_]\w*)+")
BLOCKS = [block for path in TEXTS for block in fenced(path.read_text(), "python")]
NAMES = sorted({name for path in TEXTS for name in DOTTED.findall(path.read_text())})

# Packages that need not be installed. nnU-Net has 470 MB with what it imports.
OTHERS = ("kernels", "nnunetv2")
MISSING = tuple(f"from {name}" for name in OTHERS if importlib.util.find_spec(name) is None)


# Runs each line of Python in a process that has imported only torch, which takes most of the time.
FORKS = """
import json, os, sys, traceback, torch
for source in json.load(sys.stdin):
    from_child, to_parent = os.pipe()
    if os.fork() == 0:
        try:
            exec(source, {})
        except BaseException:
            os.write(to_parent, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(to_parent)
    said = open(from_child).read()
    print(json.dumps([source, os.wait()[1], said]))
"""


def failures(sources: list[str]) -> list:
    """Return the sources that fail, each in a new process, with status and traceback."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [source for source, *_ in found] == sources
    return [(source, status, said) for source, status, said in found if status or said]


def test_there_is_something_to_test() -> None:
    assert len(BLOCKS) >= 4
    assert {"stylekernels.explain", "stylekernels.triton.tuning.autotune"} <= {*NAMES}
    assert DOTTED.findall("torch.ops.stylekernels.x, `stylekernels.a.b()`") == ["stylekernels.a.b"]


def test_names_work_after_import_stylekernels() -> None:
    without_triton = importlib.util.find_spec("triton") is None
    names = [n for n in NAMES if not (without_triton and n.startswith("stylekernels.triton."))]
    assert failures([f"import stylekernels\n{name}" for name in names]) == []


def test_the_imports_of_examples_work() -> None:
    sources = []
    for block in BLOCKS:
        nodes = ast.walk(ast.parse(block))
        imports = [
            node
            for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom)
            and not ast.unparse(node).startswith(MISSING)
        ]
        assert imports, f"an example says where its names come from: {block}"
        sources.append("\n".join(map(ast.unparse, imports)))
    assert failures(sources) == []


def test_a_failure_is_found() -> None:
    (failure,) = failures(["import stylekernels", "import stylekernels\nstylekernels.no_such_name"])
    assert "no attribute 'no_such_name'" in failure[2]
