"""group_norm in CUDA kernels, on emulated GPUs of different limits: the tests of Triton's kernels,
and groups whose planes share blocks and spans."""

import pytest
import torch

from tests.conftest import CUDA, random
from tests.test_cuda_instance_norm import limits  # noqa: F401
from tests.test_group_norm import (
    check,
    test_a_bad_value_stays_in_its_group,  # noqa: F401
    test_groups_of_a_single_value_are_zero,  # noqa: F401
    test_one_group_is_layer_norm,  # noqa: F401
)
from tests.test_triton_group_norm import test_options  # noqa: F401

pytestmark = CUDA


# Shape and number of groups: planes shorter than a vector, several in a span's round, groups over
# all channels, groups that are no whole vectors, planes over several blocks. Then small groups, of
# which a block takes several: a number that does not fill the last block, planes of several sizes.
SHAPES = (
    ((1, 48, 1), 3),
    ((2, 64, 3, 3), 4),
    ((1, 512, 2, 2), 1),
    ((1, 48, 20, 31), 4),
    ((1, 36, 17, 19), 6),
    ((1, 4, 150, 171), 2),
    ((3, 37, 7, 9), 37),
    ((2, 24, 5, 5), 6),
    ((5, 64, 8, 8), 64),
    ((1, 3, 16, 16), 3),
)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_groups_of_all_shapes(shape, groups, dtype, layout, device) -> None:
    x = random(*shape, dtype=dtype, layout=layout, device=device, scale=2.0, shift=5.0)
    tensors = {"x": x, "weight": random(shape[1], device=device, seed=1, dtype=dtype)}
    tensors["bias"] = random(shape[1], device=device, seed=2, dtype=dtype)
    check(tensors, groups=groups, activation="silu")


@pytest.mark.parametrize("limits", ["clusters"], indirect=True)  # once: the test has its own
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_groups_of_thousands_of_channels(layout, device, monkeypatch) -> None:
    """A block has no memory for the sums of so many planes: a small group is divided among blocks.
    The GPU is the smallest that the kernels are for, and has no clusters."""
    gpu = {"MULTIPROCESSORS": 6, "SHARED_BYTES": 99 << 10, "LARGEST_CLUSTER": 1}
    for name, value in gpu.items():
        monkeypatch.setenv(f"CUDA_EMULATION_{name}", str(value))
    x = random(5, 2600, 1, 2, layout=layout, device=device, scale=2.0, shift=5.0)
    tensors = {"x": x, "weight": random(2600, device=device, seed=1)}
    check(tensors, groups=1, activation="silu")
