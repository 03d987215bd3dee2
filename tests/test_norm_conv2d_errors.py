"""Refusals of norm_conv2d and norm_scale_shift, and their messages."""

import pytest
import torch

from stylekernels import norm_conv2d, norm_scale_shift
from tests.conftest import random
from tests.convolutions import inputs

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
@pytest.mark.parametrize("name", ["x", "weight", "bias", "scale_shift", "residual"])
def test_gradients_are_refused(name, device, implementation) -> None:
    tensors = inputs(
        ("none", 3, 1),
        (1, 3, 5, 6),
        4,
        torch.float32,
        device=device,
        scale_shift=True,
        bias="x's",
        residual="contiguous",
    )
    expected = norm_conv2d(**tensors).y
    tensors[name].requires_grad_()
    message = rf"^norm_conv2d has no gradient, but {name} requires one: .*no_grad.*upsample_block"
    with pytest.raises(RuntimeError, match=message):
        norm_conv2d(**tensors)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = norm_conv2d(**tensors).y
        assert torch.equal(y, expected)
        assert not y.requires_grad
    with pytest.raises(RuntimeError, match="norm_conv2d has no gradient"):
        torch.func.grad(lambda t: norm_conv2d(**tensors | {name: t}).y.sum())(
            tensors[name].detach()
        )


