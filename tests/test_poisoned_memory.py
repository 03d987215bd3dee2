"""Memory that was never written is NaN where tests poison it, by PyTorch and by malloc."""

import pytest
import torch

from tests.conftest import DTYPES, poisoned_memory


@pytest.mark.parametrize("size", [5, 1000, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_pytorch", [True, False])
def test_uninitialised_memory_is_nan(monkeypatch, by_pytorch, dtype, size) -> None:
    """C++ kernels allocate without PyTorch's fill: malloc's own fill is enough for them."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", by_pytorch)
    torch.full((size,), 3, dtype=dtype)  # memory that is free again
    with poisoned_memory():
        assert torch.empty(size, dtype=dtype).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
