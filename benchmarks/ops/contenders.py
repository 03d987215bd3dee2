"""From a problem to calls that can be timed, and the check that their answers are right."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import race
from benchmarks.ops.cases import Problem
from benchmarks.ops.peers import Expression
from benchmarks.race import Entry
from benchmarks.timing import fastest

Results = tuple[Tensor, ...]

#: Relative error (in the Euclidean norm, the worst of all results) above which an answer is wrong.
#: A convolution's output rounded to bfloat16 falls on the other side of a ReLU for one value in a
#: thousand, which alone moves gradients by 3 %.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def _as_tuple(result: Tensor | Results) -> Results:
    return result if isinstance(result, tuple) else (result,)


class Steps:
    """Turns functions of a problem's inputs into calls without arguments, all on the same tensors:
    the op alone, or the op and the gradients of its inputs for one given gradient."""

    def __init__(self, problem: Problem) -> None:
        self.wanted = problem.wanted
        self.grad = problem.grad
        self.inputs = self._leaves(problem.inputs)

    def _leaves(self, tensors: Results) -> Results:
        leaves = tuple(tensor.detach() for tensor in tensors)
        if self.grad is not None:
            for index in self.wanted:
                leaves[index].requires_grad_()
        return leaves

    def call(self, function: Expression) -> Callable[[], Results]:
        """One step of ``function``: its results, and the gradients where they are timed."""
        return self._bind(function, self.inputs, self.grad)

    def truth(self, function: Expression) -> Results:
        """The results of one step in float64."""
        inputs = self._leaves(tuple(tensor.double() for tensor in self.inputs))
        return self._bind(function, inputs, None if self.grad is None else self.grad.double())()

    def _bind(
        self, function: Expression, inputs: Results, grad: Tensor | None
    ) -> Callable[[], Results]:
        if grad is None:

            def forward() -> Results:
                with torch.no_grad():
                    return _as_tuple(function(*inputs))

            return forward
        wanted = tuple(inputs[index] for index in self.wanted)

        def forward_backward() -> Results:
            result = function(*inputs)
            return result, *torch.autograd.grad(result, wanted, grad)

        return forward_backward


def relative_error(results: Results, truth: Results) -> float:
    """The worst Euclidean error among the results, as a share of the truth's norm."""
    worst = 0.0
    for result, true in zip(results, truth, strict=True):
        if result.shape != true.shape:
            return math.inf
        norm = torch.linalg.vector_norm(true).item()
        error = torch.linalg.vector_norm(result.detach().double() - true).item()
        worst = max(worst, error / max(norm, 1e-300))
        if not math.isfinite(error):
            return math.inf
    return worst


def refusal(call: Callable[[], Results], truth: Results, dtype: torch.dtype) -> str | None:
    """Why a contender may not run, because it fails or its answer is wrong; None if it may."""
    return race.refusal(lambda: relative_error(call(), truth), TOLERANCE[dtype])


def enter(problem: Problem, rivals: Sequence[str], compile_mode: str = "default") -> list[Entry]:
    """The contenders of a problem, ours first, each with a right answer or refused.

    Args:
        problem: the tensors and functions.
        rivals: of ``"eager"`` and ``"compile"``.
        compile_mode: ``mode`` of torch.compile.
    """
    if "compile" in rivals:
        torch._dynamo.reset()  # else the ninth case of an expression would run uncompiled
    steps = Steps(problem)
    dtype = problem.inputs[0].dtype
    truth = steps.truth(next(iter(problem.expressions.values())))
    ours = steps.call(problem.ours)
    entries = [Entry("ours", "stylekernels", ours, refusal(ours, truth, dtype))]
    for rival in rivals:
        calls, refused = {}, {}
        for name, expression in problem.expressions.items():
            if rival == "compile":
                expression = torch.compile(
                    expression, fullgraph=True, dynamic=False, mode=compile_mode
                )
            call = steps.call(expression)
            error = refusal(call, truth, dtype)
            if error is None:
                calls[name] = call
            else:
                refused[name] = error
        if calls:
            best = fastest(calls)
            entries.append(Entry(rival, best, calls[best]))
        else:
            name, error = next(iter(refused.items()))
            entries.append(Entry(rival, name, None, error))
    return entries


def plain_copy(problem: Problem) -> Callable[[], Tensor]:
    """One read and one write of x, in its layout."""
    x = problem.inputs[0].detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