X = random(2, 3, 5, 4)
WEIGHT = random(6, 3, 3, 3, seed=1)
TRANSPOSED = random(3, 6, 4, 4, seed=1)
PAIRS = random(2, 3, 2, seed=2)
CHANNELS = X[0, :, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 3}, TypeError, "x: expected a torch.Tensor, got int"),
        ({"x": X.long()}, TypeError, "x: expected dtype float32, bfloat16, .*got torch.int64"),
        ({"x": X[0]}, ValueError, r"x: expected shape \(N, C, H, W\), got \(3, 5, 4\)"),
        ({"x": X[..., :1]}, ValueError, r"x: expected at least 3 by 3 pixels .*\(2, 3, 5, 1\)"),
        ({"x": X[..., :0], "padding": 2}, ValueError, "x: expected at least 1 by 1 pixels"),
        (
            {"x": X[..., :2], "padding": 2, "padding_mode": "reflect"},
            ValueError,
            r"x: expected more than 2 pixels a side to reflect, got .*use padding_mode='replicate'",
        ),
        (
            {
                "x": X[..., :1],
                "weight": TRANSPOSED,
                "upsample": "transpose",
                "padding_mode": "reflect",
            },
            ValueError,
            "x: expected more than 1 pixels a side",
        ),
        (
            {
                "x": X[..., :1],
                "weight": random(6, 3, 5, 5),
                "upsample": "nearest",
                "padding": 2,
                "padding_mode": "reflect",
            },
            ValueError,
            "x: .* 2 pixels a side to reflect after upsampl",
        ),
        ({"x": X.half()}, TypeError, "weight: expected x's dtype torch.float16, got torch.float32"),
        ({"weight": None}, TypeError, "weight: expected a torch.Tensor, got NoneType"),
        (
            {"weight": WEIGHT[:, :2]},
            ValueError,
            r"weight: expected shape \(Cout, Cin, k, k\) with Cin = 3 and k from 1 to 9 for "
            r"upsample='none', got \(6, 2, 3, 3\)",
        ),
        ({"weight": WEIGHT[..., :2]}, ValueError, r"weight: .*got \(6, 3, 3, 2\)"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight: .*got \(3, 3, 3\)"),
        ({"weight": random(6, 3, 10, 10)}, ValueError, r"weight: .*k from 1 to 9 .*10, 10\)"),
        (
            {"weight": random(6, 3, 4, 4), "upsample": "nearest"},
            ValueError,
            r"weight: .*\(Cout, Cin, k, k\).*k = 3, 5, 7 or 9 for upsample='nearest'",
        ),
        ({"weight": random(6, 3, 1, 1), "upsample": "nearest"}, ValueError, "weight: .*k = 3, 5"),
        (
            {"upsample": "transpose"},
            ValueError,
            r"weight: .*\(Cin, Cout, k, k\) with Cin = 3 and k = 3 or 4 .*got \(6, 3, 3, 3\)",
        ),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight: expected x's device cpu, got meta"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor or None, got float"),
        ({"bias": CHANNELS}, ValueError, r"bias: expected shape \(Cout,\) = \(6,\), got \(3,\)"),
        ({"bias": random(6).double()}, TypeError, "bias: .* dtype torch.float32, got torch.float6"),
        (
            {"x": X.half(), "weight": WEIGHT.half(), "bias": random(6).double()},
            TypeError,
            "bias: expected x's dtype torch.float16 or torch.float32, got torch.float64; convert",
        ),
        ({"bias": torch.empty(6, device="meta")}, ValueError, "bias: .*device cpu, got meta"),
        ({"scale_shift": (CHANNELS, CHANNELS)}, TypeError, "scale_shift: .*tuple; norm_scale_shi"),
        (
            {"scale_shift": PAIRS[0]},
            ValueError,
            r"scale_shift: expected shape \(N, Cin, 2\) = \(2, 3, 2\), got \(3, 2\); norm_scale",
        ),
        (
            {"scale_shift": PAIRS.double()},
            TypeError,
            "scale_shift: expected torch.float32 for x of torch.float32, got torch.float64; conv",
        ),
        (
            {"x": X.double(), "weight": WEIGHT.double(), "scale_shift": PAIRS},
            TypeError,
            "scale_shift: expected torch.float64 for x of torch.float64, got torch.float32",
        ),
        ({"scale_shift": PAIRS.to("meta")}, ValueError, "scale_shift: .*device cpu, got meta"),
        ({"activation": "elu"}, ValueError, "activation: .*none, relu, .*gelu_tanh, got 'elu'"),
        ({"negative_slope": CHANNELS}, TypeError, "negative_slope: expected a number, got Tensor"),
        ({"residual": X[:1]}, ValueError, r"residual: .*\(2, 3, 5, 4\), got \(1, 3, 5, 4\)"),
        ({"residual": X.half()}, TypeError, "residual: .*torch.float32, got torch.float16"),
        ({"stride": (1, 1)}, TypeError, r"stride: expected an int .*got \(1, 1\)"),
        ({"stride": 3}, ValueError, "stride: expected 1 or 2, got 3"),
        (
            {"stride": 2, "padding": 1, "upsample": "nearest"},
            ValueError,
            "stride: expected 1 with upsample='nearest', got 2; .*leave stride out",
        ),
        (
            {"stride": 2, "weight": TRANSPOSED, "upsample": "transpose"},
            ValueError,
            "stride: expected 1 with upsample='transpose', got 2",
        ),
        ({"padding": "same"}, TypeError, "padding: expected an int .*got 'same'"),
        ({"padding": True}, TypeError, "padding: expected an int .*got True"),
        ({"padding": -1}, ValueError, "padding: expected 0 or more, got -1"),
        (
            {"upsample": "nearest"},
            ValueError,
            "padding: expected k // 2 = 1 with upsample='nearest' and a kernel of 3, got 0",
        ),
        (
            {"padding": 1, "weight": TRANSPOSED, "upsample": "transpose"},
            ValueError,
            "padding: expected 0 with upsample='transpose', got 1; .*leave padding out",
        ),
        ({"padding_mode": "circular"}, ValueError, "padding_mode: .*zeros, .*got 'circular'"),
        ({"upsample": "bilinear"}, ValueError, "upsample: .*none, nearest, transpose, got 'biline"),
    ],
)
def test_errors(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        norm_conv2d(**{"x": X, "weight": WEIGHT, **arguments})


MEAN = X[..., 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mean": 0.0}, TypeError, "mean: expected a torch.Tensor, got float"),
        ({"mean": MEAN.half()}, TypeError, "mean: expected float32 or float64, got torch.float16"),
        ({"mean": MEAN[0]}, ValueError, r"mean: expected shape \(N, C\), got \(3,\); .*expand"),
        ({"var": MEAN[:1]}, ValueError, r"var: expected mean's shape \(2, 3\) .*got \(1, 3\)"),
        ({"var": MEAN.double()}, ValueError, "var: .*torch.float32, got .*torch.float64"),
        ({"var": MEAN.to("meta")}, ValueError, "var: expected .*device cpu, got meta"),
        ({"weight": 1.0}, TypeError, "weight: expected a torch.Tensor or None, got float"),
        ({"weight": random(2)}, ValueError, r"weight: .* = \(3,\) or .* = \(2, 3\), got \(2,\)"),
        (
            {"bias": MEAN.long()},
            TypeError,
            "bias: expected a floating-point dtype, got torch.int64",
        ),
        ({"bias": MEAN.to("meta")}, ValueError, "bias: expected mean's device cpu, got meta"),
    ],
)
def test_errors_of_scale_shift(arguments, error, message) -> None:
    with pytest.raises(error, match="^" + message):
        norm_scale_shift(**{"mean": MEAN, "var": MEAN.abs(), **arguments})
