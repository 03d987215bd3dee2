"""Everything around the ops: the choice of an implementation, errors and compilers.

One case per op and promise. The arithmetic is tested in the ops' own files.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import stylekernels
from stylekernels import (
    explain,
    gram_loss,
    gram_losses,
    gram_matrix,
    group_norm,
    instance_norm,
    instance_norm_stats,
    native,
    norm_conv2d,
    norm_scale_shift,
    upsample_block,
    use_impl,
)
from stylekernels.nn import AdaptiveInstanceNorm2d, ConditionalInstanceNorm2d
from stylekernels.ops import dispatch
from tests.conftest import random

pytestmark = pytest.mark.usefixtures("implementation")

WEIGHT = random(6, 4, 4, 4, scale=0.2, seed=21)
SCALE = random(6, seed=22, shift=1.0)
TARGET = random(6, 6, seed=23)
# Every op as a function of one image (N, 6, H, W).
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram_matrix": lambda x: gram_matrix(x, center=True),
    "gram_loss": lambda x: gram_loss(x, TARGET.to(x.device)),
    "gram_losses": lambda x: gram_losses(
        [x, x[:, :4, ::2]],
        [target := TARGET.to(x.device), target[:4, :4]],
        scales=(0.01, 0.02),
        center=True,
    ),
    "group_norm": lambda x: group_norm(
        x, 3, SCALE.to(x.device), residual=x.flip(2), activation="silu"
    ),
    "instance_norm": lambda x: instance_norm(
        x, SCALE.to(x.device), residual=x.flip(2), residual_first=True, activation="tanh"
    ),
    "instance_norm_stats": lambda x: torch.stack(instance_norm_stats(x)),
    "norm_conv2d": lambda x: (
        norm_conv2d(
            x,
            WEIGHT[..., :3, :3].transpose(0, 1).to(x.device, x.dtype),
            residual=x.flip(2),
            activation="tanh",
            padding=1,
        ).y
    ),
    "upsample_block": lambda x: upsample_block(
        x, WEIGHT.to(x.device, x.dtype), SCALE[:4].to(x.device), activation="tanh"
    ),
}
INFERENCE_ONLY = ("norm_conv2d",)
every_op = pytest.mark.parametrize("op", CALLS)
every_op_with_a_gradient = pytest.mark.parametrize(
    "op", [op for op in CALLS if op not in INFERENCE_ONLY]
)


@pytest.fixture
def without_interpreter(monkeypatch) -> None:
    """A process of a user, who has not set TRITON_INTERPRET."""
    monkeypatch.setattr(dispatch, "interprets_triton", False)


def results(op: str, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Return the value of ``function``, which calls ``op``, and its gradient if it has one."""
    return (function(x),) if op in INFERENCE_ONLY else value_and_gradient(function, x)


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    cotangent = random(*y.shape, dtype=y.dtype, device=y.device.type, seed=31)
    return y.detach(), torch.autograd.grad(y, x, cotangent)[0]


