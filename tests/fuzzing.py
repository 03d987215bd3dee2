"""Random shapes, memory layouts and values for tests that draw their cases with hypothesis.

By default each test draws few cases, the same in every run. `make fuzz` draws more, from a seed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from stylekernels import native, use_impl
from stylekernels.ops import dispatch
from tests import conftest
from tests.conftest import DTYPES, laid_out, random
from tests.conftest import LAYOUTS as DENSE_AND_CROPPED

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Cases of each test under `make fuzz`; 0 for the few of a usual run.
CASES = int(os.environ.get("STYLEKERNELS_FUZZ_CASES", "0"))

if not CASES and native.cpu_capability != "avx2":
    pytest.skip(
        "the few draws were judged on a CPU with AVX2 only; make fuzz runs anywhere",
        allow_module_level=True,
    )

#: Implementations that run on a CPU at full speed, and Triton's interpreter.
IMPLEMENTATIONS = (
    pytest.param(
        "native", marks=pytest.mark.skipif(native.cpu_missing is not None, reason="not built")
    ),
    "reference",
)
INTERPRETED = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),  # NaN, Inf
    pytest.mark.skipif(not dispatch.interprets_triton, reason="Triton is not interpreted"),
]


def can_be_interpreted(case: dict) -> bool:
    """Tell whether Triton's interpreter reads the values of a case. It takes denormal bfloat16 for
    other numbers."""
    return case["magnitude"] != "denormal" or case["dtype"] != torch.bfloat16


LAYOUTS = (*DENSE_AND_CROPPED, "transposed", "reversed", "stepped", "expanded", "repeated")
GRAD_LAYOUTS = DENSE_AND_CROPPED

#: Scale and shift of each kind of values. Half of the planes of ``constant planes`` are constant.
MAGNITUDES = {
    "unit": lambda dtype: (1.0, 0.5),
    "large mean": lambda dtype: {
        torch.float32: (1.0, 1e6),
        torch.bfloat16: (3e4, 1e6),
        torch.float16: (100.0, -1e4),
        torch.float64: (1.0, -1e3),
    }[dtype],
    "small": lambda dtype: (1e-3, 0.0),
    "large": lambda dtype: (100.0 if dtype == torch.float16 else 1e4, 0.0),
    "denormal": lambda dtype: (torch.finfo(dtype).tiny / 4, 0.0),
    "constant planes": lambda dtype: (1.0, 2.0),
    "constant": lambda dtype: (0.0, 3.25),
    "zero": lambda dtype: (0.0, 0.0),
}
BAD_VALUES = (torch.nan, torch.inf, -torch.inf)

few_or_many = st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 31, 32, 33, 64, 65)))
seeds = st.integers(0, 999)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)


def fuzz(cases: int, *, interpreted: bool = False) -> settings:
    """Return the settings of a test: ``cases`` in a usual run. Triton's interpreter gets a
    hundredth of the cases of `make fuzz`."""
    many = CASES // 100 if interpreted else CASES
    return settings(
        max_examples=max(1, many) if CASES else cases,
        derandomize=not CASES,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextlib.contextmanager
def forced(impl: str) -> Iterator[None]:
    """Run an implementation. Under ``reference`` PyTorch chooses the layout of x's gradient, which
    is not x's for every shape."""
    checked = impl != "reference"
    with use_impl(impl), mock.patch.object(conftest, "CHECKS_GRADIENT_LAYOUT", checked):
        yield


@st.composite
def shapes(
    draw: Callable,
    ranks: tuple[int, ...] = (4,),
    most_elements: int = 20_000,
    channels: st.SearchStrategy[int] = few_or_many,
) -> tuple[int, ...]:
    """Draw (N, C, ...) of at most about ``most_elements``; the batch may be empty."""
    shape = [draw(st.sampled_from((1, 1, 2, 2, 3, 0))), draw(channels)]
    for _ in range(draw(st.sampled_from(ranks)) - 2):
        most = most_elements // max(1, torch.Size(shape).numel())
        shape.append(max(1, min(draw(few_or_many), most)))
    return tuple(shape)


def strided(x: Tensor, layout: str) -> Tensor:
    """Return the values of ``x`` in one of `LAYOUTS`, with NaN between them. Those of ``expanded``
    are the first image's, and those of ``repeated`` the first channel's."""
    if layout in DENSE_AND_CROPPED:
        return laid_out(x, layout)
    if layout == "expanded":
        return laid_out(x[:1], "contiguous").expand_as(x)
    if layout == "repeated":
        return laid_out(x[:, :1], "contiguous").expand_as(x)
    if layout == "transposed":
        return laid_out(x.transpose(-1, -2), "contiguous").transpose(-1, -2)
    if layout == "reversed":
        order = tuple(range(x.dim()))[::-1]
        return laid_out(x.permute(order), "contiguous").permute(order)
    gaps = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    gaps[..., ::2] = x
    return gaps[..., ::2]


def values(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, magnitude: str, seed: int
) -> Tensor:
    """Draw a tensor whose values are of one of `MAGNITUDES`."""
    scale, shift = MAGNITUDES[magnitude](dtype)
    x = random(*shape, dtype=dtype, scale=scale, shift=shift, seed=seed)
    if magnitude == "constant planes" and x.dim() > 2:
        planes = x.flatten(2)[:, ::2]
        # Values of float32 make the sums of the test's own formula exact in float64.
        planes[:] = planes[..., :1].float()
    return strided(x, layout)


def spoilt(x: Tensor, bad: list[tuple[int, float]], layout: str) -> Tensor:
    """Return a copy of ``x`` in which ``bad`` values replace those at some positions, counted
    modulo the number of values."""
    if x.numel() == 0:
        return x
    flat = x.clone(memory_format=torch.contiguous_format).flatten()
    for position, value in bad:
        flat[position % flat.numel()] = value
    return strided(flat.view(x.shape), layout)


#: Positions and values for `spoilt`.
bad_values = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(BAD_VALUES)), min_size=1, max_size=3
)


def gradient_cancels(planes: int, pixels: int) -> bool:
    """Return whether the gradient of a norm may vanish but for rounding, relative to its terms.

    Two of the numbers of each normalised plane are given by the others. The gradient of two pixels
    is always 0 but for eps; of a few it may be nearly so by chance, and then no implementation has
    digits left to compare.
    """
    return 0 < planes * (pixels - 2) < 8 or pixels == 2


def assert_bad_where_torch_has_them(
    ours: Callable[..., Tensor], in_torch: Callable[..., Tensor], tensors: dict, **options
) -> tuple[Tensor, Tensor]:
    """Compare the positions of NaN and of infinities in the output and the gradients of a norm.
    Return both outputs."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    x = leaves["x"]
    cotangent = random(*x.shape, dtype=x.dtype, shift=0.5, seed=99)
    results = []
    for function in (ours, in_torch):
        y = function(**leaves, **options)
        grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
        results.append({"output": y.detach(), **dict(zip(leaves, grads, strict=True))})
    for name, expected in results[1].items():
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            same = torch.equal(test(results[0][name]), test(expected))
            assert same, f"{name}: {test.__name__} differs"
    return results[0]["output"], results[1]["output"]
