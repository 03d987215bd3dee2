"""upsample_block against convolutions written here in float64 from their index formulas.

The grid: every kind of upsampling with every padding mode, and both with every dtype and every
layout, at odd sizes. Norms, activations and parameters vary at one size, because they act only on
the convolution's result.
"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import upsample_block
from tests.conftest import (
    DTYPES,
    assert_accurate,
    assert_op_accurate,
    laid_out,
    random,
    saved_image_bytes,
)
from tests.convolutions import PADDING_MODES, convolution_in_torch
from tests.instance_norms import ACTIVATIONS
from tests.pairwise import missing_pairs, name_of, pairwise

pytestmark = pytest.mark.usefixtures("implementation")

# upsample, kernel
KINDS = (("transpose", 4), ("transpose", 3), ("nearest", 3), ("nearest", 5), ("nearest", 1))


def border_index(size: int, border: int, mode: str) -> tuple[Tensor, Tensor]:
    """Return the pixel at positions -border ... size + border - 1, and whether it counts."""
    index = torch.arange(-border, size + border)
    inside = (index >= 0) & (index < size)
    if mode == "reflect" and size > 1:
        period = 2 * (size - 1)
        index = index % period
        return torch.where(index < size, index, period - index), torch.ones_like(inside)
    return index.clamp(0, size - 1), inside if mode == "zeros" else torch.ones_like(inside)


def padded(x: Tensor, border: int, mode: str) -> Tensor:
    rows, rows_count = border_index(x.shape[2], border, mode)
    columns, columns_count = border_index(x.shape[3], border, mode)
    count = rows_count[:, None] & columns_count[None, :]
    return x[:, :, rows][:, :, :, columns] * count.to(x.device, x.dtype)


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve without padding, one product per tap. Weight: (Cout, Cin, k, k)."""
    kernel = weight.shape[-1]
    height, width = x.shape[2] - kernel + 1, x.shape[3] - kernel + 1
    y = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i in range(kernel):
        for j in range(kernel):
            window = x[:, :, i : i + height, j : j + width]
            y = y + torch.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
    return y