def assert_all_close(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# The choice of an implementation.


@every_op
def test_implementations_agree(op, device) -> None:
    x = random(2, 6, 9, 7, device=device)
    ours = results(op, CALLS[op], x)
    with use_impl("reference"):
        assert_all_close(ours, results(op, CALLS[op], x))


def test_use_impl_is_undone_and_nests() -> None:
    x = random(1, 6, 5, 5)
    outside = explain("gram_matrix", x)
    with use_impl("reference"):
        assert "reference (forced by use_impl or STYLEKERNELS_IMPL)" in explain("gram_matrix", x)
        with use_impl("native"):
            assert ": native (forced" in explain("gram_matrix", x)
        assert ": reference (forced" in explain("gram_matrix", x)
    with pytest.raises(KeyError, match="left by an exception"), use_impl("reference"):
        raise KeyError("left by an exception")
    assert explain("gram_matrix", x) == outside


def test_unknown_implementation() -> None:
    expected = "use_impl: expected one of native, triton, reference, got 'cuda'"
    with pytest.raises(ValueError, match=f"^{expected}$"), use_impl("cuda"):
        pass


@every_op
@pytest.mark.usefixtures("without_interpreter")
def test_forced_implementation_that_is_missing(op) -> None:
    x = random(1, 6, 5, 5)
    message = "the implementation 'triton' was forced, but there are no Triton kernels for cpu"
    with use_impl("triton"), pytest.raises(RuntimeError, match=message):
        CALLS[op](x)


@pytest.mark.usefixtures("without_interpreter")
def test_forced_native_without_the_library(monkeypatch) -> None:
    monkeypatch.setattr(native, "cpu_missing", "not built: a reason")
    with (
        use_impl("native"),
        pytest.raises(RuntimeError, match=r"the C\+\+ library is not built"),
    ):
        gram_matrix(random(1, 6, 5, 5))
    assert "reference (the C++ library is not built: a reason; there are no Triton" in explain(
        "gram_matrix", random(1, 6, 5, 5)
    )


def test_forced_native_for_a_device_without_kernels() -> None:
    message = "there are no native kernels for meta tensors"
    with use_impl("native"), pytest.raises(RuntimeError, match=message):
        gram_matrix(torch.empty(1, 6, 5, 5, device="meta"))


def test_the_interpreter_runs_only_where_triton_is_forced(monkeypatch) -> None:
    x = random(1, 6, 5, 5)
    monkeypatch.setattr(dispatch, "interprets_triton", True)
    monkeypatch.setattr(dispatch, "triton_missing", None)
    with use_impl("triton"):
        assert "on cpu (native, triton, reference): triton (forced" in explain("gram_matrix", x)
    monkeypatch.setattr(native, "cpu_missing", "not built")
    line = explain("gram_matrix", x)
    assert "): reference (the C++ library is not built; Triton's interpreter is only" in line


@pytest.mark.parametrize("op", ["instance_norm", "instance_norm_stats", "group_norm"])
def test_cuda_kernels_follow_tritons(op, monkeypatch) -> None:
    monkeypatch.setattr(native, "cuda_missing", None)
    monkeypatch.setattr(dispatch, "triton_missing", None)
    assert dispatch.choose(op, "cuda") == "triton"
    with use_impl("native"):
        assert dispatch.choose(op, "cuda") == "native"
    monkeypatch.setattr(dispatch, "triton_missing", "Triton is not installed")
    assert dispatch.choose(op, "cuda") == "native"
    monkeypatch.setattr(native, "cuda_missing", "not built: a reason")
    assert dispatch.choose(op, "cuda") == "reference"
    with use_impl("native"), pytest.raises(RuntimeError, match="the CUDA library is not built"):
        dispatch.choose(op, "cuda")


def test_explain() -> None:
    x = random(2, 6, 9, 7, dtype=torch.bfloat16, layout="channels_last")
    line = explain("instance_norm", x, activation="relu")
    assert line.startswith(
        "instance_norm (2, 6, 9, 7) bfloat16 channels_last on cpu (native, triton, reference): "
        "native ("
    )
    assert explain("gram_matrix", x=x.contiguous()).startswith(
        "gram_matrix (2, 6, 9, 7) bfloat16 contiguous on cpu ("
    )
    cropped = x[..., 1:]
    assert "strided (copied to contiguous first)" in explain("gram_matrix", cropped)
    assert explain("gram_losses", [cropped, x], []).startswith("gram_losses (2, 6, 9, 6) bfloat16")
    with pytest.raises(ValueError, match=r"^op: expected one of gram_matrix, .*, got 'softmax'$"):
        explain("softmax", x)
    with pytest.raises(TypeError, match=r"args: expected .* gram_loss, a tensor among them, got"):
        explain("gram_loss", scale=1.0)


def test_every_public_op_is_known_to_dispatch() -> None:
    assert set(dispatch.OPS) == set(CALLS) <= set(stylekernels.__all__)


# Compilers.


@every_op
def test_compile_with_dynamic_shapes(op, device) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(CALLS[op], fullgraph=True, dynamic=True, backend=counter)
    graphs = []
    for size in [(2, 6, 9, 7), (3, 6, 12, 10), (2, 6, 15, 8)]:
        x = random(*size, device=device)
        assert_all_close(results(op, compiled, x), results(op, CALLS[op], x))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1], "a size was compiled into the graph"


def test_inductor(device) -> None:
    torch._dynamo.reset()

    def step(x: Tensor) -> Tensor:
        y = instance_norm(x.sin(), activation="relu")
        return gram_loss(y, TARGET.to(device)) + gram_matrix(y).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for size in ((2, 6, 9, 7), (3, 6, 6, 11)):
        x = random(*size, layout="channels_last", device=device)
        assert_all_close(value_and_gradient(compiled, x), value_and_gradient(step, x))


@pytest.mark.parametrize(
    ("padding_mode", "layout"), [("zeros", "channels_last"), ("replicate", "contiguous")]
)
def test_inductor_of_the_upsampling_block(padding_mode, layout, device) -> None:
    torch._dynamo.reset()

    def step(x: Tensor) -> Tensor:
        return upsample_block(x, WEIGHT.to(device), padding_mode=padding_mode, activation="tanh")

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    x = random(2, 6, 9, 7, layout=layout, device=device)
    assert_all_close(value_and_gradient(compiled, x), value_and_gradient(step, x))


@every_op
def test_compiled_ops_ask_for_autocast_as_pytorch_2_11_can_trace(op, monkeypatch) -> None:
    """In 2.11 a compiler cannot trace `torch.amp.is_autocast_available`."""
    torch._dynamo.reset()

    def untraceable(_device_type: str) -> bool:
        torch._dynamo.graph_break()
        return True

    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)
    compiled = torch.compile(CALLS[op], fullgraph=True, backend="eager")
    x = random(2, 6, 9, 7)
    with torch.no_grad():
        assert_all_close([compiled(x)], [CALLS[op](x)])


