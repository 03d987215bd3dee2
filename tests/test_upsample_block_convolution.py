"""The convolution of upsample_block: the choice of its implementation, and the layout of
padding."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from stylekernels import explain, native, upsample_block, use_impl
from stylekernels.ops.padding import convolved_image, pad, pad_channels_last
from stylekernels.ops.upsample_block import triton_declines
from tests.conftest import Recorder, assert_layout_of, random
from tests.convolutions import PADDING_MODES
from tests.test_upsample_block import KINDS, inputs

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize(
    ("capability", "dtype", "upsample", "kernel", "own"),
    [
        ("avx2", torch.float32, "transpose", 4, True),
        ("avx2", torch.bfloat16, "nearest", 3, True),
        ("avx2", torch.float32, "nearest", 1, False),
        ("baseline", torch.float32, "nearest", 3, False),
        ("amx", torch.bfloat16, "nearest", 3, False),
        ("amx", torch.bfloat16, "transpose", 4, True),
        ("amx_emulated", torch.bfloat16, "nearest", 3, False),
        ("amx_emulated_avx512", torch.bfloat16, "nearest", 3, False),
        ("amx", torch.float16, "nearest", 3, True),
        ("amx", torch.float32, "nearest", 3, True),
        (None, torch.float32, "transpose", 4, False),
    ],
)
def test_whose_convolution_it_is(capability, dtype, upsample, kernel, own, monkeypatch) -> None:
    """Ours if it is faster and as exact, and takes the kernel. `explain` reports the first two."""
    monkeypatch.setattr(native, "cpu_capability", capability)
    x, weight = inputs((1, 3, 5, 6), 4, upsample, kernel, dtype).values()
    with Recorder() as recorder:
        upsample_block(x, weight, upsample=upsample)
    assert ("upsample_conv2d" in recorder.ops) == own
    assert ("convolution" in recorder.ops) != own
    if kernel > 1:
        said = explain("upsample_block", x, weight, upsample=upsample)
        assert ("the convolution is PyTorch's" not in said) == own


@pytest.mark.parametrize(
    ("capability", "kernel", "dtype", "layout", "padding_mode", "own"),
    [
        ("avx512", 3, torch.float32, "channels_last", "zeros", False),
        ("avx512", 3, torch.float32, "contiguous", "zeros", True),
        ("avx512", 3, torch.float32, "channels_last", "replicate", True),
        ("avx512", 4, torch.bfloat16, "channels_last", "zeros", True),
        ("avx512_bf16", 4, torch.bfloat16, "channels_last", "zeros", False),
        ("avx512_bf16", 4, torch.bfloat16, "channels_last", "replicate", True),
        ("avx512_bf16", 3, torch.bfloat16, "contiguous", "zeros", True),
        ("amx", 3, torch.bfloat16, "channels_last", "zeros", True),
    ],
)
def test_whose_transposed_kernels_are(
    capability, kernel, dtype, layout, padding_mode, own, monkeypatch
) -> None:
    """PyTorch's if it was measured to be faster, unless ours is forced."""
    monkeypatch.setattr(native, "cpu_capability", capability)
    x, weight = inputs((1, 3, 5, 6), 4, "transpose", kernel, dtype, layout).values()
    for forced in (False, True):
        with Recorder() as recorder, use_impl("native") if forced else contextlib.nullcontext():
            upsample_block(x, weight, padding_mode=padding_mode)
            said = explain("upsample_block", x, weight, padding_mode=padding_mode)
        assert ("upsample_conv2d" in recorder.ops) == (own or forced)
        assert ("the convolution is PyTorch's" not in said) == (own or forced)


