"""Makes calls of a problem that can be timed, and checks their answers."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks import race
from benchmarks.cpu import Cpu
from benchmarks.device import Device
from benchmarks.ops.cases import LAYOUTS
from benchmarks.ops.peers import Expression
from benchmarks.ops.problems import Problem
from benchmarks.race import Entry
from benchmarks.timing import fastest

Results = tuple[Tensor, ...]

#: The rivals on a device, and the layout that each gets; None: the case's. A GPU has fast kernels
#: for either layout and copies where they meet, so a user who measures takes the better one.
RIVALS: dict[str, dict[str, str | None]] = {
    "cpu": {"eager": None, "compile": None},
    "cuda": {"eager": "contiguous", "eager-nhwc": "channels_last", "compile": None},
}

#: Relative error (in the Euclidean norm, the worst of all results) above which an answer is wrong,
#: by the precision of the products: a few times that of a sum of products in it.
TOLERANCE = {"float32": 5e-5, "tf32": 1e-2, "bfloat16": 2e-2}

#: The expression that is compiled first for a GPU. The others follow only if its answer is wrong or
#: it fails, because each takes seconds. The compiler fuses the same few operations in all of them.
_COMPILED_FIRST = ("var_mean", "bmm")


def _as_tuple(result: Tensor | Results) -> Results:
    return result if isinstance(result, tuple) else (result,)


class Steps:
    """Turns functions of a problem's inputs into calls without arguments: the op alone, or the op
    and the gradients of its inputs for one given gradient.

    Args:
        problem: the tensors.
        layout: of the images and kernels among them; that of the problem by default.
        sets: so many copies of the tensors, each with calls of its own.
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
        """One step of ``function`` on each set of inputs: its results, and the gradients where
        they are timed."""
        return [
            self._bind(function, inputs, grad)
            for inputs, grad in zip(self.inputs, self.grads, strict=True)
        ]

    def truth(self, function: Expression) -> Results:
        """The results of one step in float64."""
        inputs = self._leaves(tuple(tensor.double() for tensor in self.inputs[0]))
        grad = None if self.grads[0] is None else self.grads[0].double()
        searches = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # a single call is not worth the search
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
    """The tensor in a layout, in memory of its own with ``again``."""
    if tensor is None:
        return None
    if layout is not None and tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=LAYOUTS[layout])
    return tensor.clone() if again else tensor


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


def refusal(call: Callable[[], Results], truth: Results, precision: str) -> str | None:
    """Why a contender may not run, because it fails or its answer is wrong; None if it may."""
    return race.refusal(lambda: relative_error(call(), truth), TOLERANCE[precision])


def sets_of(problem: Problem, device: Device) -> int:
    """The number of sets of inputs that a call of a contender goes through."""
    return device.sets(sum(tensor.nbytes for tensor in problem.inputs))


def enter(
    problem: Problem,
    rivals: Sequence[str],
    compile_mode: str = "default",
    device: Device | None = None,
) -> list[Entry]:
    """The contenders of a problem, ours first, each with a right answer or refused.

    Args:
        problem: the tensors and functions.
        rivals: of those that the device has in ``RIVALS``.
        compile_mode: ``mode`` of torch.compile.
        device: where the tensors are; the CPU by default.
    """
    device = device or Cpu()
    if "compile" in rivals:
        torch._dynamo.reset()  # else the ninth case of an expression would run uncompiled
    sets = sets_of(problem, device)
    layouts = {rival: RIVALS[device.name][rival] for rival in rivals}
    steps = {layout: Steps(problem, layout, sets) for layout in {None, *layouts.values()}}
    truth = steps[None].truth(next(iter(problem.expressions.values())))

    def entry(name: str, expression: str, function: Expression, steps: Steps) -> Entry:
        try:
            call, note = device.ready(steps.calls(function))
        except Exception as exception:  # as in race.refusal
            return Entry(name, expression, None, race.failure(exception))
        error = refusal(call, truth, problem.precision)
        return Entry(name, expression, call if error is None else None, error, note)

    entries = [entry("ours", "stylekernels", problem.ours, steps[None])]
    for rival, layout in layouts.items():
        expressions, one_will_do = problem.expressions, False
        if rival == "compile":
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
    """One read and one write of x, in its layout."""
    x = problem.inputs[0].detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
