"""Which sizes our upsampling convolution takes on the CPU, and how `explain` says so."""

import pytest
import torch

from stylekernels import explain, native, upsample_block, use_impl
from stylekernels.nn import ConvTranspose2d
from tests.conftest import Recorder, assert_layout_of, random

pytestmark = [
    pytest.mark.skipif(
        native.cpu_missing is not None or native.cpu_capability == "baseline",
        reason="PyTorch convolves",
    )
]


@pytest.fixture(autouse=True)
def takes_few_pixels() -> None:
    """The sizes are the usual ones."""


def convolves_in_pytorch(function) -> bool:
    with Recorder() as recorder:
        function()
    assert ("convolution" in recorder.ops) != ("upsample_conv2d" in recorder.ops), recorder.ops
    return "convolution" in recorder.ops


def calls_inside(arguments) -> set[str]:
    """Return the ops that the kernel of upsample_conv2d calls."""
    with torch.profiler.profile() as profiler:
        torch.ops.stylekernels.upsample_conv2d(*arguments)
    return {event.key.rpartition("::")[2] for event in profiler.key_averages()}


AVX2 = native.cpu_capability not in ("avx512", "avx512_bf16", "amx")

in_pairs = pytest.mark.skipif(
    native.cpu_capability != "avx512_bf16", reason="the CPU multiplies no pairs of bfloat16"
)


# Pixels over the square root of Cin x Cout from which our kernel is faster.
@pytest.mark.parametrize(
    ("upsample", "kernel", "padding_mode", "dtype", "fewest"),
    [
        ("nearest", 3, "zeros", torch.float32, 3),
        ("nearest", 5, "reflect", torch.float32, 3),
        ("transpose", 3, "replicate", torch.float32, 8),
        ("transpose", 4, "reflect", torch.float32, 8),
        ("transpose", 4, "zeros", torch.float32, 16 if AVX2 else 5),
        pytest.param("nearest", 3, "zeros", torch.bfloat16, 8, marks=in_pairs),
        pytest.param("transpose", 4, "reflect", torch.bfloat16, 48, marks=in_pairs),
        pytest.param("transpose", 3, "zeros", torch.bfloat16, 48, marks=in_pairs),
    ],
)
def test_few_pixels_are_pytorchs(upsample, kernel, padding_mode, dtype, fewest) -> None:
    weight = random(64, 64, kernel, kernel, dtype=dtype, scale=0.05)
    options = {"upsample": upsample, "padding_mode": padding_mode}

    def run(x: torch.Tensor) -> bool:
        return convolves_in_pytorch(lambda: upsample_block(x, weight, **options))

    enough = random(2, 64, 4, fewest * 8, dtype=dtype)
    fewer = random(1, 64, 4, fewest * 16 - 1, dtype=dtype)
    assert not run(enough)
    assert run(fewer)
    for impl, in_pytorch in (("native", False), ("reference", True)):
        with use_impl(impl):
            assert run(fewer) == run(enough) == in_pytorch
    reason = "the convolution is PyTorch's: it was measured to be faster for few pixels"
    assert reason in explain("upsample_block", fewer, weight, **options)
    assert reason in explain("upsample_block", x=fewer, weight=weight, **options)
    assert reason not in explain("upsample_block", enough, weight, **options)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.register_buffer("weight", random(32, 8, 4, 4, scale=0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_block(self.up(x), self.weight)


@pytest.mark.parametrize("strict", [False, True])
def test_sizes_vary_in_an_exported_program(strict) -> None:
    block, large, small = Block().eval(), random(1, 64, 40, 48), random(1, 64, 5, 6)
    sizes = {2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    program = torch.export.export(block, (large,), dynamic_shapes=(sizes,), strict=strict)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(small), block(small), atol=1e-4, rtol=1e-4)


def test_sizes_vary_without_a_second_compilation() -> None:
    torch.compiler.reset()
    block = Block().eval()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        run = torch.compile(block, backend="eager", dynamic=True, fullgraph=True)
        for x in (random(1, 64, 40, 48), random(1, 64, 5, 6)):
            torch.testing.assert_close(run(x), block(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stats", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_op_itself_leaves_few_pixels_to_pytorch(layout, stats) -> None:
    """Compiled and exported programs have the op for all sizes."""
    weight = random(64, 32, 4, 4, scale=0.05)
    for size, in_pytorch in ((32, False), (8, True)):
        x = random(1, 64, size, size, layout=layout)
        arguments = (x, weight, None, "transpose", "replicate", stats)
        y, mean, _ = torch.ops.stylekernels.upsample_conv2d(*arguments)
        assert_layout_of(y, x)
        assert mean.shape == ((1, 32) if stats else (0,))
        with use_impl("reference"):
            exact = torch.ops.stylekernels.upsample_conv2d(
                x.double(), weight.double(), *arguments[2:]
            )
        torch.testing.assert_close(y, exact[0].float(), atol=1e-5, rtol=1e-5)
        assert ("norm_conv2d" not in calls_inside(arguments)) == in_pytorch


@pytest.mark.parametrize(("x", "weight"), [((3, 8, 8), (3, 3, 4, 4)), ((1, 3, 8, 8), (3,))])
def test_explain_takes_what_the_op_refuses(x, weight) -> None:
    assert explain("upsample_block", random(*x), random(*weight)).startswith("upsample_block (")


def test_the_module_asks_the_same() -> None:
    module = ConvTranspose2d(64, 64, 4, stride=2, padding=1)
    height = (16 if AVX2 else 5) * 2
    assert not convolves_in_pytorch(lambda: module(random(1, 64, height, 32)))
    assert convolves_in_pytorch(lambda: module(random(1, 64, height, 31)))
