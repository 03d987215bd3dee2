"""The contenders: the generator as our library runs it, and as users of other libraries run it.

Each rival gets its best conditions: pictures in floating point, in its layout and dtype, as input
and output. Ours takes and returns 8-bit frames, and its conversions are timed. On a GPU all inputs
are there already, and rivals are CUDA graphs. Ours is a call of a Stylizer: it copies the frame,
replays a graph of its own and copies the picture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import race
from benchmarks.cpu import Cpu
from benchmarks.device import Device
from benchmarks.model import engines
from benchmarks.model.cases import Problem
from benchmarks.model.plain_network import plain_copy
from benchmarks.race import Entry
from stylekernels.inference import Stylizer

Call = Callable[[], Any]

RIVALS = ("eager", "eager-nhwc", "compile", "onnxruntime", "openvino")

#: The largest root mean squared error of a picture, as a share of the truth's standard deviation.
#: Eager bfloat16 has 0.03 with random weights.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
TF32_TOLERANCE = 1e-2  # it has three bits more than bfloat16


def _torch(problem: Problem, memory_format: torch.memory_format) -> tuple[nn.Module, Tensor]:
    """Return the plain network, copied, and its input."""
    network = plain_copy(problem.generator)
    network = network.to(problem.torch_device, problem.dtype, memory_format=memory_format)
    return network, problem.x.to(problem.dtype, memory_format=memory_format)


def _bind(function: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            return function(x)

    return call


def make(name: str, problem: Problem, compile_mode: str = "default") -> tuple[str, Call]:
    """Return the expression of a contender, in words, and a call that makes one picture.

    Args:
        name: ``"ours"`` or one of ``RIVALS``.
        problem: the network and the picture.
        compile_mode: ``mode`` of torch.compile.
    """
    if name == "ours":
        stylizer = Stylizer(problem.generator, dtype=problem.dtype)
        return "Stylizer", lambda: stylizer(problem.frame)
    if name == "eager":
        return "contiguous", _bind(*_torch(problem, torch.contiguous_format))
    if name == "eager-nhwc":
        return "channels_last", _bind(*_torch(problem, torch.channels_last))
    if name == "compile":
        network, x = _torch(problem, torch.channels_last)
        compiled = torch.compile(network, fullgraph=True, dynamic=False, mode=compile_mode)
        return f"channels_last, mode={compile_mode}", _bind(compiled, x)
    if name == "onnxruntime":
        return engines.onnxruntime_call(problem.onnx_file, problem.x)
    return engines.openvino_call(problem.onnx_file, problem.x, problem.dtype)


def picture_error(answer: Tensor | np.ndarray, truth: Tensor) -> float:
    """The root mean squared error, as a share of the truth's standard deviation.

    Args:
        answer: (1, 3, H, W) floating point, or a frame (H, W, 3) of uint8, as an array or a tensor
            on the truth's device. The rounding of a frame does not count: independent errors add in
            squares, so the squared rounding error of the truth is subtracted.
        truth: (1, 3, H, W).
    """
    answer, rounding = torch.as_tensor(answer), 0.0
    if answer.dtype == torch.uint8:
        answer = answer.permute(2, 0, 1)[None].float().div_(255)
        rounded = (truth * 255).round_().clamp_(0, 255).div_(255)
        rounding = (rounded - truth).square_().mean()
    if answer.shape != truth.shape:
        return float("inf")
    error = (answer.float() - truth).square_().mean()
    return ((error - rounding).clamp(min=0).sqrt() / truth.std()).item()  # NaN stays NaN


def can_run(name: str, dtype: torch.dtype) -> bool:
    """Return whether a rival supports the dtype: ONNX Runtime has no bfloat16 convolution on
    CPUs."""
    return name != "onnxruntime" or dtype == torch.float32


def enter(
    problem: Problem,
    rivals: Sequence[str],
    compile_mode: str = "default",
    device: Device | None = None,
) -> list[Entry]:
    """Return the contenders of a problem, ours first, each with a right answer or the reason why it
    was refused.

    Args:
        problem: the network and the picture.
        rivals: some of the rivals of the device.
        compile_mode: ``mode`` of torch.compile.
        device: the device that they run on; the CPU by default.
    """
    device = device or Cpu()
    allowed = TF32_TOLERANCE if problem.precision == "tf32" else TOLERANCE[problem.dtype]
    if "compile" in rivals:
        torch._dynamo.reset()  # dynamo compiles a function for at most eight sizes
    entries = []
    for name in ("ours", *(rival for rival in rivals if can_run(rival, problem.dtype))):
        try:
            expression, call = make(name, problem, compile_mode)
            note = ""
            if name != "ours":  # on a GPU ours has graphs of its own
                call, note = device.ready([call])
        except Exception as exception:  # a failure is a result, as in race.refusal
            entries.append(Entry(name, "", None, race.failure(exception)))
            continue
        error = race.refusal(lambda call=call: picture_error(call(), problem.truth), allowed)
        entries.append(Entry(name, expression, call, error, note))
    return entries