@pytest.mark.parametrize(
    ("upsample", "dtype", "layout", "padding_mode", "own"),
    [
        ("transpose", torch.float32, "channels_last", "replicate", True),
        ("transpose", torch.float64, "channels_last", "replicate", False),
        ("transpose", torch.bfloat16, "channels_last", "zeros", False),
        ("transpose", torch.bfloat16, "contiguous", "replicate", False),
        ("nearest", torch.bfloat16, "channels_last", "zeros", True),
        ("nearest", torch.float16, "contiguous", "replicate", False),
        ("nearest", torch.float32, "channels_last", "replicate", False),
    ],
)
def test_whose_convolution_it_is_on_a_gpu(upsample, dtype, layout, padding_mode, own) -> None:
    x = random(1, 3, 5, 6, dtype=dtype, layout=layout)
    arguments = (x, random(3, 3, 3, 3, dtype=dtype), upsample, padding_mode)
    assert (triton_declines(*arguments) is None) == own
    with use_impl("triton"):
        assert triton_declines(*arguments) is None


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("upsample", "kernel"), KINDS)
def test_layout_where_pytorchs_ops_are_contiguous_alone(
    upsample, kernel, padding_mode, norm, implementation, monkeypatch
) -> None:
    """Padding is so on a GPU, and cuDNN's convolution in float64."""

    def contiguous_alone(function):
        return lambda x, *args, **kwargs: function(x.contiguous(), *args, **kwargs)

    for name in ("pad", "conv2d", "conv_transpose2d"):
        monkeypatch.setattr(F, name, contiguous_alone(getattr(F, name)))
    monkeypatch.setattr(native, "cpu_capability", None)  # convolutions are PyTorch's
    tensors = inputs((2, 5, 6, 7), 8, upsample, kernel, torch.float32, "channels_last")
    x, weight = (tensor.requires_grad_() for tensor in tensors.values())
    y = upsample_block(x, weight, upsample=upsample, padding_mode=padding_mode, norm=norm)
    assert_layout_of(y, x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert_layout_of(grad, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("upsample", "kernel"), KINDS)
def test_layout_costs_no_copy(upsample, kernel, padding_mode, layout, monkeypatch) -> None:
    monkeypatch.setattr(native, "cpu_capability", None)
    tensors = inputs((2, 5, 6, 7), 8, upsample, kernel, torch.float32, layout)
    x, weight = (tensor.requires_grad_() for tensor in tensors.values())
    with Recorder() as recorder:
        upsample_block(x, weight, upsample=upsample, padding_mode=padding_mode)
    assert "convolution" in recorder.ops
    assert "clone" not in recorder.ops
    # PyTorch pads on "meta" as on a GPU.
    image = convolved_image(x.to("meta"), kernel, upsample, padding_mode)
    assert_layout_of(image, x)


@pytest.mark.parametrize("border", [1, 2, 4])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_in_channels_last(mode, border, device) -> None:
    for layout in ("channels_last", "channels_last_cropped", "contiguous"):
        x = random(2, 3, 5, 7, layout=layout, device=device)
        y = pad_channels_last(x, border, mode)
        assert torch.equal(y, F.pad(x, [border] * 4, mode))
        assert y.is_contiguous(memory_format=torch.channels_last)
    images = torch.func.vmap(lambda image: pad_channels_last(image[None], border, mode))(x)
    assert torch.equal(images[:, 0], y)
    assert pad_channels_last(x[:0], border, mode).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_backward_of_padding_copies_the_image_once(mode, layout, device) -> None:
    x = random(1, 8, 16, 16, layout=layout, device=device).requires_grad_()
    y = pad(x, 2, mode)
    cotangent = random(*y.shape, layout=layout, device=device, seed=1)
    with Recorder() as recorded:
        torch.autograd.grad(y, x, cotangent)
    assert [shape for shape in recorded.images if shape.numel() > 8 * 2 * 20] == [x.shape]
    assert "index_add" not in recorded.ops  # on a GPU it adds in any order


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("upsample", "kernel"), KINDS)
def test_the_layout_of_the_weights_is_not_that_of_the_gradient(
    upsample, kernel, layout, device
) -> None:
    """PyTorch's convolution takes the layout of channels_last weights for contiguous images."""
    tensors = inputs((2, 5, 6, 7), 8, upsample, kernel, torch.float32, layout, device)
    x = tensors["x"].requires_grad_()
    weight = tensors["weight"].to(memory_format=torch.channels_last).requires_grad_()
    y = upsample_block(x, weight, upsample=upsample)
    grad_x, _ = torch.autograd.grad(y.sum(), (x, weight))
    for result in (y, grad_x):
        assert_layout_of(result, x)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [2, 15])
def test_the_gradient_of_one_row_has_the_layout_of_the_image(kernel, channels) -> None:
    """Strides of sides of one pixel say nothing, but PyTorch's gradient follows them."""
    x = random(15, 1, channels, 1).permute(3, 2, 1, 0).requires_grad_()
    weight = random(1, channels, kernel, kernel)
    y = upsample_block(x, weight, upsample="nearest", padding_mode="zeros")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.movedim(1, -1).is_contiguous(), grad.stride()
