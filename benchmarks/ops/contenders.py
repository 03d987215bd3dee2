"""Preparation of a problem's calls for timing, and checks of their answers."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks import race
from benchmarks.cpu import Cpu
from benchmarks.device import Device
from benchmarks.ops.cases import laid_out
from benchmarks.ops.peers import Expression
from benchmarks.ops.problems import Problem
from benchmarks.race import Entry
from benchmarks.timing import fastest

Results = tuple[Tensor, ...]

#: The rivals on a device and the layout of each; None means the case's. A GPU has fast kernels for
#: both layouts, and copies where they mix, so users choose the faster one.
RIVALS: dict[str, dict[str, str | None]] = {
    "cpu": {"eager": None, "compile": None},
    "cuda": {
        "eager": "contiguous",
        "eager-nhwc": "channels_last",
        "compile": None,
        "cudnn-graph": None,
    },
}

#: The largest relative error of a right answer (Euclidean norm, the worst of all results) by the
#: precision of products: a few times the error of a sum of products.
TOLERANCE = {"float32": 5e-5, "tf32": 1e-2, "bfloat16": 2e-2, "float16": 3e-3}

#: The expression that is compiled first for a GPU. Others follow only if it fails or its answer is
#: wrong, because compiling takes seconds. The compiler fuses the same operations in all of them.
_COMPILED_FIRST = ("var_mean", "bmm")


def _as_tuple(result: Tensor | Results) -> Results:
    return result if isinstance(result, tuple) else (result,)


class Steps:
    """Makes calls without arguments from functions of a problem's inputs: the op alone, or the op
    and the gradients of its inputs for a given gradient.

    Args:
        problem: the tensors.
        layout: layout of the images and kernels among them; by default the problem's.
        sets: number of copies of the tensors. Each has calls of its own.
    """

    def __init__(self, problem: Problem, layout: str | None = None, sets: int = 1) -> None:
        self.wanted = problem.wanted
        self.inputs: list[Results] = []
        self.grads: list[Tensor | None] = []
        for index in range(sets):
            copies = [
                _copy(tensor, layout, again=index > 0) for tensor in (*problem.inputs, problem.grad)
            ]
            self.grads.append(copies.pop())
            self.inputs.append(self._leaves(tuple(copies)))

    def _leaves(self, tensors: Results) -> Results:
        leaves = tuple(tensor.detach() for tensor in tensors)
        if self.grads[0] is not None:
            for index in self.wanted:
                leaves[index].requires_grad_()
        return leaves

    def calls(self, function: Expression) -> list[Callable[[], Results]]:
        """Return one step of ``function`` for each set of inputs. A step returns the results, and
        the gradients if they are timed."""
        return [
            self._bind(function, inputs, grad)
            for inputs, grad in zip(self.inputs, self.grads, strict=True)
        ]

    def truth(self, function: Expression) -> Results:
        """Return the results of one step in float64."""
        inputs = self._leaves(tuple(tensor.double() for tensor in self.inputs[0]))
        grad = None if self.grads[0] is None else self.grads[0].double()
        searches = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # not worth it for a single call
        try:
            return self._bind(function, inputs, grad)()
        finally:
            torch.backends.cudnn.benchmark = searches

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


def _copy(tensor: Tensor | None, layout: str | None, again: bool) -> Tensor | None:
    """Return the tensor in a layout; with ``again`` always a copy."""
    if tensor is None:
        return None
    if layout is not None and tensor.dim() >= 4:
        tensor = laid_out(tensor, layout)
    return tensor.clone() if again else tensor


def relative_error(results: Results, truth: Results) -> float:
    """Return the worst Euclidean error among the results, as a share of the truth's norm."""
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


def refusal(call: Callable[[], Results], truth: Results, precision: str) -> str | None:
    """Return why a contender is refused: it fails, or its answer is wrong. None if it may run."""
    return race.refusal(lambda: relative_error(call(), truth), TOLERANCE[precision])


def sets_of(problem: Problem, device: Device) -> int:
    """Return the number of sets of inputs that a contender's call uses."""
    return device.sets(sum(tensor.nbytes for tensor in problem.inputs))


def enter(
    problem: Problem,
    rivals: Sequence[str],
    compile_mode: str = "default",
    device: Device | None = None,
) -> list[Entry]:
    """Return the contenders of a problem, ours first, each with a right answer or the reason why it
    was refused.

    Args:
        problem: the tensors and functions.
        rivals: some of the device's rivals in ``RIVALS``.
        compile_mode: ``mode`` of torch.compile.
        device: the device of the tensors; the CPU by default.
    """
    device = device or Cpu()
    if "compile" in rivals:
        torch._dynamo.reset()  # dynamo compiles a function for at most eight cases
    sets = sets_of(problem, device)
    layouts = {rival: RIVALS[device.name][rival] for rival in rivals}
    steps = {layout: Steps(problem, layout, sets) for layout in {None, *layouts.values()}}
    truth = steps[None].truth(next(iter(problem.expressions.values())))

    def entry(name: str, expression: str, function: Expression, steps: Steps) -> Entry:
        try:
            call, note = device.ready(steps.calls(function))
        except Exception as exception:  # a failure is a result, as in race.refusal
            return Entry(name, expression, None, race.failure(exception))
        error = refusal(call, truth, problem.precision)
        return Entry(name, expression, call if error is None else None, error, note)

    entries = [entry("ours", "stylekernels", problem.ours, steps[None])]
    for rival, layout in layouts.items():
        expressions, one_will_do = problem.expressions, False
        if rival == "cudnn-graph":
            if problem.cudnn_graph is None:
                continue
            try:
                expressions = problem.cudnn_graph()
            except Exception as exception:  # it has no plan for these tensors
                entries.append(Entry(rival, "", None, race.failure(exception)))
                continue
        elif rival == "compile":
            expressions = _compiled(expressions, compile_mode)
            one_will_do = device.name == "cuda"
        tried: list[Entry] = []
        for expression in expressions.items():
            tried.append(entry(rival, *expression, steps[layout]))
            if one_will_do and tried[-1].error is None:
                break
        right = {candidate.expression: candidate for candidate in tried if candidate.call}
        if right:
            calls = {name: candidate.call for name, candidate in right.items()}
            entries.append(right[fastest(calls, clock=device.clock)])
        else:
            entries.append(tried[0])
    return entries


def _compiled(expressions: Mapping[str, Expression], mode: str) -> dict[str, Expression]:
    return {
        name: torch.compile(expressions[name], fullgraph=True, dynamic=False, mode=mode)
        for name in sorted(expressions, key=lambda name: name not in _COMPILED_FIRST)
    }


def plain_copy(problem: Problem) -> Callable[[], Tensor]:
    """Return a call that reads and writes x once, in its layout."""
    x = problem.inputs[0].detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
