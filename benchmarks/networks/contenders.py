"""The contenders: a network by fused ops and in PyTorch, their answers, and the norms' share."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile, record_function

from benchmarks.race import Entry
from stylekernels import convert, fuse_convolutions

RIVALS = ("eager", "eager-nhwc", "compile")

#: The output, and in a step the gradients of all parameters that have one.
Answer = list[Tensor]
Call = Callable[[], Answer]


class Problem(NamedTuple):
    """A network, in training mode if gradients are wanted, its input, and the gradient of its
    output."""

    model: nn.Module
    x: Tensor
    cotangent: Tensor | None = None

    def to(self, *where: object) -> "Problem":
        """Return a copy on a device and in a dtype."""
        model = copy.deepcopy(self.model).to(*where)
        return Problem(model, *(None if t is None else t.to(*where) for t in self[1:]))

    def channels_last(self) -> "Problem":
        """Return a copy in channels_last, of volumes channels_last_3d."""
        layout = torch.channels_last if self.x.dim() == 4 else torch.channels_last_3d
        model = copy.deepcopy(self.model).to(memory_format=layout)
        given = (t if t is None else t.contiguous(memory_format=layout) for t in self[1:])
        return Problem(model, *given)

    def call(self, function: Callable[[Tensor], Tensor] | None = None) -> Call:
        """Return a call that answers; ``function`` runs in place of the model."""
        model, x, cotangent = self
        function = model if function is None else function
        if cotangent is None:
            return lambda: [function(x)]
        parameters = list(model.parameters())

        def step() -> Answer:
            y = function(x)
            grads = torch.autograd.grad(y, parameters, cotangent, allow_unused=True)
            return [y.detach(), *(grad for grad in grads if grad is not None)]

        return step


def enter(
    problem: Problem, rivals: Sequence[str], compile_mode: str
) -> tuple[list[Entry], tuple[int, int, int]]:
    """Return the contenders, ours first, and the counts of the report of ours: what it fused, what
    runs alone, what it left.

    Ours is `fuse_convolutions` for images without gradients, else `convert`, which is also entered
    as ``both``, compiled.
    """
    wide, ours = problem.channels_last(), problem.channels_last()
    if problem.x.dim() == 4 and problem.cotangent is None:
        expression = "fuse_convolutions(model, (x,))[0](x) in channels_last"
        fused, report = fuse_convolutions(ours.model, (ours.x,))
    else:
        expression = "convert(model)[0](x) in channels_last"
        fused, report = convert(ours.model)
    compiled = torch.compile(wide.model, mode=compile_mode)
    entries = [
        Entry("ours", expression, ours.call(fused)),
        Entry("eager", "model(x)", problem.call()),
        Entry("eager-nhwc", "model(x) in channels_last", wide.call()),
        Entry("compile", "torch.compile(model)(x) in channels_last", wide.call(compiled)),
    ]
    chosen = [entry for entry in entries if entry.name in ("ours", *rivals)]
    if expression.startswith("convert") and "compile" in rivals:
        expression = "torch.compile(convert(model)[0])(x) in channels_last"
        both = torch.compile(fused, mode=compile_mode)
        chosen.append(Entry("both", expression, ours.call(both)))
    return chosen, (len(report.fused), len(report.alone), len(report.left))


_NORMS = {
    "aten::instance_norm",
    "aten::group_norm",
    "aten::batch_norm",
    "autograd::engine::evaluate_function: NativeBatchNormBackward0",
    "autograd::engine::evaluate_function: NativeGroupNormBackward0",
}


def norms_share(call: Call) -> float:
    """Return the share of the time of a call on the CPU that PyTorch's instance, group and batch
    norms take, forward and backward."""
    call()
    with profile(use_kineto=False) as profiler, record_function("whole"):
        call()
    whole, norms = 0.0, 0.0
    for event in profiler.function_events:
        if event.name == "whole":
            whole += event.cpu_time_total
        elif event.name in _NORMS and not _within_norm(event.cpu_parent):
            norms += event.cpu_time_total
    return norms / whole


def _within_norm(event) -> bool:
    return event is not None and (event.name in _NORMS or _within_norm(event.cpu_parent))
