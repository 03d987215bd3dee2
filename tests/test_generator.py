"""The reference generator: shapes, values, layers and gradients."""

import pytest
import torch
from torch.nn import functional as F

from stylekernels.models import GeneratorConfig, StyleGenerator

UPSAMPLINGS = ("transpose", "transpose3", "nearest")


def small(**changes) -> StyleGenerator:
    torch.manual_seed(0)
    config = {"channels": (4, 6, 8), "residual_blocks": 1, **changes}
    return StyleGenerator(GeneratorConfig(**config)).eval()


# 16 is the smallest side allowed; 17 to 67 holds every remainder of a division by 4, twice over.
@pytest.mark.parametrize("upsample", UPSAMPLINGS)
@pytest.mark.parametrize("height", [16, 17, 18, 19, 33, 50, 67])
def test_output_has_the_size_of_the_input(upsample, height):
    generator = small(upsample=upsample)
    for width in (16, 21, 34, 67):
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            y = generator(x)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert 0 <= y.min() <= y.max() <= 1
        # A constant picture would have the right shape too.
        assert y.std() > 1e-3


def test_default_is_the_published_network_and_lite_half_of_it():
    generator = StyleGenerator()
    assert generator.config.channels == (32, 64, 128)
    assert len(generator.residual) == 5
    assert generator.down[0].conv.weight.shape == (32, 3, 9, 9)
    assert generator.up[0].weight.shape == (128, 64, 4, 4)
    assert generator.to_rgb.weight.shape == (3, 32, 9, 9)
    lite = StyleGenerator(GeneratorConfig.lite(upsample="nearest"))
    assert lite.config == GeneratorConfig(channels=(16, 32, 64), upsample="nearest")
    full, half = (sum(p.numel() for p in g.parameters()) for g in (generator, lite))
    assert half < 0.3 * full


def test_convolutions_before_a_norm_have_no_bias():
    biased = [
        n
        for n, m in small().named_modules()
        if getattr(m, "bias", None) is not None and isinstance(m, torch.nn.Conv2d)
    ]
    assert biased == ["to_rgb"]


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_forward_is_the_plain_formula(upsample):
    """Against torch's own functions, layer by layer, in float64."""
    generator = small(upsample=upsample, value_range=2.0).double()
    generator.to_rgb.weight.data.mul_(6)
    x = torch.rand(2, 3, 18, 22, dtype=torch.float64)

    def conv(x, weight, bias=None, stride=1):
        pad = weight.shape[-1] // 2
        return F.conv2d(F.pad(x, [pad] * 4, "reflect"), weight, bias, stride)

    def norm(x, weight, bias):
        return F.instance_norm(x, weight=weight, bias=bias)

    def up(x, block):
        if upsample == "nearest":
            large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return conv(large, block.weight)
        # Replicated by three pixels, so that zeros outside would influence only pixels that are
        # cropped.
        x = F.pad(x, [3] * 4, "replicate")
        extra = 4 - block.weight.shape[-1]
        y = F.conv_transpose2d(x, block.weight, stride=2, padding=1, output_padding=extra)
        return y[:, :, 6:-6, 6:-6]

    h = x * 2
    for i, block in enumerate(generator.down):
        h = conv(h, block.conv.weight, stride=1 if i == 0 else 2)
        h = norm(h, block.norm.weight, block.norm.bias).relu()
    for block in generator.residual:
        z = norm(conv(h, block.first.conv.weight), block.first.norm.weight, block.first.norm.bias)
        z = conv(z.relu(), block.second.conv.weight)
        h = h + norm(z, block.second.norm.weight, block.second.norm.bias)
    for block in generator.up:
        h = norm(up(h, block), block.norm_weight, block.norm_bias).relu()
    expected = conv(h, generator.to_rgb.weight, generator.to_rgb.bias)[..., :18, :22] / 2
    assert expected.min() < 0
    assert expected.max() > 1
    torch.testing.assert_close(generator(x), expected.clamp(0, 1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(generator.train()(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_new_upsampling_draws_no_checkerboard(upsample):
    """Smooth features stay smooth. torch's own initialisation would add a pattern."""
    up = small(upsample=upsample).up
    ramp = torch.linspace(0, 1, 16)
    x = torch.rand(1, 8, 1, 1) * ramp[:, None] + torch.rand(1, 8, 1, 1) * ramp

    def checkers():
        with torch.no_grad():
            y = up[0](x)[..., 2:-2, 2:-2]
        # The alternating sum of each 2x2 square is the highest frequency there is.
        fine = y[..., ::2, ::2] - y[..., ::2, 1::2] - y[..., 1::2, ::2] + y[..., 1::2, 1::2]
        return (fine.abs().mean() / y.std()).item()

    bilinear = checkers()
    up[0].reset_parameters()
    assert bilinear < 0.02
    assert bilinear < 0.4 * checkers()


def test_every_parameter_learns():
    generator = small().train()
    generator(torch.rand(1, 3, 20, 20)).square().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_value_range():
    """A network for 0..255 is the same network with scaled weights in its first and last layer."""
    inside = small(value_range=255.0)
    x = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        inside.to_rgb.bias.fill_(128.0)
        inside.to_rgb.weight.mul_(100)
        y = inside(x)
        outside = small(value_range=1.0)
        outside.load_state_dict(inside.state_dict())
        outside.to_rgb.weight.div_(255)
        outside.to_rgb.bias.div_(255)
        # The first norm cancels the range (all but its eps).
        expected = outside(x * 255)
    assert 0 < y.mean() < 1
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_picture():
    generator = small()
    x = torch.rand(2, 3, 24, 28)
    with torch.no_grad():
        expected = generator(x)
        got = generator.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 15, 64), "at least 16 pixels a side, got 64x15"),
        ((1, 3, 64, 8), "at least 16 pixels a side, got 8x64"),
        ((1, 1, 64, 64), r"RGB images \(N, 3, H, W\), got \(1, 1, 64, 64\)"),
        ((3, 64, 64), r"RGB images \(N, 3, H, W\), got \(3, 64, 64\)"),
    ],
)
def test_refuses_what_is_no_image(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.rand(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 16)}, "channels: expected three"),
        ({"channels": (8, 0, 16)}, "channels: expected three"),
        ({"residual_blocks": 0}, "residual_blocks: expected a positive number"),
        ({"kernel_size": 8}, "kernel_size: expected an odd number"),
        ({"kernel_size": 33}, "kernel_size: expected at most 31"),
        ({"upsample": "bicubic"}, "upsample: expected one of transpose, transpose3, nearest"),
        ({"value_range": 0.0}, "value_range: expected a positive number"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**changes)


def test_config_round_trip():
    config = GeneratorConfig.lite(upsample="transpose3", residual_blocks=3)
    assert GeneratorConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="config: expected fields among"):
        GeneratorConfig.from_dict({"widths": [1, 2, 3]})


def test_exports_with_sides_that_are_multiples_of_four():
    generator = small().eval()
    sides = {2 + i: 4 * torch.export.Dim(name, min=4, max=64) for i, name in enumerate("hw")}
    shapes = ({0: torch.export.Dim("n", min=1, max=8), **sides},)
    program = torch.export.export(generator, (torch.rand(2, 3, 32, 48),), dynamic_shapes=shapes)
    for shape in ((1, 3, 32, 64), (5, 3, 16, 20)):
        x = torch.rand(shape)
        torch.testing.assert_close(program.module()(x), generator(x), rtol=1e-4, atol=1e-5)