def exact_convolution(x: Tensor, weight: Tensor, upsample: str, padding_mode: str) -> Tensor:
    """Output (2 H, 2 W). Transpose: y[o] sums x[i] w[k] over o + 1 = 2 i + k."""
    kernel = weight.shape[-1]
    if upsample == "nearest":
        large = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return correlate(padded(large, kernel // 2, padding_mode), weight)
    x = padded(x, 1, padding_mode)
    height, width = x.shape[2], x.shape[3]
    spread = x.new_zeros(x.shape[0], x.shape[1], 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = x  # zero insertion
    flipped = weight.flip(2, 3).transpose(0, 1)
    full = correlate(F.pad(spread, [kernel - 1] * 4), flipped)
    # Input 0 is at 2 in the padded coordinates, and padding 1 crops the output.
    size = 2 * (height - 2), 2 * (width - 2)
    return full[:, :, 3 : 3 + size[0], 3 : 3 + size[1]]


def affine(z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
    if norm_weight is not None:
        z = z * norm_weight.expand(z.shape[:2])[..., None, None]
    if norm_bias is not None:
        z = z + norm_bias.expand(z.shape[:2])[..., None, None]
    return z


def check(
    tensors, upsample, padding_mode, norm="instance", activation="relu", grad_layout="contiguous"
) -> None:
    def ours(x, weight, norm_weight=None, norm_bias=None, bias=None) -> Tensor:
        return upsample_block(
            x,
            weight,
            norm_weight,
            norm_bias,
            bias=bias,
            upsample=upsample,
            norm=norm,
            activation=activation,
            negative_slope=0.2,
            padding_mode=padding_mode,
            eps=1e-4,
        )

    def in_torch(x, weight, norm_weight=None, norm_bias=None, bias=None) -> Tensor:
        y = convolution_in_torch(x, weight, bias, upsample, padding_mode)
        if norm == "instance":
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            y = affine(F.instance_norm(y.to(wide), eps=1e-4), norm_weight, norm_bias)
        return ACTIVATIONS[activation](y).to(x.dtype)

    def before_activation(x, weight, norm_weight=None, norm_bias=None, bias=None) -> Tensor:
        y = exact_convolution(x, weight, upsample, padding_mode)
        if bias is not None:
            y = y + bias[:, None, None]
        if norm == "instance":
            var, mean = torch.var_mean(y, (2, 3), correction=0, keepdim=True)
            y = affine((y - mean) / (var + 1e-4).sqrt(), norm_weight, norm_bias)
        return y

    def exact(**t) -> Tensor:
        return ACTIVATIONS[activation](before_activation(**t))

    margin = 1e-3 if tensors["x"].dtype in (torch.float32, torch.float64) else 5e-2
    assert_op_accurate(
        ours,
        in_torch,
        exact,
        tensors,
        away_from_kinks=lambda **t: before_activation(**t).abs() > margin,
        grad_layout=grad_layout,
    )


def inputs(shape, outputs, upsample, kernel, dtype, layout="contiguous", device="cpu"):
    x = random(*shape, dtype=dtype, layout=layout, device=device, shift=0.2)
    channels = shape[1]
    size = (channels, outputs) if upsample == "transpose" else (outputs, channels)
    scale = (channels * kernel) ** -0.5
    weight = random(*size, kernel, kernel, dtype=dtype, device=device, scale=scale, seed=1)
    return {"x": x, "weight": weight}


OPTIONS = {
    "convolution": tuple(itertools.product(KINDS, PADDING_MODES)),
    "dtype": DTYPES,
    "layout": ("contiguous", "channels_last", "misaligned", "cropped"),
}
CASES = tuple(pairwise(OPTIONS))
NORMS = {
    "kind": KINDS[:3],
    "of_output": tuple(itertools.product(ACTIVATIONS, ("none", "(C,)", "(N, C)", "bias"))),
    "dtype": (torch.float32, torch.bfloat16),
}


def test_every_pair_of_options_meets() -> None:
    assert not missing_pairs(CASES, OPTIONS)
    assert not missing_pairs(pairwise(NORMS), NORMS)


@pytest.mark.every_capability
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kinds_dtypes_layouts(case, device) -> None:
    (upsample, kernel), padding_mode = case["convolution"]
    tensors = inputs((2, 5, 5, 7), 17, upsample, kernel, case["dtype"], case["layout"], device)
    check(tensors, upsample, padding_mode)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((0, 3, 4, 4), 5),
        ((1, 1, 1, 5), 1),
        ((3, 3, 2, 2), 16),
        ((1, 16, 9, 7), 33),
        ((1, 33, 5, 3), 3),
        ((1, 64, 8, 8), 32),
        ((1, 100, 3, 4), 2),
        ((1, 4, 31, 17), 8),
    ],
)
def test_shapes(shape, outputs, upsample, kernel, dtype, layout, device) -> None:
    check(inputs(shape, outputs, upsample, kernel, dtype, layout, device), upsample, "replicate")


@pytest.mark.parametrize("case", tuple(pairwise(NORMS)), ids=name_of)
def test_norms_and_activations(case, device) -> None:
    (upsample, kernel), (activation, parameters) = case["kind"], case["of_output"]
    tensors = inputs((2, 6, 5, 7), 9, upsample, kernel, case["dtype"], "channels_last", device)
    if parameters == "bias":
        bias = random(9, dtype=case["dtype"], device=device, seed=2)
        check(tensors | {"bias": bias}, upsample, "replicate", "none", activation)
        return
    if parameters != "none":
        size = (9,) if parameters == "(C,)" else (2, 9)
        for seed, name in enumerate(("norm_weight", "norm_bias"), 3):
            tensors[name] = random(*size, device=device, seed=seed, shift=0.5)
    check(tensors, upsample, "replicate", "instance", activation)
    check({k: tensors[k] for k in ("x", "weight")}, upsample, "zeros", "none", activation)


def check_largest_error(upsample, kernel, dtype, device) -> None:
    """Many draws are needed to find an additional rounding, such as that of sums of weights."""
    for seed in range(16):
        x = random(2, 5, 5, 7, dtype=dtype, device=device, seed=2 * seed)
        sizes = (17, 5) if upsample == "nearest" else (5, 17)
        spread = (5 * kernel * kernel) ** -0.5
        weight = random(
            *sizes, kernel, kernel, dtype=dtype, device=device, scale=spread, seed=2 * seed + 1
        )
        y = upsample_block(x, weight, upsample=upsample, activation="tanh")
        raw = convolution_in_torch(x, weight, None, upsample, "replicate").float()
        exact = convolution_in_torch(x.double(), weight.double(), None, upsample, "replicate")
        in_torch, exact = (torch.tanh(F.instance_norm(plane)) for plane in (raw, exact))
        assert_accurate(y, in_torch.to(dtype), exact, f"draw {seed}")


@pytest.mark.every_capability
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:4])
def test_largest_error_in_half_precision(upsample, kernel, dtype, device) -> None:
    check_largest_error(upsample, kernel, dtype, device)


