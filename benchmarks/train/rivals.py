"""The contenders: a step of ``stylekernels train``, and the same step in plain PyTorch.

Reading photos, and giving them the colours of the painting, is not timed.

All contenders take the same step of the same optimiser. Rivals train the network in torch.nn, under
autocast unless it is float32, and compute Gram matrices by torch's product. Their photos, weights
and loss network have the layout in their name; ours have channels_last. On a GPU everything is a
CUDA graph, so that only the GPU's work is timed.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import race
from benchmarks.cpu import Cpu
from benchmarks.device import Device
from benchmarks.model.cases import exact_float32
from benchmarks.model.plain_network import plain_copy
from benchmarks.race import Entry
from benchmarks.train.cases import CONFIG, Problem
from benchmarks.train.our_step import OurStep
from benchmarks.train.plain_loss import PlainLoss
from benchmarks.train.plain_step import PlainStep, autocast
from stylekernels.losses import PerceptualLoss
from stylekernels.models.features import FeatureNetwork
from stylekernels.nn.frozen_conv2d import FrozenConv2d

RIVALS = ("eager", "eager-nhwc", "compile")

#: The largest error of a right step, see `step_error`, by the precision of products. In bfloat16
#: even eager's gradients of the first layers have an error of 0.3, and in float32, with crops of 64
#: pixels, 0.02. A missing layer has 1.
TOLERANCE = {"float32": 0.05, "tf32": 0.2, "bfloat16": 0.5}

_LOSS = 100.0
_LEARNING_RATE = 1e-5  # small: contenders that run more often stay comparable

Step = Callable[[], dict[str, Tensor]]


def plain_step(
    problem: Problem,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
    wrap: Callable[[Any], Any] = lambda module: module,
) -> tuple[PlainStep, Step]:
    """Return the parts of a step in torch.nn, and a call that takes it.

    Args:
        problem: the network and the losses.
        dtype: dtype of the arithmetic.
        memory_format: layout of weights and pictures.
        wrap: a function that wraps the network and the loss, ``torch.compile`` for example.
    """
    device = problem.photo.device
    network = plain_copy(problem.generator).to(device, memory_format=memory_format)
    network.train().requires_grad_(True)
    features = _plain_features(problem).to(memory_format=memory_format).in_precision(dtype)
    with autocast(device, dtype):
        loss = PlainLoss(features, problem.painting, **CONFIG.loss_weights())
    step = PlainStep(wrap(network), wrap(loss), dtype, capturable=device.type == "cuda")
    return step, _bind(step, problem.photo.contiguous(memory_format=memory_format))


def _plain_features(problem: Problem) -> FeatureNetwork:
    """Return a copy of the loss network whose convolutions are PyTorch's."""
    features = copy.deepcopy(problem.features)
    for module in features.modules():
        if isinstance(module, FrozenConv2d):
            module.__class__ = nn.Conv2d
    return features


def _our_step(problem: Problem) -> tuple[OurStep, Step]:
    """Return the parts of the step of ``stylekernels train``, and a call that takes it."""
    layout, device = torch.channels_last, problem.photo.device
    network = copy.deepcopy(problem.generator).to(memory_format=layout)
    features = copy.deepcopy(problem.features).to(memory_format=layout).in_precision(problem.dtype)
    loss = PerceptualLoss(features, [problem.painting], **CONFIG.loss_weights())
    step = OurStep(network, loss, problem.dtype, capturable=device.type == "cuda")
    return step, _bind(step, problem.photo.contiguous(memory_format=layout))


def _bind(step: OurStep | PlainStep, photo: Tensor) -> Step:
    return lambda: step(photo, photo, _LEARNING_RATE)


def make(
    name: str, problem: Problem, compile_mode: str = "default"
) -> tuple[str, OurStep | PlainStep, Step]:
    """Return a contender's expression in words, the parts of its step, and a call that takes it.

    Args:
        name: ``"ours"`` or one of ``RIVALS``.
        problem: the network and the losses.
        compile_mode: ``mode`` of torch.compile.
    """
    dtype, layout = problem.dtype, torch.channels_last
    if name == "ours":
        return "OurStep", *_our_step(problem)
    if name == "eager":
        return "contiguous", *plain_step(problem, dtype)
    if name == "eager-nhwc":
        return "channels_last", *plain_step(problem, dtype, layout)

    def wrap(module):
        return torch.compile(module, fullgraph=True, dynamic=False, mode=compile_mode)

    words = f"channels_last, mode={compile_mode}"
    return words, *plain_step(problem, dtype, layout, wrap)


def answer(step: OurStep | PlainStep, take: Step) -> list[Tensor]:
    """Return the loss of a first step, a scalar, and the gradient of each weight, float32.

    Raises:
        RuntimeError: if the step did not change any weight.
    """
    (weights,) = (group["params"] for group in step.optimizer.param_groups)
    before = [weight.detach().clone() for weight in weights]
    loss = take()["total"].detach().float()
    if all(torch.equal(old, new) for old, new in zip(before, weights, strict=True)):
        raise RuntimeError("no weight moved")
    return [loss, *(weight.grad.clone() for weight in weights)]


def step_error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Return the error of a step: the largest of the gradients' errors, see `race.gradient_errors`,
    and of 100 times the relative error of the loss, which is far more exact."""
    (loss, *gradients), (right_loss, *right) = found, truth
    of_loss = (_LOSS * (loss - right_loss).abs() / right_loss.abs()).item()
    return torch.tensor([of_loss, *race.gradient_errors(gradients, right)]).max().item()


def enter(
    problem: Problem,
    rivals: Sequence[str],
    compile_mode: str = "default",
    device: Device | None = None,
) -> list[Entry]:
    """Return the contenders of a problem, ours first, each with a right first step or the reason
    why it was refused.

    Args:
        problem: the network and the losses.
        rivals: some of ``RIVALS``.
        compile_mode: ``mode`` of torch.compile.
        device: the device that they run on; the CPU by default.
    """
    device = device or Cpu()
    if "compile" in rivals:
        torch._dynamo.reset()  # dynamo compiles a function for at most eight sizes
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
        except Exception as exception:  # a failure is a result, as in race.refusal
            call, error = None, race.failure(exception)
        entries.append(Entry(name, expression, call, error, note))
    return entries