def test_a_compiled_function_follows_autocast(device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(CALLS["upsample_block"], fullgraph=True, backend="aot_eager")
    x = random(2, 6, 9, 7, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert compiled(x).dtype == CALLS["upsample_block"](x).dtype == dtype


@every_op
def test_devices_without_autocast(op) -> None:
    torch._dynamo.reset()
    x = torch.empty(2, 6, 9, 7, device="meta")
    compiled = torch.compile(CALLS[op], fullgraph=True, backend="eager")
    assert compiled(x).shape == CALLS[op](x).shape == CALLS[op](torch.empty(x.shape)).shape


@pytest.mark.parametrize(
    "step",
    [
        lambda x: instance_norm(x, residual=x, residual_first=True, activation="relu"),
        lambda x: instance_norm(x, *[x.mean((2, 3))] * 2, activation="tanh"),
        lambda x: instance_norm(x, stats=(x.amax((2, 3)),) * 2),
        lambda x: instance_norm(x, *[scale := x.amax((2, 3))] * 2, residual=x, stats=(scale,) * 2),
        lambda x: upsample_block(x, WEIGHT.to(x), *[x.mean((0, 2, 3))[:4]] * 2),
        lambda x: gram_loss(*[gram_matrix(x)] * 2),
        lambda x: gram_losses([x] * 2, [gram_matrix(x).exp()] * 2),
    ],
)
def test_compile_with_one_tensor_in_several_places(step, device) -> None:
    torch._dynamo.reset()
    x = random(2, 6, 9, 7, device=device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_all_close(value_and_gradient(compiled, x), value_and_gradient(step, x))


@pytest.mark.usefixtures("without_interpreter")
def test_use_impl_is_followed_by_a_compiled_function() -> None:
    torch._dynamo.reset()
    seen = []

    def backend(graph, _inputs):
        text = graph.print_readable(print_output=False)
        seen.append("torch.ops.stylekernels" in text or "custom_function" in text)
        return graph

    compiled = torch.compile(lambda x: gram_matrix(x), fullgraph=True, backend=backend)
    x = random(1, 6, 9, 7)
    compiled(x)
    with use_impl("reference"):
        compiled(x)
    compiled(x)
    assert seen == [True, False]
    with use_impl("triton"), pytest.raises(Exception, match="no Triton kernels for cpu"):
        compiled(x)


class Call(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Styled(torch.nn.Module):
    """A norm of six styles; ``style`` makes one for each image."""

    def __init__(self, style: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.style = ConditionalInstanceNorm2d(6, 6), style

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.style(x))


def normalized_convolution(x: Tensor) -> Tensor:
    """A convolution with the scale of the channels, and a shift of each image."""
    scale_shift = norm_scale_shift(*instance_norm_stats(x), SCALE.to(x), x.amax((2, 3)))
    weight = WEIGHT.transpose(0, 1).to(x)
    y, mean, var, _ = norm_conv2d(x, weight, bias=SCALE[:4].to(x), scale_shift=scale_shift)
    return y + (mean * var)[..., None, None]


@every_op
def test_export_with_dynamic_shapes(op, device) -> None:
    height, width = (torch.export.Dim(name, min=4, max=512) for name in ("height", "width"))
    example = random(2, 6, 8, 10, device=device)
    program = torch.export.export(
        Call(CALLS[op]), (example,), dynamic_shapes=({2: height, 3: width},)
    )
    for size in ((2, 6, 17, 5), (2, 6, 64, 33)):
        x = random(*size, device=device)
        assert_all_close([program.module()(x)], [CALLS[op](x)])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        *CALLS.values(),
        lambda x: instance_norm(x, stats=instance_norm_stats(x)),
        normalized_convolution,
        lambda x: gram_loss(x, gram_matrix(x.flip(2))),
        lambda x: gram_loss(x, TARGET[None].to(x)),
        lambda x: gram_losses([x, x.flatten(2)], [gram_matrix(x.flip(2)), TARGET.to(x)]),
        Styled(lambda x: torch.zeros_like(x[:, 0, 0, 0]).long()),
        Styled(lambda x: x[:, :, 0, 0]),
        lambda x: AdaptiveInstanceNorm2d()(x, x[:1].exp()),
    ],
)
def test_export_with_a_dynamic_batch(function, strict, device) -> None:
    """The batch may be as large as the number of channels, or 1."""
    example = random(2, 6, 8, 10, device=device)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    call = Call(function).to(device)
    program = torch.export.export(call, (example,), dynamic_shapes=shapes, strict=strict)
    for size in (1, 3, 6):
        x = random(size, 6, 8, 10, device=device)
        assert_all_close([program.module()(x)], [call(x)])
