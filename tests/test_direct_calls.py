"""Invalid arguments in direct calls of ``torch.ops.stylekernels`` are refused by name, because
kernels would access memory outside of a tensor."""

import pytest
import torch

import stylekernels.ops  # noqa: F401  registers torch.ops.stylekernels
from stylekernels import native
from tests.conftest import random
from tests.convolve_into import convolve_into

pytestmark = [
    pytest.mark.parametrize("implementation", ["native", "triton"], indirect=True),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]

OPS = torch.ops.stylekernels
N, C, H, W = 2, 64, 5, 4
X = random(N, C, H, W)
ONE, PLANES, GRAMS = random(1), random(N, C), random(N, C, C)
HALF = X.bfloat16()
NONE = (None,) * 5
NORM = ("relu", 0.01, False, 1e-5, False, 1)
MEAN = torch.stack((PLANES, PLANES))
KERNEL = random(8, C, 3, 3, scale=0.1)
MODE = (1, 1, "zeros", "none")


def norm(x=X, weight=None, bias=None, residual=None, mean=None, var=None):
    return OPS.instance_norm(x, weight, bias, residual, mean, var, *NORM)


def norm_backward(grad=X, x=X, weight=None, bias=None, residual=None, mean=MEAN, rstd=PLANES):
    options = ("relu", 0.01, True, residual is not None, False, 1)
    return OPS.instance_norm_backward(grad, x, weight, bias, residual, mean, rstd, *options)


def convolve(stride=1, padding=1, padding_mode="zeros", upsample="none", **changed):
    tensors = {"x": X, "weight": KERNEL, "bias": None, "scale_shift": None, "residual": None}
    return OPS.norm_conv2d(
        **(tensors | changed),
        activation="none",
        negative_slope=0.0,
        return_input=False,
        stride=stride,
        padding=padding,
        padding_mode=padding_mode,
        upsample=upsample,
        return_stats=True,
    )


def convolve_directly(
    x=X,
    weight=KERNEL,
    packed=None,
    y=None,
    norm_bias=None,
    workspace=None,
    upsample="none",
    **options,
):
    mode = (*MODE[:3], upsample)
    packed = OPS.norm_conv2d_pack(KERNEL, *mode) if packed is None else packed
    y = torch.empty(N, 8, H, W) if y is None else y
    if workspace is None:
        size = OPS.norm_conv2d_workspace(KERNEL, N, H, W, *mode)
        workspace = torch.empty(size, dtype=torch.float64)
    options["norm"] = (None, norm_bias, 1e-5)
    convolve_into(y, workspace, x, weight, packed, mode, **options)


