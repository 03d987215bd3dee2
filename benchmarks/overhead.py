"""The overhead of a call and of an import: ``python -m benchmarks overhead``.

Tensors are so small that their arithmetic takes no time. ours: the public function, in training
(gradients are recorded) or without gradients. kernel: the compiled op alone, which checks its
arguments again and allocates its results. overhead: ours without the kernel. PyTorch: its own
expression for the same.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import stylekernels
from benchmarks.report import Table, number
from benchmarks.timing import measure, summarize
from stylekernels.namespace import ops
from stylekernels.ops.autograd import below_autograd

_CALLS = 200  # timed together
_SECONDS = 1.0  # for the rounds of an op
_IMPORTS = 7
_TABLE = Table(
    (("op", 22), ("mode", 12), ("ours", 6), ("kernel", 6), ("overhead", 8), ("PyTorch", 7)), 2
)


@dataclass(frozen=True)
class Case:
    """An op: ours, the compiled op of the same arguments, and PyTorch's expression."""

    op: str
    ours: Callable[[], object]
    kernel: Callable[[], object]
    pytorch: Callable[[], object]


def _cases(training: bool) -> list[Case]:
    x = torch.randn(1, 8, 4, 4, requires_grad=training)
    weight, bias = (torch.randn(8, requires_grad=training) for _ in range(2))
    target = torch.randn(1, 8, 8)
    options = ("relu", 0.01, False, 1e-5, False)

    instance_norm, gram_matrix, gram_loss = (
        getattr(ops, name).default for name in ("instance_norm", "gram_matrix", "gram_loss")
    )

    def norm(group: int) -> Callable[[], object]:
        return lambda: instance_norm(x, weight, bias, None, None, None, *options, group)

    return [
        Case(
            "instance_norm + ReLU",
            lambda: stylekernels.instance_norm(x, weight, bias, activation="relu"),
            norm(1),
            lambda: F.relu(F.instance_norm(x, weight=weight, bias=bias)),
        ),
        Case(
            "group_norm + ReLU",
            lambda: stylekernels.group_norm(x, 2, weight, bias, activation="relu"),
            norm(4),
            lambda: F.relu(F.group_norm(x, 2, weight, bias)),
        ),
        Case(
            "gram_matrix",
            lambda: stylekernels.gram_matrix(x),
            lambda: gram_matrix(x, None, False),
            lambda: torch.bmm(x.flatten(2), x.flatten(2).mT) / x[0].numel(),
        ),
        Case(
            "gram_loss",
            lambda: stylekernels.gram_loss(x, target),
            lambda: gram_loss(x, target, None, False),
            lambda: F.mse_loss(torch.bmm(x.flatten(2), x.flatten(2).mT) / x[0].numel(), target),
        ),
    ]


def _seconds(case: Case) -> list[float]:
    """Median seconds of ours, of the kernel and of PyTorch's expression, interleaved."""

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(_CALLS):
                call()

        return calls

    contenders = {
        "ours": repeated(case.ours),
        "kernel": lambda: below_autograd(repeated(case.kernel)),
        "pytorch": repeated(case.pytorch),
    }
    for call in contenders.values():
        call()
    samples = measure(contenders, budget_s=_SECONDS)
    return [summarize(values).median / _CALLS for values in samples.values()]


def _import_seconds() -> tuple[float, float]:
    """Median seconds of a process that imports torch, and of one that also loads our ops."""
    programs = ("import torch", "import torch, stylekernels; stylekernels.instance_norm")
    times: tuple[list[float], ...] = ([], [])
    for _ in range(_IMPORTS):
        for program, taken in zip(programs, times, strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            taken.append(time.perf_counter() - start)
    alone, with_ours = times
    more = [ours - torch_s for torch_s, ours in zip(alone, with_ours, strict=True)]
    return statistics.median(alone), statistics.median(more)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(_options: argparse.Namespace) -> int:
    """Print the table, in microseconds, and the time of an import."""
    torch.set_num_threads(1)
    print("microseconds a call, medians, on one thread")
    print(_TABLE.header())
    for training in (True, False):
        for case in _cases(training):
            ours, kernel, pytorch = _seconds(case)
            cells = [number(s * 1e6) for s in (ours, kernel, ours - kernel, pytorch)]
            print(_TABLE.line([case.op, "training" if training else "no gradients", *cells]))
    alone, more = _import_seconds()
    print(f"\nimport torch: {alone:.2f} s; our ops: {more * 1e3:+.0f} ms more")
    return 0
