"""Numbers as arguments of ops and modules: those of NumPy and tensors of one value are taken,
and anything else is refused by name."""

import numpy as np
import pytest
import torch

import stylekernels
from tests.conftest import random

X = random(2, 4, 5, 6)
TARGET = random(2, 4, 4)


def instance_norm(**options):
    return stylekernels.instance_norm(X, activation="leaky_relu", **options)


def group_norm(**options):
    return stylekernels.group_norm(X, 2, activation="leaky_relu", **options)


def upsample_block(**options):
    return stylekernels.upsample_block(X, random(4, 3, 3, 3), activation="leaky_relu", **options)


def norm_conv2d(**options):
    return stylekernels.norm_conv2d(X, random(3, 4, 3, 3), activation="leaky_relu", **options).y


def norm_scale_shift(**options):
    mean, var = stylekernels.instance_norm_stats(X)
    return stylekernels.norm_scale_shift(mean, var, **options)


def instance_norm_module(**options):
    return stylekernels.nn.InstanceNorm2d(4, activation="leaky_relu", **options)(X)


def group_norm_module(**options):
    return stylekernels.nn.GroupNorm(2, 4, activation="leaky_relu", **options)(X)


def gram_matrix(**options):
    return stylekernels.gram_matrix(X, **options)


def gram_loss(**options):
    return stylekernels.gram_loss(X, TARGET, **options)


NUMBERS = [
    *((function, "eps") for function in (instance_norm, group_norm, upsample_block)),
    *((function, "eps") for function in (norm_scale_shift, instance_norm_module)),
    *((function, "negative_slope") for function in (instance_norm, group_norm, upsample_block)),
    *((function, "negative_slope") for function in (norm_conv2d, instance_norm_module)),
    (group_norm_module, "negative_slope"),
    (group_norm_module, "eps"),
    (gram_matrix, "scale"),
    (gram_loss, "scale"),
]


@pytest.mark.parametrize(("function", "name"), NUMBERS)
@pytest.mark.parametrize("implementation", ["native", "reference"])
class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "came"),
        [
            ("a", "str"),
            ([0.1], "list"),
            (1j, "complex"),
            (np.array([0.1]), "ndarray"),
            (torch.tensor([0.1, 0.2]), r"Tensor of shape \(2,\) and dtype torch.float32"),
            (torch.tensor(1j), r"Tensor of shape \(\) and dtype torch.complex64"),
        ],
        ids=str,
    )
    def test_refused(self, function, name, implementation, value, came):
        with (
            stylekernels.use_impl(implementation),
            pytest.raises(TypeError, match=f"^{name}: expected a number, got {came}; pass a float"),
        ):
            function(**{name: value})

    @pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
    def test_taken(self, function, name, implementation, kind):
        with stylekernels.use_impl(implementation):
            expected = function(**{name: 0.25})
            torch.testing.assert_close(function(**{name: kind(0.25)}), expected)


@pytest.mark.parametrize(("function", "name"), [n for n in NUMBERS if n[1] != "scale"])
def test_none_is_no_number(function, name):
    with pytest.raises(
        TypeError, match=f"^{name}: expected a number, got NoneType; .* leave it out"
    ):
        function(**{name: None})


def test_scales_of_layers():
    with pytest.raises(TypeError, match=r"^scales\[1\]: expected a number, got NoneType"):
        stylekernels.gram_losses([X, X], [TARGET, TARGET], scales=[1.0, None])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_a_number_of_groups_of_another_library(kind):
    expected = stylekernels.group_norm(X, 2)
    assert torch.equal(stylekernels.group_norm(X, kind(2)), expected)
    assert torch.equal(stylekernels.nn.GroupNorm(kind(2), 4)(X), expected)


@pytest.mark.parametrize("groups", [2.0, True, "2", None])
def test_no_number_of_groups(groups):
    came = type(groups).__name__
    with pytest.raises(TypeError, match=f"^num_groups: expected an int, got {came}; pass an int"):
        stylekernels.group_norm(X, groups)


def test_numbers_that_compile():
    def function(x, eps):
        return stylekernels.instance_norm(x, eps=eps, negative_slope=2 * eps)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for eps in (0.25, 0.5, 1):
        torch.testing.assert_close(compiled(X, eps), function(X, eps))