@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "cropped"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
def test_layout_of_the_gradient(upsample, kernel, layout, grad_layout, device) -> None:
    tensors = inputs((2, 5, 6, 7), 8, upsample, kernel, torch.float32, layout, device)
    check(tensors, upsample, "reflect", grad_layout=grad_layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
def test_bias_before_a_norm_has_no_effect_and_a_gradient_of_zeros(upsample, kernel, dtype, device):
    tensors = inputs((2, 5, 6, 7), 8, upsample, kernel, dtype, device=device)
    x, weight = tensors.values()
    bias = random(8, dtype=dtype, device=device, scale=100.0, seed=5).requires_grad_()
    y = upsample_block(x, weight, bias=bias, upsample=upsample)
    assert torch.equal(y, upsample_block(x, weight, upsample=upsample))
    y.sum().backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))


def test_a_large_bias_before_a_norm_does_not_cost_accuracy(device) -> None:
    """A network's bias may drift: torch computes with it, rounds, and takes it away."""
    tensors = inputs((1, 5, 6, 7), 8, "transpose", 4, torch.float32, device=device)
    x, weight = tensors.values()
    y = upsample_block(x, weight, bias=torch.full((8,), 1e6, device=device), activation="none")
    raw = exact_convolution(x.double(), weight.double(), "transpose", "replicate")
    expected = F.instance_norm(raw)
    assert_accurate(y, F.instance_norm(raw.float()), expected)


def check_derivatives(upsample, kernel, padding_mode, norm, device, fast_mode=False) -> None:
    """Compare with finite differences, in one direction only with ``fast_mode``."""
    tensors = inputs((2, 2, 2, 3), 2, upsample, kernel, torch.float64, device=device)
    x, weight = (t.detach().requires_grad_() for t in tensors.values())
    first, second = (
        random(2, dtype=torch.float64, device=device, seed=s).requires_grad_() for s in (7, 8)
    )

    def block(x, weight, first, second) -> Tensor:
        given = {"bias": first + second}
        if norm == "instance":
            given = {"norm_weight": first, "norm_bias": second}
        return upsample_block(
            x,
            weight,
            **given,
            upsample=upsample,
            norm=norm,
            activation="tanh",
            padding_mode=padding_mode,
        )

    given = (x, weight, first, second)
    assert torch.autograd.gradcheck(block, given, check_forward_ad=True, fast_mode=fast_mode)
    assert torch.autograd.gradgradcheck(block, given, fast_mode=True)


@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_gradcheck(upsample, kernel, padding_mode, device) -> None:
    """Each convolution with a norm, whose gradient contains the convolution's."""
    check_derivatives(upsample, kernel, padding_mode, "instance", device)


@pytest.mark.parametrize(
    ("upsample", "kernel", "padding_mode"),
    [("transpose", 4, "zeros"), ("transpose", 3, "replicate"), ("nearest", 3, "reflect")],
)
def test_gradcheck_without_a_norm(upsample, kernel, padding_mode, device) -> None:
    check_derivatives(upsample, kernel, padding_mode, "none", device)


