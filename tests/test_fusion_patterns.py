"""fuse_convolutions on single patterns of calls: what can be one op is, what must stay apart stays,
and values that change in place keep their meaning."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylekernels import fuse_convolutions
from stylekernels.fusion.geometry import geometry_of, is_faster
from tests.conftest import random
from tests.fusion import Blocks, calls_of, check, network


def two_readers(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    return m.conv2(y) + m.wide(F.pad(y, (2, 2, 2, 2), "replicate"))


def a_use_before_the_convolution(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    z = y.mean((2, 3), keepdim=True)
    return m.conv2(y) * z


def a_use_after_the_convolution(m, x):
    y = m.relu(m.norm1(m.conv1(x)))
    z = m.conv2(y)
    return z * y.mean((2, 3), keepdim=True)


def a_chain_of_sums(m, x):
    y = F.silu(m.norm1(m.conv1(x)))
    y = y + m.norm2(m.conv2(y))
    y = m.norm1(m.conv3(y)) + y
    return m.conv1(y) + y


def a_sum_before_the_activation(m, x):
    y = m.relu(m.norm1(m.conv1(x)) + x)
    return m.conv2(y) + y


def a_sum_of_two_norms(m, x):
    return m.conv3(m.norm1(m.conv1(x)) + m.norm2(m.conv2(x)))


def a_smaller_term(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + x.mean((2, 3), keepdim=True))


def a_number(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + 0.5)


def twice_itself(m, x):
    y = m.norm1(m.conv1(x))
    return m.conv2(y + y)


def in_place_on_a_value_in_use(m, x):
    y = m.norm1(m.conv1(x))
    z = m.conv2(m.relu_(y))
    return y + z  # y is the activated value


def in_place_on_what_was_normalised(m, x):
    y = m.conv1(x)
    z = m.norm1(y)
    y *= -2
    return m.conv2(z) + y


def in_place_on_a_view(m, x):
    y = m.conv1(x)
    return m.conv2(m.relu_(y[:, :3])) + m.conv3(m.relu_((x - y).detach())) + y


def in_place_on_a_detached_value(m, x):
    y = m.conv1(x)
    return m.conv2(m.relu_(y.detach())) + y


def in_place_sum_of_a_value_in_use(m, x):
    y = m.conv1(x)
    z = y
    z += m.norm1(m.conv2(x))
    return m.conv3(z) + y


def a_term_in_use(m, x):
    y = m.norm1(m.conv1(x))
    return F.relu(y + x) * y


def in_place_on_a_term(m, x):
    y = m.conv1(x)
    z = m.norm1(m.conv2(x)) + y
    y.mul_(2)
    return m.conv3(z) + y


def in_place_on_what_was_padded(m, x):
    y = m.conv1(x)
    z = F.pad(y, (2, 2, 2, 2), mode="reflect")
    y.mul_(2)
    return m.wide(z) + y


def in_place_sum(m, x):
    y = m.norm1(m.conv1(x))
    y += x
    return m.conv2(y) + y


def two_norms_of_one_value(m, x):
    y = m.conv1(x)
    return m.conv2(F.relu(m.norm1(y))) + m.conv3(m.norm2(y))


def one_layer_twice(m, x):
    return m.conv1(m.norm1(m.conv1(m.norm1(m.conv1(x)))))


def groups_and_running_statistics(m, x):
    return m.conv3(F.gelu(m.batch(m.conv2(F.leaky_relu(m.group(m.conv1(x)), 0.3)))))


def idle_layers_between(m, x):
    return m.conv2(m.same(m.relu(m.drop(m.norm1(m.same(m.conv1(x)))))))


def upsampled_and_padded(m, x):
    y = F.interpolate(m.relu(m.norm1(m.conv1(x))), scale_factor=2)
    return m.wide(F.pad(y, (2, 2, 2, 2), mode="reflect"))


def upsampled_otherwise(m, x):
    y = F.interpolate(m.norm1(m.conv1(x)), scale_factor=2, mode="bilinear")
    y = F.interpolate(m.norm2(m.conv2(y)), size=(20, 30))
    return m.conv3(F.interpolate(y, scale_factor=3))


def padded_otherwise(m, x):
    y = F.pad(m.norm1(m.conv1(x)), (1, 2, 1, 2), mode="reflect")
    y = m.conv2(F.pad(m.norm2(y), (1, 1, 1, 1)))  # conv2 pads as well
    return m.wide(F.pad(y, (2, 2, 2, 2), value=1.0))


def transposed(m, x):
    return m.up(m.relu(m.norm1(m.up(m.norm2(x)))))


def a_size_of_its_own(m, x):
    return m.up(m.relu(m.norm1(x)), output_size=[2 * n + 1 for n in (9, 11)])


def an_activated_value_that_changes(m, x):
    y = m.conv1(x)
    z = F.relu(y)
    y.mul_(2)
    return m.conv2(z) + y


def a_view_of_what_was_normalised_changes(m, x):
    y = m.conv1(x)
    z = m.norm1(y)
    y[:, :2].mul_(2)
    return m.conv2(z) + y


def a_view_changes_before_the_norm(m, x):
    y = m.conv1(x)
    y[:, :2].mul_(2)
    return m.conv2(m.norm1(y))


def an_operation_with_out(m, x):
    y = m.conv1(x)
    z = m.norm1(y)
    torch.mul(y, -2, out=y)
    return m.conv2(z) + y


def a_view_of_a_term_changes(m, x):
    y = m.conv1(x)
    z = m.norm1(m.conv2(x)) + y
    y[:, 0].zero_()
    return m.conv3(z) + y


def a_view_of_what_was_padded_changes(m, x):
    y = m.conv1(x)
    z = F.pad(y, (2, 2, 2, 2), mode="reflect")
    y[:, 0].zero_()
    return m.wide(z) + y


def in_place_behind_an_idle_layer(m, x):
    y = m.norm1(m.conv1(x))
    return m.conv2(m.relu_(m.same(y))) + y


def in_place_only_behind_idle_layers(m, x):
    y = m.relu_(m.drop(m.same(m.norm1(m.conv1(x)))))  # as MONAI's networks have it
    return m.wide(y)


def in_place_sum_behind_an_idle_layer(m, x):
    y = m.norm1(m.conv1(x))
    z = m.same(y)
    z += x
    return m.conv2(z) + y


def in_place_sum_into_a_view(m, x):
    y = m.conv1(x)
    z = y[:, :3]
    z += m.norm1(m.conv2(x))
    return m.conv3(z) + y


def two_activations_in_place(m, x):
    y = m.conv1(x) - 1
    return m.conv2(m.relu_(F.leaky_relu(y, 0.2, True))) + y


def a_view_of_an_output(m, x):
    return m.wide(m.norm1(m.conv1(x))).view(2, -1)


def a_question_for_the_class(m, x):
    if isinstance(x, Tensor):
        x = x * x
    return m.wide(m.norm1(m.conv1(x)))


def an_option(m, x, skip=None, *, scale=2):
    y = m.norm1(m.conv1(x))
    return m.wide(y if skip is None else y + skip) * scale


def names_that_look_alike(m, x_1, x=None):
    y = m.norm1(m.conv1(x_1))
    return m.wide(y if x is None else y + x)


def arguments_by_name(m, x):
    y = m.relu(input=m.norm1(torch.relu(input=m.conv1(input=x))))
    return m.wide(F.pad(input=m.same(input=y), pad=(2, 2, 2, 2)))


def a_number_that_is_computed(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + x.shape[0])


def a_larger_term(m, x):
    return m.conv2(m.norm1(m.conv1(x[:1])) + x)


def a_term_of_another_dtype(m, x):
    return m.conv2(m.norm1(m.conv1(x)) + (x > 0)) + F.relu(m.norm2(x) + x.shape[0])


def a_larger_term_before_the_activation(m, x):
    return F.relu(m.group(m.conv1(x)) + x[None])


def a_new_random_tensor(m, x):
    return m.wide(m.norm1(m.conv1(x))) + 0 * torch.randn(3, 1, 1)


# The pattern, and how many norms run before the convolutions that read them.
PATTERNS = {
    two_readers: 0,
    a_use_before_the_convolution: 1,
    a_use_after_the_convolution: 0,
    a_chain_of_sums: 0,
    a_sum_before_the_activation: 1,
    a_sum_of_two_norms: 1,
    a_smaller_term: 0,
    a_number: 1,
    twice_itself: 1,
    in_place_on_a_value_in_use: 1,
    in_place_on_what_was_normalised: 1,
    in_place_on_a_view: 0,
    in_place_on_a_detached_value: 0,
    in_place_sum_of_a_value_in_use: 1,
    a_term_in_use: 1,
    in_place_on_a_term: 1,
    in_place_on_what_was_padded: 0,
    in_place_sum: 0,
    two_norms_of_one_value: 0,
    one_layer_twice: 0,
    groups_and_running_statistics: 0,
    idle_layers_between: 0,
    upsampled_and_padded: 0,
    upsampled_otherwise: 2,
    padded_otherwise: 2,
    an_activated_value_that_changes: 0,
    a_view_of_what_was_normalised_changes: 1,
    a_view_changes_before_the_norm: 0,
    an_operation_with_out: 1,
    a_view_of_a_term_changes: 1,
    a_view_of_what_was_padded_changes: 0,
    in_place_behind_an_idle_layer: 1,
    in_place_only_behind_idle_layers: 0,
    in_place_sum_behind_an_idle_layer: 1,
    in_place_sum_into_a_view: 1,
    two_activations_in_place: 0,
    a_view_of_an_output: 0,
    a_question_for_the_class: 0,
    an_option: 0,
    names_that_look_alike: 0,
    arguments_by_name: 0,
    a_number_that_is_computed: 0,
    a_larger_term: 0,
    a_term_of_another_dtype: 1,
    a_larger_term_before_the_activation: 1,
    a_new_random_tensor: 0,
    transposed: 0,
    a_size_of_its_own: 1,
}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_patterns(pattern):
    kind = type("Pattern", (Blocks,), {"forward": pattern})
    model, x = network(kind), random(2, 3, 9, 11)
    check(model, x)
    materialised = calls_of(fuse_convolutions(model)[0], x)
    assert materialised["instance_norm"] == PATTERNS[pattern], materialised


def test_a_forward_that_changes_the_module():
    """Tracing changes nothing, and calls of both networks change what they share."""

    def counting(m, x):
        m.count += 1
        m.last = m.norm1(m.conv1(x))
        return m.wide(m.last) * m.count

    model, x = network(type("Pattern", (Blocks,), {"forward": counting})), random(2, 3, 9, 11)
    fused, report = fuse_convolutions(model)
    assert len(report.fused) == 2
    assert model.count == 0
    assert not hasattr(fused, "last")
    with torch.no_grad():
        once, twice = fused(x), model(x)
    assert model.count == fused.count == 2
    torch.testing.assert_close(once * 2, twice, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "kernel", "options", "expected"),
    [
        ((128, 256), 4, {}, True),
        ((32, 32), 3, {}, True),
        ((16, 32), 3, {}, False),
        ((32, 32), 2, {}, False),
        ((256, 256), 3, {}, False),
        ((512, 64), 4, {}, False),
        ((128, 256), 4, {"dtype": torch.bfloat16}, False),
        ((128, 256), 4, {"device": "meta"}, False),
    ],
)
def test_strided_convolutions_alone_where_they_are_faster(channels, kernel, options, expected):
    conv = torch.nn.Conv2d(*channels, kernel, stride=2, padding=1, **options)
    assert is_faster(geometry_of(conv), conv) == expected
