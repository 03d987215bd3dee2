"""A whole generator as a plan of Triton's kernels, in preallocated memory.

Networks are tiny. Each kind of upsampling is tested with odd and even sizes, and with kernels of
few channels at both ends. References are in float64 and, in bfloat16, the module's own.
"""

import importlib

import pytest
import torch

from stylekernels import native, use_impl
from stylekernels.inference import Stylizer
from stylekernels.inference.layers import layers_of
from tests.conftest import TRITON
from tests.test_plan import TINY, assert_picture, exact, frames_of, generator_of, rmse, values_of

pytestmark = TRITON

CONFIGS = (
    {**TINY, "upsample": "transpose"},
    {**TINY, "upsample": "nearest", "channels": (4, 9, 10), "kernel_size": 9},
    {**TINY, "upsample": "transpose3", "residual_blocks": 2, "kernel_size": 3},
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_values_before_they_are_rounded(config) -> None:
    """The error is 100 dB below 255, as on the CPU, at odd sizes, enlarged and cropped."""
    generator, frames = generator_of(**config), frames_of(1, 17, 21)
    expected = exact(generator, frames, clamped=False).permute(0, 3, 1, 2)
    values = values_of(layers_of(generator, torch.float32), frames, y_shape=expected.shape)
    assert values.isfinite().all()
    assert rmse(values, expected) < 255e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pictures(config) -> None:
    """Two frames of one size: nothing of the first stays in the second."""
    generator = generator_of(**config)
    stylizer = Stylizer(generator, torch.float32)
    for seed in (0, 1):
        frames = frames_of(1, 18, 17, seed=seed)
        assert_picture(stylizer(frames), exact(generator, frames))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bfloat16_is_as_good_as_the_module_in_bfloat16(config) -> None:
    """Twice its error at most, and the rounding to bytes."""
    generator, frames = generator_of(**config), frames_of(2, 17, 19)
    expected = exact(generator, frames)
    stylizer = Stylizer(generator, torch.bfloat16)
    ours = rmse(stylizer(frames), expected)
    with use_impl("reference"):
        torchs = rmse(stylizer(frames), expected)
    assert ours < 2 * torchs + 12**-0.5


def test_every_layer_runs_in_triton(monkeypatch) -> None:
    kernels = importlib.import_module("stylekernels.triton.norm_conv2d")
    launched = []

    def launch(x, weight, *arguments) -> None:
        launched.append(weight.shape)
        run(x, weight, *arguments)

    run = kernels.norm_conv2d_out
    monkeypatch.setattr(kernels, "norm_conv2d_out", launch)
    generator = generator_of(**CONFIGS[0])
    Stylizer(generator, torch.float32)(frames_of(1, 16, 17))
    assert launched == [layer.weight.shape for layer in layers_of(generator, torch.float32)]


@pytest.mark.skipif(native.cpu_missing is not None, reason="needs the C++ kernels too")
def test_a_stylizer_follows_a_change_of_implementation() -> None:
    """Each implementation packs weights in its own order."""
    generator, frames = generator_of(**CONFIGS[0]), frames_of(1, 16, 17)
    stylizer, expected = Stylizer(generator, torch.float32), exact(generator, frames)
    for name in ("native", "triton", "native"):
        with use_impl(name):
            assert_picture(stylizer(frames), expected)