def with_gaps(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


CALLS = {
    "group": [
        lambda: OPS.instance_norm(X, *NONE, *NORM[:-1], 5),
        lambda: OPS.instance_norm(X, *NONE, *NORM[:-1], 0),
        lambda: OPS.instance_norm_backward(
            X, X, None, None, None, MEAN, PLANES, "relu", 0.01, True, False, False, 128
        ),
    ],
    "x": [
        lambda: OPS.instance_norm_stats(X[0]),
        lambda: norm(X[0]),
        lambda: norm(X.long()),
        lambda: OPS.gram_matrix(X[0, 0], None, False),
        lambda: OPS.gram_matrix(X[None], None, True),
        lambda: OPS.gram_loss(X[0, 0], GRAMS, None, True),
        lambda: convolve(x=X[:, :8]),
        lambda: convolve(x=X[0]),
        lambda: convolve_directly(X[:, :8]),
    ],
    "weight": [
        lambda: norm(weight=ONE),
        lambda: norm(weight=random(1, C)),
        lambda: norm(weight=random(C, 1)),
        lambda: norm_backward(weight=ONE),
        lambda: convolve(weight=KERNEL.bfloat16()),
        lambda: convolve(weight=random(8, C, 11, 11), padding=5),
        lambda: convolve(weight=random(8, C, 3, 2)),
        lambda: convolve(weight=random(C, 8, 5, 5), padding=0, upsample="transpose"),
    ],
    "bias": [
        lambda: norm(bias=ONE),
        lambda: norm_backward(bias=random(N, 1)),
        lambda: convolve(bias=ONE),
    ],
    "residual": [
        lambda: norm(residual=X[:1]),
        lambda: norm(residual=HALF),
        lambda: norm(residual=X[..., :1]),
        lambda: norm_backward(residual=X[:1]),
        lambda: convolve(residual=X[:, :1]),
        lambda: convolve(residual=HALF),
        lambda: convolve_directly(residual=X[:1]),
    ],
    "mean": [
        lambda: norm(mean=ONE, var=PLANES),
        lambda: norm(mean=PLANES),
        lambda: norm_backward(mean=PLANES),
        lambda: norm_backward(mean=MEAN.double()),
        lambda: OPS.gram_matrix_backward(GRAMS, X, PLANES, None),
        lambda: OPS.gram_matrix_backward(GRAMS, X, MEAN.double(), None),
        lambda: OPS.gram_losses_backward([X], [GRAMS], [PLANES], ONE, None),
    ],
    "var": [lambda: norm(mean=PLANES, var=ONE)],
    "rstd": [lambda: norm_backward(rstd=ONE), lambda: norm_backward(rstd=PLANES.bfloat16())],
    "grad": [
        lambda: norm_backward(grad=X[:1]),
        lambda: norm_backward(grad=HALF),
        lambda: OPS.gram_matrix_backward(GRAMS[:1], X, None, None),
        lambda: OPS.gram_matrix_backward(GRAMS.double(), X, None, None),
        lambda: OPS.gram_losses_backward([X], [GRAMS[:, :2]], [], ONE, None),
        lambda: OPS.gram_losses_backward([X], [GRAMS], [], random(3), None),
    ],
    "target": [
        lambda: OPS.gram_loss(X, GRAMS[0, :1], None, False),
        lambda: OPS.gram_loss(X, GRAMS.double(), None, True),
        lambda: OPS.gram_losses([X], [GRAMS[:, :1]], None, True),
        lambda: OPS.gram_losses([X, X], [GRAMS], None, False),
    ],
    "features": [lambda: OPS.gram_losses([X, X.double()], [GRAMS, GRAMS.double()], None, True)],
    "means": [lambda: OPS.gram_losses_backward([X], [GRAMS], [MEAN, MEAN], ONE, None)],
    "scales": [
        lambda: OPS.gram_losses([X], [GRAMS], [1.0, 2.0], False),
        lambda: OPS.gram_losses_backward([X], [GRAMS], [], ONE, [1.0, 2.0]),
    ],
    "scale_shift": [
        lambda: convolve(scale_shift=PLANES),
        lambda: convolve(scale_shift=random(N, 1, 2)),
        lambda: convolve_directly(scale_shift=random(1, C, 2)),
    ],
    "next_scale_shift": [
        lambda: convolve_directly(next_scale_shift=random(N, 1, 2)),
        lambda: convolve_directly(next_scale_shift=with_gaps(random(N, 8, 2))),
    ],
    "activation": [
        lambda: OPS.instance_norm(X, *NONE, "elu", *NORM[1:]),
        lambda: OPS.norm_conv2d(
            X, KERNEL, None, None, "elu", 0.0, None, False, 1, 1, "zeros", "none", True
        ),
    ],
    "upsample": [lambda: convolve(upsample="bilinear")],
    "padding_mode": [lambda: convolve(padding_mode="wrap")],
    "stride": [
        lambda: convolve(stride=3),
        lambda: convolve(stride=0),
        lambda: convolve(stride=2, upsample="nearest"),
    ],
    "padding": [
        lambda: convolve(padding=-1),
        lambda: convolve(padding=3, upsample="nearest"),
        lambda: convolve(weight=random(C, 8, 4, 4), padding=2, upsample="transpose"),
    ],
    "x: .*(small|expected)": [
        lambda: convolve(padding=5, padding_mode="reflect"),
        lambda: convolve(weight=random(8, C, 9, 9), padding=0),
        # The widest images that are too narrow to reflect.
        lambda: convolve(
            x=X[..., :2],
            weight=random(8, C, 9, 9),
            padding=4,
            padding_mode="reflect",
            upsample="nearest",
        ),
        lambda: convolve(
            x=X[..., :1],
            weight=random(C, 8, 4, 4),
            padding=0,
            padding_mode="reflect",
            upsample="transpose",
        ),
        lambda: OPS.gram_matrix(X[..., :0], None, False),
        lambda: OPS.gram_loss(X[..., :0], GRAMS, None, True),
        lambda: OPS.gram_matrix_backward(GRAMS, X[..., :0], None, None),
    ],
    "one device": [
        lambda: norm(weight=torch.empty(C, device="meta")),
        lambda: norm(residual=X.to("meta")),
        lambda: convolve(weight=KERNEL.to("meta")),
        lambda: OPS.gram_loss(X, GRAMS.to("meta"), None, False),
        lambda: norm_backward(grad=X.to("meta")),
    ],
    "norm_bias": [lambda: convolve_directly(norm_bias=ONE)],
    "input": [
        lambda: convolve_directly(input=torch.empty(N, C, H, 1)),
        lambda: convolve_directly(input=torch.empty_like(HALF)),
        lambda: convolve_directly(input=with_gaps(X)),
    ],
    "y": [
        lambda: convolve_directly(y=torch.empty(N, 4, H, W)),
        lambda: convolve_directly(y=torch.empty(1, 8, H, W)),
        lambda: convolve_directly(y=torch.empty(N, 8, H + 1, W)),
        lambda: convolve_directly(y=with_gaps(torch.empty(N, 8, H, W))),
        # Parts of upsampled outputs, and of outputs with statistics.
        lambda: convolve_directly(upsample="nearest", y=torch.empty(N, 8, 2 * H - 1, 2 * W)),
        lambda: convolve_directly(y=torch.empty(N, 8, H - 1, W), next_scale_shift=random(N, 8, 2)),
    ],
    "packed": [
        lambda: convolve_directly(packed=ONE),
        lambda: convolve_directly(packed=with_gaps(OPS.norm_conv2d_pack(KERNEL, *MODE))),
    ],
    "workspace": [
        lambda: convolve_directly(workspace=torch.empty(1, dtype=torch.float64)),
        lambda: convolve_directly(workspace=torch.empty(1 << 20)),
    ],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, calls in CALLS.items() for i in range(len(calls))]
)
def test_an_argument_that_does_not_fit_is_refused_by_name(name, number, implementation) -> None:
    if implementation == "native" and native.cpu_missing is not None:
        pytest.skip("no compiled kernels")
    message = rf"\b{name}s?\b.*(: expected|too small|, got)|expected float32, bfloat16"
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        CALLS[name][number]()


