"""A generator as a plan: the same pictures as the module, from preallocated memory.

Networks are tiny, with random norms and values outside of 0..255, so that a wrong skip, activation,
norm or clamp shows. References are in float64. Widths of 16 and more are for the kernels that only
wide layers use.
"""

import copy
import random as python_random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from stylekernels import native, norm_scale_shift, use_impl
from stylekernels.inference import Stylizer
from stylekernels.inference import stylizer as stylizer_module
from stylekernels.inference.layers import can_plan, layers_of
from stylekernels.inference.plan import Plan, pack
from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.reference import instance_norm_stats, upsample_conv2d
from tests.conftest import poisoned_memory
from tests.norm_conv2d_out import threads
from tests.test_checkpoints import transformer_net

pytestmark = pytest.mark.usefixtures("implementation")

COMPILED = native.cpu_missing is None  # before the fixture changes it
TINY = {"channels": (4, 6, 8), "residual_blocks": 1, "kernel_size": 5}
# Every kind of upsampling with a large, a small and a middle value of each other field.
CONFIGS = (
    {"channels": (32, 64, 128), "residual_blocks": 2},
    {"channels": (16, 32, 64), "upsample": "nearest", "residual_blocks": 1, "value_range": 255.0},
    {"channels": (5, 17, 33), "upsample": "transpose3", "residual_blocks": 3, "kernel_size": 3},
    {**TINY, "upsample": "transpose", "kernel_size": 3, "residual_blocks": 3, "value_range": 255.0},
    {**TINY, "upsample": "nearest", "kernel_size": 5, "residual_blocks": 2, "value_range": 1.0},
    {**TINY, "upsample": "transpose3", "kernel_size": 9, "value_range": 1.0, "eps": 0.1},
    {**TINY, "channels": (1, 2, 1), "upsample": "nearest"},  # a layout that is both
)


