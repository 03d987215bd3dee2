"""The tests on the emulated GPU find faults put into the CUDA kernels on purpose: each check of
`tests.cuda_faults` passes on the kernels as they are, and fails on those with a fault."""

import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import torch

from stylekernels import use_impl
from tests.cuda_faults import KERNELS
from tests.emulated_cuda import ROOT, build_kernels, emulated_cuda

SEEDS = range(3)

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no source tree")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: expected once, found {text.count(old)} times: {old}"
    path.write_text(text.replace(old, new))


@pytest.fixture
def csrc(tmp_path) -> Path:
    """A copy of csrc/, to change."""
    folder = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", folder, ignore=shutil.ignore_patterns("cpu"))
    return folder


def build(name: str, of: str, csrc: Path) -> Path:
    """The library of the kernels ``of``. It has no other kernels, which take time to compile."""
    kernels = KERNELS[of]
    for old, new in kernels.fewer_types:
        replace(csrc / "cuda" / kernels.source, old, new)
    return build_kernels(
        re.sub(r"\W+", "-", f"{of} {name}"),
        csrc,
        flags=("-O0",),
        sources=(kernels.source,),
        unchanged=kernels.needs,
    )


def run(library: Path, of: str, check: str, limits: str, seed: int, log: Path) -> None:
    """A process of its own: the emulation ends it where memory must not be accessed."""
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    for name, value in (KERNELS[of].limits[limits] | {"SEED": seed}).items():
        os.environ[f"CUDA_EMULATION_{name}"] = str(value)
    torch.set_num_threads(1)
    with use_impl("native"), emulated_cuda(library):
        KERNELS[of].checks[check]()


def outcomes(library: Path, of: str, check: str, limits: Iterable[str], log: Path) -> list[str]:
    """What a check says for each of the limits and `SEEDS`: the error, or nothing if it passes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._inductor"])  # seconds, for poisoned_memory
    texts = []
    for of_gpu, seed in product(limits, SEEDS):
        arguments = (library, of, check, of_gpu, seed, log)
        process = context.Process(target=run, args=arguments, daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode is not None, f"{of_gpu}, seed {seed}: no end within 60 seconds"
        said = log.read_text().strip() or f"exit code {process.exitcode}"
        texts.append(said if process.exitcode != 0 else "")
    return texts


@pytest.mark.parametrize(
    ("of", "check"), [(of, check) for of, kernels in KERNELS.items() for check in kernels.checks]
)
def test_kernels_as_they_are_pass(of, check, csrc, tmp_path) -> None:
    library = build("unchanged", of, csrc)
    assert set(outcomes(library, of, check, KERNELS[of].limits, tmp_path / "log")) == {""}


@pytest.mark.parametrize(
    ("of", "name"), [(of, name) for of, kernels in KERNELS.items() for name in kernels.faults]
)
def test_faults_are_found(of, name, csrc, tmp_path) -> None:
    fault = KERNELS[of].faults[name]
    replace(csrc / "cuda" / fault.file, fault.old, fault.new)
    library = build(name, of, csrc)
    limits = fault.limits or KERNELS[of].limits
    said = outcomes(library, of, fault.check, limits, tmp_path / "log")
    found = [text for text in said if text and re.search(fault.message, text)]
    assert len(found) >= fault.seen * len(said), [text[-300:] or "passes" for text in said]