def test_a_convolution_that_needs_a_gradient_is_refused(implementation) -> None:
    message = "norm_conv2d has no gradient, but one of its inputs requires one: call it under"
    with pytest.raises(RuntimeError, match=message):
        convolve(weight=KERNEL.clone().requires_grad_())


def test_messages_tell_what_was_expected_and_what_was_given(implementation) -> None:
    if implementation != "native" or native.cpu_missing is not None:
        pytest.skip("messages of the compiled library")
    calls = {
        r"x: expected rank 4, got \(64, 5, 4\)": lambda: OPS.instance_norm_stats(X[0]),
        r"x: expected rank 3 to 4, got \(4\)": lambda: OPS.gram_matrix(X[0, 0, 0], None, False),
        "x: expected float32, .* got another dtype": lambda: norm(X.long()),
        "upsample: expected none, .* got bilinear": lambda: convolve(upsample="bilinear"),
        "packed: expected the .* got 1 of float32": lambda: convolve_directly(packed=ONE),
        "workspace: expected .* got 1;": CALLS["workspace"][0],
        r"y: expected the whole output \(2, 8, 5, 4\), .* got \(2, 4, 5, 4\)": CALLS["y"][0],
    }
    for message, call in calls.items():
        with pytest.raises(RuntimeError, match=message):
            call()
