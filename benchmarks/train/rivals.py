"""The contenders: a step of ``stylekernels train``, and the same step in plain PyTorch.

Photos are read and get the colours of the painting before, which is not timed.

All take the same step of the same optimiser. Rivals train the network in torch.nn, under autocast
where it isn't float32, and take Gram matrices by torch's product; their photos, weights and loss
network have the layout that their name says, ours channels_last. On a GPU everything is a CUDA
graph, so that what is timed is the GPU's work.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import race
from benchmarks.cpu import Cpu
from benchmarks.device import Device
from benchmarks.model.cases import exact_float32
from benchmarks.model.plain_network import plain_copy
from benchmarks.race import Entry
from benchmarks.train.cases import CONFIG, Problem
from benchmarks.train.plain_loss import PlainLoss
from benchmarks.train.plain_step import PlainStep, autocast
from stylekernels.losses import PerceptualLoss
from stylekernels.training.step import MixedPrecision, TrainingStep

RIVALS = ("eager", "eager-nhwc", "compile")

#: Above this a step is wrong, see `step_error`, by the precision of its products. Rounded to
#: bfloat16 even eager's gradients of the first layers are 0.3 off, and in float32, with crops of 64
#: pixels, 0.02; a layer that is missing is 1 off.
TOLERANCE = {"float32": 0.05, "tf32": 0.2, "bfloat16": 0.5}

_SMALLEST_SHARE = 1e-4
_LOSS = 100.0
_LEARNING_RATE = 1e-5  # whoever runs more often shall not get anywhere else

Step = Callable[[], dict[str, Tensor]]


def plain_step(
    problem: Problem,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    wrap: Callable[[Any], Any] = lambda module: module,
) -> tuple[PlainStep, Step]:
    """The step in torch.nn: its parts, and a call that takes it.

    Args:
        problem: the network and the losses.
        dtype: of the arithmetic.
        memory_format: of weights and pictures.
        wrap: what is made of the network and of the loss, ``torch.compile`` for example.
    """
    device = problem.photo.device
    network = plain_copy(problem.generator).to(device, memory_format=memory_format)
    network.train().requires_grad_(True)
    features = copy.deepcopy(problem.features).to(dtype, memory_format=memory_format)
    with autocast(device, dtype):
        loss = PlainLoss(features, problem.painting, **CONFIG.loss_weights())
    step = PlainStep(wrap(network), wrap(loss), dtype, capturable=device.type == "cuda")
    return step, _bind(step, problem.photo.contiguous(memory_format=memory_format))


def _our_step(problem: Problem) -> tuple[TrainingStep, Step]:
    """The step of ``stylekernels train``: its parts, and a call that takes it."""
    layout, device = torch.channels_last, problem.photo.device
    network = copy.deepcopy(problem.generator).to(memory_format=layout)
    features = copy.deepcopy(problem.features).to(problem.dtype, memory_format=layout)
    loss = PerceptualLoss(features, problem.painting, **CONFIG.loss_weights())
    network = MixedPrecision(network, problem.dtype)
    step = TrainingStep(network, loss, capturable=device.type == "cuda")
    return step, _bind(step, problem.photo.contiguous(memory_format=layout))


def _bind(step: TrainingStep | PlainStep, photo: Tensor) -> Step:
    return lambda: step(photo, photo, _LEARNING_RATE)


def make(
    name: str, problem: Problem, compile_mode: str = "default"
) -> tuple[str, TrainingStep | PlainStep, Step]:
    """Return the expression of a contender, in words, its step's parts, and a call that takes it.

    Args:
        name: ``"ours"`` or one of ``RIVALS``.
        problem: the network and the losses.
        compile_mode: ``mode`` of torch.compile.
    """
    dtype, layout = problem.dtype, torch.channels_last
    if name == "ours":
        return "TrainingStep", *_our_step(problem)
    if name == "eager":
        return "contiguous", *plain_step(problem, dtype)
    if name == "eager-nhwc":
        return "channels_last", *plain_step(problem, dtype, layout)

    def wrap(module):
        return torch.compile(module, fullgraph=True, dynamic=False, mode=compile_mode)

    words = f"channels_last, mode={compile_mode}"
    return words, *plain_step(problem, dtype, layout, wrap)


def answer(step: TrainingStep | PlainStep, take: Step) -> list[Tensor]:
    """Return the loss of a first step, a scalar, and the gradient of each weight, float32.

    Raises:
        RuntimeError: if the step left all weights as they were.
    """
    (weights,) = (group["params"] for group in step.optimizer.param_groups)
    before = [weight.detach().clone() for weight in weights]
    loss = take()["total"].detach().float()
    if all(torch.equal(old, new) for old, new in zip(before, weights, strict=True)):
        raise RuntimeError("no weight moved")
    return [loss, *(weight.grad.clone() for weight in weights)]


def step_error(found: list[Tensor], truth: list[Tensor]) -> float:
    """The worst of the gradients' errors, each as a share of the right one's norm, and of a hundred
    times the loss's, which is so much the more exact.

    A gradient below 1e-4 of all together is judged as if it were that large: some are 0 but for
    rounding, for the next norm cancels what their weights do.
    """
    least = _SMALLEST_SHARE * torch.stack([gradient.norm() for gradient in truth[1:]]).norm()
    (loss, *gradients), (right_loss, *right) = found, truth
    errors = [_LOSS * (loss - right_loss).abs() / right_loss.abs()]
    errors += [(a - b).norm() / b.norm().clamp_min(least)
               for a, b in zip(gradients, right, strict=True)]  # fmt: skip
    return torch.stack(errors).max().item()  # NaN stays NaN


def enter(
    problem: Problem,
    rivals: Sequence[str],
    compile_mode: str = "default",
    device: Device | None = None,
) -> list[Entry]:
    """The contenders of a problem, ours first, each with a right first step or refused.

    Args:
        problem: the network and the losses.
        rivals: of ``RIVALS``.
        compile_mode: ``mode`` of torch.compile.
        device: where they are; the CPU by default.
    """
    device = device or Cpu()
    if "compile" in rivals:
        torch._dynamo.reset()  # else the ninth size of a network would run uncompiled
    with exact_float32():
        truth = answer(*plain_step(problem, torch.float32))
    entries = []
    for name in ("ours", *rivals):
        expression, call, note = "", None, ""
        try:
            expression, step, take = make(name, problem, compile_mode)
            error = race.refusal(
                lambda step=step, take=take: step_error(answer(step, take), truth),
                TOLERANCE[problem.precision],
            )
            if error is None:
                call, note = device.ready([take])
                loss = call()["total"]
                if not loss.isfinite():
                    raise RuntimeError(f"the loss became {loss.item()}")
        except Exception as exception:  # as in race.refusal
            call, error = None, race.failure(exception)
        entries.append(Entry(name, expression, call, error, note))
    return entries
