"""Devices, dtypes, memory layouts and tolerances for the tests of the ops, and a tiny generator for
the tests of the command line.

Data is always random and never zero: zeros hide a missing term or a wrong scale. Memory around
every tensor is NaN, and every result starts as NaN, so that comparisons find elements that were
read beyond a tensor or never written.
"""

import contextlib
import ctypes
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Read when torch is imported. By default a thread that waits for another spins, and takes the
# processor from it where there are more threads than processors: under pytest-xdist, always.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():  # with a GPU Triton compiles, as for users
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when stylekernels and Triton are imported

from stylekernels import native, use_impl
from stylekernels.models import GeneratorConfig, StyleGenerator
from stylekernels.ops import dispatch
from stylekernels.training import TrainConfig
from tests import emulated_cuda
from tests.guarded_memory import guard

# torch.compile keeps graphs on disk, and would bring back one from before an op was changed.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

# The accuracy rule compares float32 with float32: PyTorch's own convolutions are in tf32 otherwise.
torch.backends.cudnn.allow_tf32 = False

_GLIBC, _M_PERTURB = ctypes.CDLL(None), -6

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "misaligned", "cropped", "channels_last_cropped")
# The same as parameters. Images with gaps are copied before a compiled kernel sees them, so they
# are not repeated under other CPU capabilities.
KERNEL_LAYOUTS = (
    *(pytest.param(layout, marks=pytest.mark.every_capability) for layout in LAYOUTS[:3]),
    *LAYOUTS[3:],
)

# The error that an op may have above twice PyTorch's own. float64 must be computed in float64.
SLACK = {torch.float64: 1e-11}
DEFAULT_SLACK = 1e-6

# A relative error of PyTorch's that no rounding explains. Rounding alone reaches 0.08: bfloat16
# around a mean of 1000.
FAULT = 0.25

#: Number of elements of a gradient up to which PyTorch's error may be small by luck.
FEW = 32


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their parameters: those on a CUDA device as ``gpu``, those of bfloat16 as
    ``bfloat16``. Skip tests that need a GPU if there is none."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None:
            if callspec.params.get("device") == "cuda":
                item.add_marker(pytest.mark.gpu)
            if any(value is torch.bfloat16 for value in tree_leaves(callspec.params)):
                item.add_marker(pytest.mark.bfloat16)
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def takes_few_pixels(monkeypatch) -> None:
    """Our upsampling convolution runs at the small sizes of tests, for which PyTorch is faster.
    tests/test_upsample_block_dispatch.py replaces this fixture."""
    op = importlib.import_module("stylekernels.ops.upsample_block")  # its package has a function
    always = {cpu: dict.fromkeys(ways, 0) for cpu, ways in op._FEWEST_PIXELS.items()}
    monkeypatch.setattr(op, "_FEWEST_PIXELS", always)


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch) -> Iterator[str]:
    """Run a test through ``torch.ops.stylekernels`` (``kernels``, the default: compiled if the
    library was built, else in Python). By an indirect parameter it runs through ``reference``,
    ``triton`` (on a GPU, or without one in Triton's interpreter) or ``cuda`` (on a GPU, or on an
    emulated one)."""
    name = getattr(request, "param", "kernels")
    on_gpu = "device" in request.fixturenames and request.getfixturevalue("device") != "cpu"
    if name == "cuda":
        if on_gpu and native.cuda_missing is not None:
            pytest.skip(f"the CUDA library is {native.cuda_missing}")
        emulated = contextlib.nullcontext() if on_gpu else emulated_cuda.emulated_cuda()
        with use_impl("native"), emulated:
            yield name
        return
    has_triton = dispatch.triton_missing is None if on_gpu else dispatch.interprets_triton
    if name == "triton" and not has_triton:
        pytest.skip("Triton is not here, or has a GPU to run on")
    if name == "kernels":
        monkeypatch.setattr(native, "cpu_missing", None)
        yield name
    else:
        with use_impl(name):
            yield name