def frames_of(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def generator_of(seed: int = 0, **config) -> StyleGenerator:
    torch.manual_seed(seed)
    generator = StyleGenerator(GeneratorConfig(**config)).eval()
    for name, parameter in generator.named_parameters():
        if "norm" in name:
            parameter.uniform_(-0.5, 0.5).add_(1.0 if name.endswith("weight") else 0.0)
    scale = generator.config.value_range
    values = layer_outputs(generator, frames_of(1, 32, 32))[-1] - 0.5 * scale
    generator.to_rgb.weight.mul_(0.4 * scale / values.std())
    return generator


@torch.no_grad()
def layer_outputs(generator, frames, stats=None) -> list[Tensor]:
    """Every convolution's output in float64, by PyTorch's ops. ``stats`` replaces the means and
    variances of the outputs. On one thread, which is faster for few pixels."""
    generator = copy.deepcopy(generator).double()
    outputs: list[Tensor] = []

    def conv(x: Tensor, module: nn.Conv2d) -> Tensor:
        x = F.pad(x, [module.weight.shape[2] // 2] * 4, "reflect")
        outputs.append(F.conv2d(x, module.weight, module.bias, module.stride))
        return outputs[-1]

    def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean, var = instance_norm_stats(x) if stats is None else stats[len(outputs) - 1]
        mean, var = (t.double()[..., None, None] for t in (mean, var))
        return (x - mean) / (var + eps).sqrt() * weight[:, None, None] + bias[:, None, None]

    def block(x: Tensor, module) -> Tensor:
        return norm(conv(x, module.conv), module.norm.weight, module.norm.bias, module.norm.eps)

    with threads(1):
        x = frames.permute(0, 3, 1, 2).double() / 255 * generator.config.value_range
        for module in generator.down:
            x = block(x, module).relu()
        for module in generator.residual:
            x = x + block(block(x, module.first).relu(), module.second)
        for module in generator.up:
            outputs.append(
                upsample_conv2d(x, module.weight, None, module.upsample, module.padding_mode)
            )
            x = norm(outputs[-1], module.norm_weight, module.norm_bias, module.eps).relu()
        conv(x, generator.to_rgb)
    return outputs


@torch.no_grad()
def exact(generator: nn.Module, frames: Tensor, *, clamped: bool = True) -> Tensor:
    """The module's picture in float64, (N, H, W, 3) in 0..255, not rounded."""
    module = copy.deepcopy(generator).double().train(not clamped)  # training doesn't clamp
    with threads(1):
        return module(frames.permute(0, 3, 1, 2).double() / 255).permute(0, 2, 3, 1) * 255


def rmse(values: Tensor, expected: Tensor) -> float:
    return (values.double() - expected).square().mean().sqrt().item()


def assert_picture(ours: Tensor, expected: Tensor, tolerance: float = 0.01) -> None:
    """Rounded to nearest: half a level from the float64 module, plus the error of the
    arithmetic."""
    assert ours.shape == expected.shape
    assert ours.dtype == torch.uint8
    difference = (ours.double() - expected).abs().max().item()
    assert difference <= 0.5 + tolerance, f"{difference} levels"


def values_of(layers, frames: Tensor, y_shape=None, scale_shifts=None) -> Tensor:
    """The output of a plan before it is rounded to bytes, from memory that held NaN."""
    with poisoned_memory():
        plan = Plan(layers, pack(layers), *frames.shape[:3], scale_shifts)
        n, c, h, w = y_shape or plan.output_shape
        y = torch.empty(n, h, w, c, dtype=layers[0].weight.dtype).permute(0, 3, 1, 2)
        plan(frames.permute(0, 3, 1, 2), y)
    return y


# Numbers.


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_values_before_they_are_rounded(config) -> None:
    """100 dB below 255, at odd sizes, that are enlarged and cropped, and even ones."""
    generator = generator_of(**config)
    for size in ((1, 33, 43), (2, 24, 32)):
        frames = frames_of(*size)
        expected = exact(generator, frames, clamped=False).permute(0, 3, 1, 2)
        assert expected.min() < -10  # so that clamping matters
        assert expected.max() > 265
        for dtype, most in ((torch.float32, 255e-5), (torch.float64, 1e-9)):
            if dtype == torch.float64 and len(config) < 4:
                continue  # too slow for wide networks
            layers = layers_of(generator, dtype)
            values = values_of(layers, frames, y_shape=expected.shape)
            assert values.isfinite().all()
            assert rmse(values, expected) < most
            whole = values_of(layers, frames)
            assert torch.equal(whole[..., : size[1], : size[2]], values)
        assert_picture(Stylizer(generator, torch.float32)(frames), exact(generator, frames))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bfloat16_is_as_good_as_the_module_in_bfloat16(config) -> None:
    """At most twice its error, plus the rounding to bytes."""
    generator, frames = generator_of(**config), frames_of(2, 33, 43)
    expected = exact(generator, frames)
    stylizer = Stylizer(generator, torch.bfloat16)
    ours = rmse(stylizer(frames), expected)
    with use_impl("reference"):
        torchs = rmse(stylizer(frames), expected)
    assert 12**-0.5 / 2 < ours < 2 * torchs + 12**-0.5


@pytest.mark.parametrize("widths", [(8, 16, 24), (5, 3, 7)])
def test_fast_neural_style_checkpoints(tmp_path, widths) -> None:
    net = transformer_net(widths)
    torch.save(net.state_dict(), tmp_path / "style.pth")
    stylizer = Stylizer(StyleGenerator.from_pretrained(tmp_path / "style.pth"), torch.float32)
    for size in ((1, 32, 40), (1, 33, 47)):
        frames = frames_of(*size)
        with torch.no_grad(), threads(1):
            raw = copy.deepcopy(net).double()(frames.permute(0, 3, 1, 2).double())
        raw = raw[..., : size[1], : size[2]].permute(0, 2, 3, 1)
        assert_picture(stylizer(frames), raw.clamp(0, 255), tolerance=0.1)


def sizes(count: int = 12) -> list[tuple[int, int]]:
    """Sides of 16 to 4097 of at most 120,000 pixels, among them the extremes."""
    choose = python_random.Random(3)
    drawn = [(16, 4097), (4097, 17), (1023, 31), (16, 16), (67, 1001)]
    while len(drawn) < count:
        height, width = (int(16 * 256 ** (choose.random())) + 1 for _ in range(2))
        if height * width < 120_000:
            drawn.append((height, width))
    return drawn


@pytest.mark.parametrize("size", sizes(), ids=str)
def test_any_size(size) -> None:
    upsample = ("transpose", "transpose3", "nearest")[sum(size) % 3]
    generator = generator_of(**TINY, upsample=upsample)
    frames = frames_of(1, *size)
    assert_picture(Stylizer(generator, torch.float32)(frames), exact(generator, frames), 0.02)


def test_reference_gives_the_same_pictures() -> None:
    stylizer = Stylizer(generator_of(**TINY), torch.float32)
    for size in ((40, 52), (2, 37, 41)):
        frames = frames_of(*size)
        ours = stylizer(frames)
        with use_impl("reference"):
            plain = stylizer(frames)
        assert (ours.int() - plain.int()).abs().max() <= 1
        assert torch.equal(stylizer(frames), ours)


# Layers and statistics.


@pytest.mark.parametrize("upsample", ["transpose", "transpose3", "nearest"])
def test_the_first_layers_give_what_the_last_of_them_gives(upsample) -> None:
    """The scale and shift of the other outputs remain in the plan."""
    generator, frames = generator_of(**TINY, upsample=upsample), frames_of(2, 33, 43)
    layers, outputs = layers_of(generator, torch.float32), layer_outputs(generator, frames)
    outputs[-1] = outputs[-1] * (255 / generator.config.value_range)
    assert len(layers) == len(outputs) == 8
    for count in range(1, 9):
        values, expected = values_of(layers[:count], frames), outputs[count - 1]
        assert values.shape == expected.shape
        assert rmse(values, expected) < 1e-5 * expected.std()
    plan = Plan(layers, pack(layers), 2, 33, 43)
    plan(frames.permute(0, 3, 1, 2), torch.empty_like(frames).permute(0, 3, 1, 2))
    assert len(plan.scale_shifts) == 7
    for layer, output, found in zip(layers, outputs, plan.scale_shifts, strict=False):
        weight, bias, eps = layer.norm
        assert found.dtype == torch.float32
        expected = norm_scale_shift(*instance_norm_stats(output), weight, bias, eps)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
def test_statistics_of_another_picture(upsample) -> None:
    """The other picture has different brightness and contrast, so that wrong ones would show."""
    generator, frames = generator_of(**TINY, upsample=upsample), frames_of(1, 33, 43)
    other = frames_of(1, 64, 64, seed=1) // 3 + 100
    layers = layers_of(generator, torch.float32)
    stats = [instance_norm_stats(output) for output in layer_outputs(generator, other)]
    given = [
        norm_scale_shift(*plane, *layer.norm).float()
        for plane, layer in zip(stats, layers[:-1], strict=False)
    ]
    before = [tensor.clone() for tensor in given]
    values = values_of(layers, frames, scale_shifts=given)
    scale = 255 / generator.config.value_range
    assert rmse(values, layer_outputs(generator, frames, stats)[-1] * scale) < 255e-5
    assert rmse(values, layer_outputs(generator, frames)[-1] * scale) > 1
    assert all(map(torch.equal, given, before)), "the given numbers were written to"


# Memory.


def span(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 33, 43), (3, 16, 64)])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_is_still_read_is_not_written_over(config, size, dtype) -> None:
    layers = layers_of(generator_of(**config), dtype)
    plan = Plan(layers, pack(layers), *size)
    alive: dict[tuple[int, int], str] = {}  # by address: the tensor that was last written there
    total, storages = 0, set()
    for index, step in enumerate(plan.steps):
        reads = [span(read) for read in (step.x, step.residual) if read is not None]
        for place in reads:
            assert place in alive, f"layer {index} reads what was written over"
        assert index == 0 or alive[span(step.x)] == f"y {index - 1}"
        if step.residual is not None:
            kept = [name for name in alive.values() if name.startswith("input")]
            assert alive[span(step.residual)] == max(kept, key=lambda n: int(n.split()[1]))
        written = {"y": step.y, "input": step.input}
        written = {name: tensor for name, tensor in written.items() if tensor is not None}
        writes = {span(tensor): f"{name} {index}" for name, tensor in written.items()}
        for place in writes:
            others = [other for other in writes if other != place]
            assert not any(overlap(place, other) for other in reads + others)
            alive = {other: name for other, name in alive.items() if not overlap(place, other)}
            total += place[1] - place[0]
            assert place[0] % 64 == 0
        alive |= writes
        storages |= {
            (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            for tensor in written.values()
        }
    ((_, arena),) = storages
    assert arena < total * 0.8


def allocated(call: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator gave out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())


@pytest.mark.skipif(not COMPILED, reason="the plain formula allocates")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_known_size_allocates_nothing_but_the_picture(dtype) -> None:
    stylizer = Stylizer(generator_of(**TINY), dtype)
    frames, others = frames_of(2, 64, 83), frames_of(64, 80)
    assert allocated(lambda: stylizer(frames)) > 5 * frames.numel()  # the first time it plans
    assert allocated(lambda: stylizer(frames)) == frames.numel()
    stylizer(others)
    assert allocated(lambda: stylizer(others)) == others.numel()


# One stylizer, many frames.


@pytest.fixture
def plans(monkeypatch) -> Counter:
    """Counts the plans of stylizers for each size, and how often they packed their weights."""
    made = Counter()

    def counted_pack(layers) -> list[Tensor]:
        made["pack"] += 1
        return pack(layers)

    class Counted(Plan):
        def __init__(self, layers, packed, *size) -> None:
            made[size] += 1
            super().__init__(layers, packed, *size)

    monkeypatch.setattr(stylizer_module, "Plan", Counted)
    monkeypatch.setattr(stylizer_module, "pack", counted_pack)
    return made


def test_sizes_and_threads_change_between_frames(plans) -> None:
    generator = generator_of(**TINY)
    stylizer = Stylizer(generator, torch.float32)
    first = {}
    for number, size in (
        (1, (33, 43)),
        (2, (33, 43)),
        (2, (48, 32)),
        (3, (48, 32)),
        (2, (33, 43)),
        (2, (33, 43)),
        (1, (2, 48, 32)),
        (1, (33, 43)),
    ):
        frames = frames_of(*size)
        with threads(number):
            picture = stylizer(frames)
        batch = (-1, *frames.shape[-3:])
        assert_picture(picture.view(batch), exact(generator, frames.view(batch)))
        assert torch.equal(first.setdefault(size, picture), picture)
        assert picture.data_ptr() != first[size].data_ptr() or picture is first[size]
    assert plans == {"pack": 1, (1, 33, 43): 4, (1, 48, 32): 3}  # a batch is painted one by one


def test_two_stylizers_do_not_disturb_each_other() -> None:
    generators = [generator_of(seed, **TINY) for seed in (0, 1)]
    stylizers = [Stylizer(generator, torch.float32) for generator in generators]
    frames = frames_of(1, 33, 43)
    pictures = [stylizer(frames) for stylizer in stylizers]
    again = [stylizer(frames) for stylizer in reversed(stylizers)][::-1]
    for generator, picture, second in zip(generators, pictures, again, strict=True):
        assert_picture(picture, exact(generator, frames))
        assert torch.equal(picture, second)


@pytest.mark.parametrize(
    "view",
    [
        lambda f: f[:, ::2, 1:],
        lambda f: f[..., [2, 1, 0]].flip(1),
        lambda f: f.transpose(1, 2),
        lambda f: f[::2],
        lambda f: f[1, 3:, :-5],
        lambda f: f[:1, :, :1].expand(1, 60, 47, 3),
    ],
    ids=["cropped", "mirrored", "transposed", "every other frame", "one of a batch", "expanded"],
)
def test_tensors_that_are_views(view) -> None:
    stylizer = Stylizer(generator_of(**TINY), torch.float32)
    frames = frames_of(3, 60, 47)
    before = frames.clone()
    assert torch.equal(stylizer(view(frames)), stylizer(view(before).contiguous().clone()))
    assert torch.equal(frames, before)


def test_large_kernels_fall_back_to_the_module(plans) -> None:
    generator = generator_of(**{**TINY, "kernel_size": 11})
    assert not can_plan(generator)
    assert can_plan(generator_of(**{**TINY, "kernel_size": 9}))
    assert not can_plan(nn.Sequential(generator_of(**TINY)))
    frames = frames_of(1, 33, 43)
    assert_picture(Stylizer(generator, torch.float32)(frames), exact(generator, frames))
    assert not plans


def test_small_frames_are_refused_and_the_next_is_not() -> None:
    stylizer = Stylizer(generator_of(**TINY), torch.float32)
    frames = np.asarray(frames_of(16, 16))
    picture = stylizer(frames)
    for height, width in ((15, 40), (40, 15), (1, 1)):
        text = f"frames: expected at least 16 pixels a side, got {width}x{height}"
        with pytest.raises(ValueError, match=text):
            stylizer(np.zeros((height, width, 3), np.uint8))
    np.testing.assert_array_equal(stylizer(frames), picture)