@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
def test_nan_reaches_the_planes_of_its_image_only(upsample, kernel, device) -> None:
    x, weight = inputs((2, 3, 6, 7), 4, upsample, kernel, torch.float32, device=device).values()
    x = x.clone()
    x[1, 1, 3, 3] = torch.nan
    y = upsample_block(x, weight, upsample=upsample)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    y = upsample_block(x, weight, upsample=upsample, norm="none")
    raw = exact_convolution(x.double(), weight.double(), upsample, "replicate")
    assert y[1].isnan().any()
    if upsample == "nearest":  # a transposed convolution by zero insertion multiplies NaN by zero
        expected = raw.isnan()
        assert y.isnan()[expected].all()
        # Triton's kernels compute four pixels together.
        near = F.max_pool2d(expected.double(), 3, 1, 1).bool()
        assert not (y.isnan() & ~near).any()


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("upsample", "kernel"), KINDS[:3])
def test_backward_keeps_the_convolutions_input_and_output_once(
    upsample, kernel, padding_mode, device
) -> None:
    layout = "channels_last"
    tensors = inputs((1, 8, 16, 16), 8, upsample, kernel, torch.float32, layout, device)
    x, weight = (t.requires_grad_() for t in tensors.values())
    kept = saved_image_bytes(
        lambda: upsample_block(x, weight, upsample=upsample, padding_mode=padding_mode), 2048
    )
    output = 4 * x.numel() * 4
    assert len(kept) == 2
    assert output in kept


@pytest.mark.parametrize("threads", [1, 2])
def test_deterministic(threads, device, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as the op asks of everybody
    x, weight = inputs((2, 16, 33, 31), 17, "transpose", 4, torch.float32, device=device).values()
    x = laid_out(x, "channels_last").requires_grad_()
    cotangent = random(2, 17, 66, 62, device=device, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [upsample_block(x, weight) for _ in range(3)]
        runs = [(y, *torch.autograd.grad(y, x, cotangent)) for y in runs]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for first, again in zip(runs[0], run, strict=True):
            assert torch.equal(first, again)


X, WEIGHT = inputs((2, 3, 5, 4), 6, "transpose", 4, torch.float32).values()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x: expected shape \(N, C, H, W\), got \(3, 5, 4\)"),
        ({"x": X.half()}, TypeError, "weight: .*float16, got torch.float32; convert .*to.x.dtype"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"weight": WEIGHT[:2]}, ValueError, r"weight: .*Cin = 3 and k = 3 or 4.*\(2, 6, 4, 4\)"),
        ({"weight": WEIGHT[..., :3]}, ValueError, r"weight: .*got \(3, 6, 4, 3\)"),
        ({"upsample": "nearest"}, ValueError, r"weight: .*\(Cout, Cin, k, k\).*k odd"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight: expected x's device cpu, got meta"),
        ({"upsample": "bilinear"}, ValueError, "upsample: .*transpose, nearest, got 'bilinear'"),
        ({"norm": "batch"}, ValueError, "norm: expected one of instance, none, got 'batch'"),
        ({"activation": "elu"}, ValueError, "activation: expected one of .*, got 'elu'"),
        ({"padding_mode": "circular"}, ValueError, "padding_mode: .*zeros, .*got 'circular'"),
        (
            {"norm": "none", "norm_weight": X[0, 0, 0]},
            ValueError,
            "norm_weight: .*; use bias",
        ),
        ({"norm_weight": X[0, 0, 0]}, ValueError, r"norm_weight: .*\(6,\).*got \(4,\)"),
        ({"norm_bias": X[0, 0, 0]}, ValueError, r"norm_bias: .*\(6,\).*got \(4,\)"),
        ({"bias": X[0, 0, 0]}, ValueError, r"bias: .*\(6,\).*got \(4,\)"),
        ({"bias": X[0, 0, 0], "norm": "none"}, ValueError, r"bias: .*got \(4,\)"),
        ({"bias": torch.ones(6, device="meta")}, ValueError, "bias: .*got meta"),
        ({"weight": None}, TypeError, "weight: expected"),
        ({"x": X[:, :, :1], "padding_mode": "reflect"}, ValueError, "x: .*reflect"),
        ({"x": X[:, :, :0]}, ValueError, r"x: .*one pixel, got \(2, 3, 0, 4\)"),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        upsample_block(**{"x": X, "weight": WEIGHT, **arguments})