#: Marks of a module whose tests, and those it imports from the tests of an op, run in CUDA kernels.
CUDA = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.parametrize("implementation", ["cuda"], indirect=True),
]

#: The same, in Triton's kernels.
TRITON = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),  # NaN, Inf
    pytest.mark.usefixtures("implementation"),
    pytest.mark.parametrize("implementation", ["triton"], indirect=True),
]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of photos, clips, styles and backbones."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STYLEKERNELS_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set STYLEKERNELS_DATA to where it is")
    return folder


@pytest.fixture(scope="module")
def generator() -> StyleGenerator:
    """A tiny style network whose pictures have contrast."""
    torch.manual_seed(0)
    config = GeneratorConfig(channels=(4, 6, 8), residual_blocks=1, kernel_size=5)
    generator = StyleGenerator(config).eval()
    with torch.no_grad():  # most values inside [0, 1], so that clamping hides nothing
        generator.to_rgb.weight.mul_(0.2)
        generator.to_rgb.bias.fill_(0.5 * config.value_range)
    return generator


@pytest.fixture(scope="module")
def style(generator: StyleGenerator, tmp_path_factory) -> str:
    """A style's file, with an extension that does not tell its format."""
    path = tmp_path_factory.mktemp("style") / "brush.dat"
    generator.save_pretrained(path)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in one of `LAYOUTS`, with NaN before and after them in memory."""
    base, crop = layout.removesuffix("cropped").rstrip("_") or "contiguous", "cropped" in layout
    shape = list(x.shape)
    if crop:
        shape[2:] = [size + 3 for size in shape[2:]]
    # 64 elements keep the alignment of an allocation; 1 element has none.
    before = 1 if base == "misaligned" else 64
    size = torch.Size(shape).numel()
    buffer = torch.full((size + 2 * 64,), torch.nan, dtype=x.dtype, device=x.device)
    order = list(range(x.dim()))
    if base == "channels_last" and x.dim() > 2:
        order = [0, *order[2:], 1]
    guard(buffer, before, before + size)
    dense = buffer[before : before + size].view([shape[axis] for axis in order])
    view = dense.permute([order.index(axis) for axis in range(x.dim())])
    if crop:
        view = view[(..., *[slice(1, -2)] * (x.dim() - 2))]
    return view.copy_(x)


def random(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    device: str = "cpu",
    scale: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Normal values times ``scale`` plus ``shift``; the same on every device."""
    generator = torch.Generator().manual_seed(seed * 7919 + sum(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
    return laid_out(values.to(dtype).to(device), layout)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialised tensors with NaN inside of a ``with`` block: those of PyTorch's ops by
    PyTorch, and those that C++ allocates on the CPU by glibc's malloc."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    _GLIBC.mallopt(_M_PERTURB, 256)  # memory begins as the low byte of 256 ^ 255: NaN
    try:
        yield
    finally:
        _GLIBC.mallopt(_M_PERTURB, 0)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


#: Whether `assert_op_accurate` checks the layout of x's gradient.
CHECKS_GRADIENT_LAYOUT = True


def assert_same_strides(compiled: Tensor, expected: Tensor) -> None:
    """The result of torch.compile must have the strides of the eager one. That of a batch of one in
    channels_last_3d is wrong if gradients are recorded (docs/pytorch-faults.md)."""
    one_volume = expected.dim() == 5 and len(expected) == 1 and not expected.is_contiguous()
    first = 1 if one_volume and compiled.requires_grad else 0
    assert compiled.stride()[first:] == expected.stride()[first:]


def relative_errors(actual: Tensor, exact: Tensor) -> tuple[float, float]:
    """Distance to ``exact`` relative to its size, in the Euclidean and in the maximum norm.

    Both are needed. The Euclidean norm is the usual error of an op, but one wrong pixel among a
    million disappears in the rounding of half precision. The maximum norm sees that pixel, but not
    a small error everywhere.
    """
    difference, exact = actual.double() - exact, exact.double()
    tiny = torch.finfo(torch.float64).tiny
    euclidean = (difference.norm() / exact.norm().clamp_min(tiny)).item()
    maximum = (difference.abs().max() / exact.abs().max().clamp_min(tiny)).item()
    return euclidean, maximum


def allowed_errors(torch_same_dtype: Tensor, exact: Tensor) -> tuple[float, float]:
    """The largest errors, of the kinds of `relative_errors`, that the accuracy rule allows.

    On few elements PyTorch's result can be exact by luck. It counts as no better than half a unit
    in the last place, or than ``exact`` rounded once if that underflows. A wrong result of
    PyTorch's, NaN or far off, does not count.
    """
    dtype = torch_same_dtype.dtype
    rounded = relative_errors(exact.to(dtype), exact)
    bounds = []
    for torch_error, rounding in zip(
        relative_errors(torch_same_dtype, exact), rounded, strict=True
    ):
        comparable = torch_error if torch_error < FAULT else 0.0  # False for NaN too
        largest = max(torch.finfo(dtype).eps / 2, rounding, comparable)
        bounds.append(2 * largest + SLACK.get(dtype, DEFAULT_SLACK))
    return tuple(bounds)


def assert_accurate(
    ours: Tensor,
    torch_same_dtype: Tensor,
    exact: Tensor,
    name: str = "",
    *,
    at_least: float = 0.0,
) -> None:
    """The accuracy rule: at most twice PyTorch's relative error against float64, plus 1e-6.

    ``torch_same_dtype`` is PyTorch's own result in the dtype that ours is stored in.
    ``at_least`` is an error that is allowed whatever PyTorch's is. Where the exact result is
    infinite once it is rounded to the dtype, ours must be, too, or at the edge of the range the
    largest number.
    """
    assert ours.shape == exact.shape, f"{name}: {ours.shape}, expected {exact.shape}"
    assert ours.dtype == torch_same_dtype.dtype, f"{name}: {ours.dtype}"
    outside = exact.to(ours.dtype).isinf() & exact.isfinite()
    if outside.any():
        info = torch.finfo(ours.dtype)
        beyond = ours[outside] * exact[outside].sign()  # float64
        edge = exact[outside].abs() <= info.max * (1 + 4 * info.eps)
        right = beyond.isposinf() | (edge & (beyond == info.max))
        assert right.all(), f"{name}: {beyond[~right][0]:.3g} where {info.max:.3g} is exceeded"
        ours, torch_same_dtype, exact = (t[~outside] for t in (ours, torch_same_dtype, exact))
    if ours.numel() == 0:
        return
    assert ours.isfinite().all(), f"{name}: {(~ours.isfinite()).sum()} values are not finite"
    kinds = "euclidean", "maximum"
    errors = relative_errors(ours, exact), relative_errors(torch_same_dtype, exact)
    bounds = allowed_errors(torch_same_dtype, exact)
    for kind, our_error, torch_error, bound in zip(kinds, *errors, bounds, strict=True):
        allowed = max(bound, at_least)
        assert our_error <= allowed, (
            f"{name}: {kind} relative error {our_error:.3g} exceeds {allowed:.3g}; "
            f"torch's is {torch_error:.3g}"
        )


def assert_layout_of(result: Tensor, x: Tensor) -> None:
    """``result`` must have the layout of ``x``, unless ``x`` is empty or has gaps."""
    if x.numel() == 0 or x.is_contiguous():
        assert result.is_contiguous(), f"{result.stride()} for contiguous x"
    elif x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        assert result.movedim(1, -1).is_contiguous(), f"{result.stride()} for x of {x.stride()}"


Tensors = dict[str, Tensor | None]


def assert_op_accurate(
    ours: Callable[..., Tensor],
    torchs: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    tensors: Tensors,
    *,
    away_from_kinks: Callable[..., Tensor] | None = None,
    grad_layout: str = "contiguous",
    image_result: bool = True,
) -> None:
    """Check the output of ``ours(**tensors)`` and the gradient of every tensor by the accuracy
    rule.

    The gradient is that of a random linear functional of the output. The functional is zero where
    ``away_from_kinks`` (of the float64 tensors) is False, because implementations may differ at a
    kink of an activation. ``exact`` gets float64 copies of the tensors. ``image_result``: the
    output has x's layout. A gradient of at most `FEW` elements for which PyTorch's error is small
    by luck is compared over eight functionals.
    """
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in tensors.items()}
    names = [k for k, t in leaves.items() if t is not None]
    copies = {k: leaves[k].detach().clone() for k in names}

    wide = {k: None if t is None else t.detach().double() for k, t in leaves.items()}
    wide = {k: None if t is None else t.contiguous().requires_grad_() for k, t in wide.items()}
    y_exact = exact(**wide)

    with poisoned_memory():
        y = ours(**leaves)
    y_torch = torchs(**leaves)
    given = [leaves[k] for k in names]

    def gradients(seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Ours, torch's and the exact gradients of one random functional."""
        cotangent = random(
            *y.shape, dtype=y.dtype, layout=grad_layout, device=y.device.type, shift=0.5, seed=seed
        )
        if away_from_kinks is not None:
            with torch.no_grad():
                cotangent.mul_(away_from_kinks(**wide))
        with poisoned_memory():
            grads = torch.autograd.grad(y, given, cotangent, retain_graph=True)
        grads_torch = torch.autograd.grad(y_torch, given, cotangent, retain_graph=True)
        grads_exact = torch.autograd.grad(
            y_exact, [wide[k] for k in names], cotangent.double(), retain_graph=True
        )
        return list(zip(grads, grads_torch, grads_exact, strict=True))

    assert_accurate(y.detach(), y_torch.detach(), y_exact.detach(), "output")
    if image_result:
        assert_layout_of(y, leaves["x"])
    grads = gradients(99)
    for i, k in enumerate(names):
        try:
            assert_accurate(*grads[i], f"gradient of {k}")
        except AssertionError:
            if leaves[k].numel() > FEW:
                raise
            several = [grads[i], *(gradients(seed)[i] for seed in range(100, 107))]
            pooled = [torch.stack(kind) for kind in zip(*several, strict=True)]
            assert_accurate(*pooled, f"gradient of {k}, of {len(several)} functionals")
        assert torch.equal(leaves[k].detach(), copies[k]), f"{k} was modified"
    if CHECKS_GRADIENT_LAYOUT:
        assert_layout_of(grads[names.index("x")][0], leaves["x"])


def saved_image_bytes(function: Callable[[], Tensor], at_least: int) -> list[int]:
    """Return the bytes of the distinct tensors of ``at_least`` elements that autograd saves."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() >= at_least:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sorted(sizes.values())


class Recorder(TorchDispatchMode):
    """Records the ops that run inside of it, and the shapes of the images (rank 4) they return."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []
        self.images: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))

        def tensors(tree) -> list[Tensor]:
            return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        made = [t for t in tensors(result) if t.untyped_storage().data_ptr() not in given]
        self.images += [tensor.shape for tensor in made if tensor.dim() == 4]
        if made:  # neither a view nor in place
            self.ops.append(func.overloadpacket.__name__)
        return result


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory) -> Path:
    """Photos, a painting, and the files of a narrow ``mixed`` loss network."""
    from tests.training_runs import fill  # needs Pillow and safetensors; ops don't

    return fill(tmp_path_factory.mktemp("training"))


@pytest.fixture
def training_config(training_folder, tmp_path) -> TrainConfig:
    """A config of eight steps from a tiny network, without all that a run can do without."""
    from tests.training_runs import config_of

    return config_of(training_folder, tmp_path)
