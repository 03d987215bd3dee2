"""Promises of norm_conv2d besides its values: statistics for the next layer, the spread of NaN,
repeatable results, tracing.
"""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from stylekernels import instance_norm_stats, norm_conv2d, norm_scale_shift
from tests.conftest import assert_accurate, laid_out, random
from tests.convolutions import FEW_MODES, MODES, half_padded, in_torch, inputs
from tests.instance_norms import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("implementation")


# Statistics for the next layer.


@pytest.mark.parametrize("affine", [None, "(C,)", "(N, C)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_scale_shift_is_instance_norm(mean, dtype, affine, device) -> None:
    """Compare with F.instance_norm, which is as exact as the statistics in its dtype."""
    x = random(2, 32, 31, 33, dtype=dtype, device=device, shift=mean)
    weight = bias = None
    if affine is not None:
        shape = (32,) if affine == "(C,)" else (2, 32)
        weight, bias = (random(*shape, device=device, seed=seed, shift=0.5) for seed in (1, 2))

    def normalized(x: Tensor) -> Tensor:
        z = F.instance_norm(x, eps=1e-3)
        if weight is None:
            return z
        weights, biases = (p.expand(2, 32)[..., None, None].to(x.dtype) for p in (weight, bias))
        return z * weights + biases

    scale_shift = norm_scale_shift(*instance_norm_stats(x), weight, bias, 1e-3)
    assert scale_shift.shape == (2, 32, 2)
    identity = torch.eye(32, dtype=dtype, device=device)[..., None, None]
    y = norm_conv2d(x, identity, scale_shift=scale_shift).y
    assert_accurate(y, normalized(x), normalized(x.double()))


def test_shift_belongs_to_the_rounded_scale(device) -> None:
    """The error from rounding the scale, times means of 1000 deviations, must cancel."""
    mean, var = random(3, 50, device=device, shift=1000.0), random(3, 50, device=device).abs()
    weight, bias = (random(50, device=device, seed=seed) for seed in (1, 2))
    scale, shift = norm_scale_shift(mean, var, weight, bias).double().unbind(-1)
    exact = weight.double() / (var.double() + 1e-5).sqrt()
    half_a_step = torch.finfo(torch.float32).eps / 2
    assert ((scale - exact).abs() <= half_a_step * exact.abs() * 1.001).all()
    exact = bias.double() - mean.double() * scale
    assert ((shift - exact).abs() <= half_a_step * exact.abs() * 1.001).all()


def test_scale_shift_takes_half_precision_parameters(device) -> None:
    mean, var = random(2, 5, device=device), random(2, 5, device=device, seed=1).abs()
    weight, bias = (random(5, dtype=torch.bfloat16, device=device, seed=s) for s in (2, 3))
    actual = norm_scale_shift(mean, var, weight, bias)
    assert torch.equal(actual, norm_scale_shift(mean, var, weight.float(), bias.float()))
    assert actual.dtype == torch.float32


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_block_is_that_of_pytorch(dtype, layout, device) -> None:
    """Two convolutions, two instance norms and a skip connection, with results passed from call to
    call. PyTorch's tensors between layers are rounded as ours are."""
    x = random(2, 16, 21, 19, dtype=dtype, layout=layout, device=device)
    weights = [random(16, 16, 3, 3, dtype=dtype, device=device, scale=0.1, seed=s) for s in (1, 2)]
    gain, offset = (random(16, device=device, seed=seed, shift=0.5) for seed in (3, 4))
    reflect = {"padding": 1, "padding_mode": "reflect"}

    first = norm_conv2d(x, weights[0], **reflect)
    second = norm_conv2d(
        first.y,
        weights[1],
        activation="relu",
        **reflect,
        scale_shift=norm_scale_shift(first.mean, first.var, gain, offset),
    )
    ours = norm_conv2d(
        second.y,
        weights[0],
        residual=x,
        return_input=True,
        return_stats=False,
        **reflect,
        scale_shift=norm_scale_shift(second.mean, second.var, gain, offset),
    )

    def in_pytorch(dtype: torch.dtype) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        parameters = {"weight": gain.to(wide), "bias": offset.to(wide)}
        y = F.conv2d(F.pad(x.to(dtype), [1] * 4, "reflect"), weights[0].to(dtype))
        y = F.instance_norm(y.to(wide), **parameters).relu().to(dtype)
        y = F.conv2d(F.pad(y, [1] * 4, "reflect"), weights[1].to(dtype))
        return (F.instance_norm(y.to(wide), **parameters) + x.to(wide)).to(dtype)

    # Two convolutions with a kernel of 3, which Winograd's method may compute.
    at_least = 1e-5 if dtype == torch.float32 else 0.0
    assert_accurate(ours.input, in_pytorch(dtype), in_pytorch(torch.float64), at_least=at_least)
    assert (ours.mean, ours.var) == (None, None)


def test_the_result_is_always_the_same_four(device) -> None:
    """The order of results is fixed, and the input is returned as a new tensor even if
    unchanged."""
    x, weight = inputs(("none", 3, 1), (1, 3, 6, 7), 4, torch.float32, device=device).values()
    y, mean, var, given = norm_conv2d(x, weight, return_stats=False)
    assert (mean, var, given) == (None, None, None)
    full = norm_conv2d(x, weight, return_input=True)
    assert full._fields == ("y", "mean", "var", "input")
    assert torch.equal(full.y, y)
    assert torch.equal(full.input, x)
    assert full.input.data_ptr() != x.data_ptr()


# Values that are no numbers.


def assert_finite_where_exact_is(y: Tensor, exact: Tensor, spoilt: int = 0) -> None:
    """The result is NaN or infinite where PyTorch's is, and at most ``spoilt`` pixels around it.
    Winograd's method spoils the tile, a kernel filled up with zeros all pixels that read them, and
    Triton's kernels the pixels that they compute together."""
    bad, expected = ~y.isfinite(), ~exact.isfinite()
    assert bad[expected].all(), "a value that is no number was lost"
    expected = F.max_pool2d(expected.float(), 2 * spoilt + 1, 1, spoilt).bool()
    assert not (bad & ~expected).any(), "one bad pixel reached outputs that do not see it"


def check_bad_pixels(
    mode, out_channels, dtype, *, shape=(2, 5, 19, 23), spoilt=0, layout, padding_mode, device
) -> None:
    """Inf and NaN reach the outputs that depend on them, and ``spoilt`` pixels around these."""
    upsample, _, _ = mode
    healthy = inputs(mode, shape, out_channels, dtype, layout, device, scale_shift=True)
    options = {"padding_mode": padding_mode, **half_padded(mode)}
    height, width = shape[2:]
    positions = ((height // 2, width // 2), (0, width - 1), (height - 1, 1))
    for value, (row, column) in zip((torch.inf, torch.nan, -torch.inf), positions, strict=True):
        x = healthy["x"].clone()
        x[1, 2, row, column] = value
        tensors = healthy | {"x": laid_out(x, layout)}
        y, mean, var, _ = norm_conv2d(**tensors, **options)
        exact = in_torch(**{k: t.double() for k, t in tensors.items()}, **options)[0]
        assert_finite_where_exact_is(y, exact, spoilt)
        if upsample == "none" and not spoilt:  # the others add up weights, or add zeros, first
            for test in (torch.isnan, torch.isposinf, torch.isneginf):
                assert torch.equal(test(y), test(exact)), test.__name__
        for stat in (mean, var):
            assert torch.equal(stat.isfinite(), exact.isfinite().all((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "padding_mode",
    ["zeros", pytest.param("reflect", marks=pytest.mark.every_capability), "replicate"],
)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("out_channels", [2, 4])
def test_a_bad_pixel_reaches_what_sees_it(
    out_channels, mode, padding_mode, layout, dtype, device
) -> None:
    upsample, kernel, stride = mode
    spoilt = 0
    if stride == 1:
        spoilt = 4 if kernel >= 5 else 3 if kernel == 3 and dtype == torch.float32 else 0
    if upsample != "none" and device == "cuda":
        spoilt = max(spoilt, 1)
    check_bad_pixels(
        mode,
        out_channels,
        dtype,
        spoilt=spoilt,
        layout=layout,
        padding_mode=padding_mode,
        device=device,
    )


@pytest.mark.every_capability
@pytest.mark.bfloat16
@pytest.mark.parametrize("out_channels", [3, 8, 16])
def test_a_bias_of_nan_with_all_bits_set_stays_nan(out_channels, device) -> None:
    """Rounding such a NaN to bfloat16 as a number would give zero."""
    bias = random(out_channels, device=device)
    bias.view(torch.int32)[1] = -1
    x = random(1, 4, 8, 8, dtype=torch.bfloat16, device=device)
    weight = random(out_channels, 4, 3, 3, dtype=torch.bfloat16, device=device)
    y = norm_conv2d(x, weight, bias=bias).y
    assert y[:, 1].isnan().all()
    assert y[:, 0].isfinite().all()


@pytest.mark.every_capability
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_bad_values(activation, dtype, value, device) -> None:
    """relu(NaN) is NaN, and tanh(inf) is 1."""
    for name, where in {
        "x": (0, 1, 3, 4),
        "residual": (0, 2, 3, 4),
        "scale_shift": (0, 1, 0),
    }.items():
        tensors = inputs(
            ("none", 2, 1),
            (2, 5, 9, 8),
            4,
            dtype,
            device=device,
            scale_shift=True,
            residual="contiguous",
        )
        tensors[name] = tensors[name].clone()
        tensors[name][where] = value
        y, _, _, given = norm_conv2d(
            **tensors, activation=activation, negative_slope=0.2, return_input=True
        )
        wide = {k: t.double() for k, t in tensors.items()}
        exact, exact_given = in_torch(**wide, activation=activation)
        assert torch.equal(given.isnan(), exact_given.isnan()), name
        assert torch.equal(given.isinf(), exact_given.isinf()), name
        assert_finite_where_exact_is(y, exact)


# Repeatable results.


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.every_capability)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mode", FEW_MODES, ids=str)
def test_deterministic(mode, layout, dtype, threads, device) -> None:
    tensors = inputs(
        mode, (2, 16, 65, 67), 33, dtype, layout, device, scale_shift=True, residual=layout
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [
            norm_conv2d(**tensors, activation="relu", return_input=True, **half_padded(mode))
            for _ in range(3)
        ]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


# Tracing.


class Layer(torch.nn.Module):
    """A normalised convolution of one image, and all that it returns."""

    def __init__(self, mode: tuple[str, int, int], device: str) -> None:
        super().__init__()
        made = inputs(mode, (2, 6, 9, 8), 4, torch.float32, device=device)
        self.weight = torch.nn.Buffer(made["weight"])
        self.options = {**half_padded(mode), "padding_mode": "reflect", "activation": "tanh"}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scale_shift = norm_scale_shift(*instance_norm_stats(x))
        return tuple(
            norm_conv2d(
                x,
                self.weight,
                scale_shift=scale_shift,
                residual=x,
                return_input=True,
                **self.options,
            )
        )


@pytest.mark.parametrize("mode", FEW_MODES, ids=str)
def test_compile_with_dynamic_shapes(mode, device) -> None:
    torch._dynamo.reset()
    layer = Layer(mode, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for layout in ("contiguous", "channels_last"):
        graphs = []
        for size in [(2, 6, 9, 7), (3, 6, 12, 10), (2, 6, 15, 8)]:
            x = random(*size, layout=layout, device=device)
            for actual, expected in zip(compiled(x), layer(x), strict=True):
                torch.testing.assert_close(actual, expected)
                assert actual.stride() == expected.stride()
            graphs.append(counter.frame_count)
        assert graphs[0] == graphs[-1], "a size was compiled into the graph"


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
def test_inductor(device, implementation) -> None:
    torch._dynamo.reset()
    layer = Layer(FEW_MODES[0], device)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for layout in ("contiguous", "channels_last"):
        x = random(2, 6, 9, 7, layout=layout, device=device)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", FEW_MODES, ids=str)
def test_export_with_dynamic_shapes(mode, device) -> None:
    layer = Layer(mode, device)
    height, width = (torch.export.Dim(name, min=5, max=512) for name in ("height", "width"))
    example = random(2, 6, 8, 10, device=device)
    program = torch.export.export(layer, (example,), dynamic_shapes=({2: height, 3: width},))
    for size in ((2, 6, 17, 5), (2, 6, 64, 33)):
        x = random(*size, device=device)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
def test_autocast_casts_as_a_convolution_does(device, implementation) -> None:
    tensors = inputs(
        ("none", 3, 1),
        (2, 5, 9, 8),
        4,
        torch.float32,
        device=device,
        scale_shift=True,
        bias="float32",
        residual="contiguous",
    )
    cast = {k: t.bfloat16() if k in ("x", "weight", "residual") else t for k, t in tensors.items()}
    expected = norm_conv2d(**cast, return_input=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert all(map(torch.equal, norm_conv2d(**tensors, return_input=True), expected))
        assert all(map(torch.equal, norm_conv2d(**cast, return_input=True), expected))
        mixed = cast | {"residual": tensors["residual"]}
        assert all(map(torch.equal, norm_conv2d(**mixed, return_input=True), expected))
        with pytest.raises(TypeError, match="residual: expected x's dtype"):
            norm_conv2d(**cast | {"residual": tensors["residual"].long()})
        wide = norm_conv2d(**{k: t.double() for k, t in tensors.items()})
    assert wide.y.dtype == wide.mean.dtype == torch.float64
    assert expected.y.dtype == torch.bfloat16
    assert expected.mean.dtype == torch.float32
