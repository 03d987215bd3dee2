"""The kernel for Hugging Face ``kernels`` that hub/generate.py makes from the package: it loads
without the package and beside other versions, and keeps the rules of ``kernels``."""

import ast
import contextlib
import copy
import hashlib
import importlib.util
import inspect
import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stylekernels
from stylekernels.ops import dispatch
from tests import conftest
from tests.conftest import Recorder, assert_op_accurate, random

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = ROOT / "hub" / "generate.py"
BACKEND = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"
BACKENDS = ("cpu", "cuda", "rocm")

needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("kernels") is None, reason="needs the package kernels"
)


def load(variant: Path) -> ModuleType:
    """Import a build variant as ``kernels`` does: under its id, from its path."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hub_generate", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(generate, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "stylekernels"
    generate.write(folder)
    return folder


@pytest.fixture(scope="module")
def kernel(repository) -> ModuleType:
    """The kernel for this machine. Loaded once: an op cannot be registered twice."""
    if importlib.util.find_spec("kernels") is None:
        return load(repository / "build" / f"torch-{BACKEND}")
    from kernels import get_local_kernel

    return get_local_kernel(repository)


@contextlib.contextmanager
def running(kernel: ModuleType, implementation: str, device: str) -> Iterator[None]:
    """Run the kernel's ops by its own choice (``default``), or force ``triton`` if it can run."""
    if implementation == "default":
        yield
        return
    if not (dispatch.triton_missing is None if device != "cpu" else dispatch.interprets_triton):
        pytest.skip("Triton is not here, or has a GPU to run on")
    with kernel.use_impl(implementation):
        yield


# -- Sources ---------------------------------------------------------------------------------


def test_sources_import_python_torch_and_each_other(repository) -> None:
    paths = [path for path in repository.rglob("*.py") if path.parent.name != "stylekernels"]
    paths += (repository / "torch-ext/stylekernels").glob("*.py")
    assert len(paths) > 100
    known = {*sys.stdlib_module_names, "torch", "triton"}
    relative = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= known, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.partition(".")[0] in known, path
            elif isinstance(node, ast.ImportFrom):
                base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                if base == repository / "torch-ext/stylekernels/_ops":
                    continue  # kernel-builder writes it
                assert base.with_suffix(".py").exists() or (base / "__init__.py").exists(), path
                relative += 1
    assert relative > 400


def test_an_absolute_import_is_refused(generate) -> None:
    with pytest.raises(ValueError, match="line 2: expected `from stylekernels"):
        generate.with_relative_imports("import torch\nimport stylekernels.ops\n", 0)
    source = '"""from stylekernels import a"""\nif x:\n    from stylekernels import b\n'
    expected = '"""from stylekernels import a"""\nif x:\n    from .. import b\n'
    assert generate.with_relative_imports(source, 1) == expected


def test_a_folder_with_files_is_refused(generate, tmp_path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(FileExistsError, match="expected a new or empty one"):
        generate.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_exported_names_are_those_of_the_package(kernel) -> None:
    assert {*kernel.__all__} - {"layers"} == {*stylekernels.__all__} - {"fuse_convolutions"}
    assert all(hasattr(kernel, name) for name in kernel.__all__)


# -- Loading ---------------------------------------------------------------------------------

ALONE = """
import importlib.util, json, sys
from pathlib import Path
from types import ModuleType

sys.modules["stylekernels"] = None  # importing it fails
import torch
from torch.nn import functional as F

{load}
variant, folder = Path(sys.argv[1]), sys.argv[2]
if folder:
    spec = importlib.util.spec_from_file_location("older", variant / folder / "__init__.py")
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
else:
    kernel = load(variant)

x = torch.randn(2, 5, 9, 7, requires_grad=True)
y = kernel.instance_norm(x, activation="relu")
exact = F.relu(F.instance_norm(x.double()))
torch.testing.assert_close(y.double(), exact, atol=1e-5, rtol=1e-5)
grads = [torch.autograd.grad(z.pow(3).sum(), x)[0] for z in (y, exact)]
torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
print(kernel.explain("instance_norm", x))
print(sorted(name for name in sys.modules if name.startswith("stylekernels")))
"""


@pytest.mark.parametrize("folder", ["", "stylekernels"])
def test_it_loads_where_the_package_is_not(repository, tmp_path, folder) -> None:
    """A variant, and the folder inside that older versions of ``kernels`` import."""
    code = ALONE.format(load=inspect.getsource(load))
    variant = repository / "build" / "torch-cpu"
    command = [sys.executable, "-W", "error", "-c", code, str(variant), folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    explanation, names = done.stdout.splitlines()
    assert "reference (the C++ library is not part of the kernel from the Hub" in explanation
    assert names == "['stylekernels']"


def another_version(generate: ModuleType, folder: Path) -> Path:
    """Write a build variant of sources that differ: its norm is twice as large."""
    sources = generate.package_sources()
    path, end = "reference/instance_norm.py", "return z.to(x.dtype)\n"
    assert sources[path].count(end) == 1
    sources[path] = sources[path].replace(end, "return 2 * z.to(x.dtype)\n")
    general = {"name": "stylekernels", "version": 0, "license": "apache-2.0"}
    for name, text in generate.variant_files(sources, general, BACKEND).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_two_versions_and_the_package_in_one_process(generate, kernel, tmp_path, device) -> None:
    other = load(another_version(generate, tmp_path / "other"))
    spaces = [each.namespace.NAMESPACE for each in (kernel, other, stylekernels)]
    assert len({*spaces}) == 3
    assert spaces[2] == "stylekernels"
    assert all(hasattr(getattr(torch.ops, space).instance_norm, "default") for space in spaces)

    x = random(2, 4, 9, 8, device=device)
    with kernel.use_impl("reference"), other.use_impl("reference"):
        y = kernel.instance_norm(x)
        torch.testing.assert_close(other.instance_norm(x), 2 * y)
        torch.testing.assert_close(stylekernels.instance_norm(x), y)
        assert "forced by use_impl" in kernel.explain("instance_norm", x)
        assert "forced by use_impl" not in stylekernels.explain("instance_norm", x)


# -- Ops -------------------------------------------------------------------------------------


def upsampled(x: Tensor, weight: Tensor) -> Tensor:
    y = F.conv_transpose2d(F.pad(x, [1] * 4, "replicate"), weight, stride=2, padding=3)
    return F.silu(F.instance_norm(y))


def gram_loss(x: Tensor, target: Tensor) -> Tensor:
    features = x.flatten(2)
    return F.mse_loss(features @ features.mT / x[0].numel(), target)


#: For each op: a call, the same in torch.nn, the shapes of its tensors.
CALLS = {
    "instance_norm": (
        lambda k, x, weight, bias: k.instance_norm(x, weight, bias, activation="silu"),
        lambda x, weight, bias: F.silu(F.instance_norm(x, weight=weight, bias=bias)),
        {"x": (2, 6, 9, 7), "weight": (6,), "bias": (6,)},
    ),
    "group_norm": (
        lambda k, x, weight, bias: k.group_norm(x, 3, weight, bias, activation="silu"),
        lambda x, weight, bias: F.silu(F.group_norm(x, 3, weight, bias)),
        {"x": (2, 6, 9, 7), "weight": (6,), "bias": (6,)},
    ),
    "upsample_block": (
        lambda k, x, weight: k.upsample_block(x, weight, activation="silu"),
        upsampled,
        {"x": (2, 5, 6, 7), "weight": (5, 8, 4, 4)},
    ),
    "gram_loss": (
        lambda k, x, target: k.gram_loss(x, target),
        gram_loss,
        {"x": (2, 5, 9, 7), "target": (2, 5, 5)},
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("implementation", ["default", "triton"])
@pytest.mark.parametrize("op", CALLS)
def test_ops_and_gradients(kernel, op, implementation, compiled, device, monkeypatch) -> None:
    # The gradient of a plain formula has the layout that PyTorch's operations give it.
    monkeypatch.setattr(conftest, "CHECKS_GRADIENT_LAYOUT", implementation != "default")
    ours, torchs, shapes = CALLS[op]

    def call(**tensors: Tensor) -> Tensor:
        return ours(kernel, **tensors)

    torch.compiler.reset()  # it compiles a function for few inputs
    run = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
    tensors = {
        name: random(*shape, device=device, shift=0.3, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    with running(kernel, implementation, device):
        assert_op_accurate(run, torchs, torchs, tensors, image_result=op != "gram_loss")


def test_convert_fuses_an_activation(kernel, device) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.LeakyReLU()).to(device)
    x = random(2, 3, 9, 8, device=device)
    exact = copy.deepcopy(model).double()(x.double())
    converted, report = kernel.convert(model, strict=True)
    assert [entry.what for entry in report.fused] == ["InstanceNorm2d"]
    assert type(converted[1]) is kernel.nn.InstanceNorm2d
    torch.testing.assert_close(converted(x).double(), exact, atol=1e-5, rtol=1e-5)
    assert type(kernel.revert(converted)[1]) is nn.InstanceNorm2d


# -- Rules of the package kernels ------------------------------------------------------------


@needs_kernels
def test_build_toml_is_valid_in_the_newest_edition(repository, tmp_path) -> None:
    from kernels._rust import Build

    assert [str(backend) for backend in Build.open(repository).general.backends] == [*BACKENDS]
    text = (repository / "build.toml").read_text()
    edition = next(line for line in text.splitlines() if line.startswith("edition"))
    newer = f"edition = {int(edition.rpartition(' ')[2]) + 1}"
    for wrong in (text.replace(edition, newer), text.replace("license", "licence")):
        (tmp_path / "build.toml").write_text(wrong)
        with pytest.raises(ValueError, match=r"edition|licence"):
            Build.open(tmp_path)


@needs_kernels
@pytest.mark.parametrize("backend", BACKENDS)
def test_variants_are_as_kernels_expects(repository, backend) -> None:
    from kernels import Metadata
    from kernels._rust import Digest, DigestAlgorithm
    from kernels.validate import default_metadata_validators
    from kernels.variants import get_variants_local

    names = {variant.variant_str for variant in get_variants_local(repository / "build")}
    assert names == {f"torch-{backend}" for backend in BACKENDS}
    variant = repository / "build" / f"torch-{backend}"
    metadata = Metadata.read_from_file(variant / "metadata.json")
    assert str(metadata.backend.backend_type).lower() == backend
    assert metadata.id.isidentifier()
    assert f'"{metadata.id}"' in (variant / "_ops.py").read_text()
    assert (str(metadata.name), metadata.version) == ("stylekernels", 0)
    assert str(metadata.license) == "apache-2.0"
    for validator in default_metadata_validators():
        validator.validate_metadata(metadata=metadata, variant=variant.name)
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
    path = "ops/instance_norm.py"
    digest = hashlib.sha256((variant / path).read_bytes()).digest()
    assert b64decode(metadata.digest.files[path]) == digest


@needs_kernels
def test_get_kernel_finds_it(repository, kernel, monkeypatch) -> None:
    from kernels import get_kernel

    monkeypatch.setenv("LOCAL_KERNELS", f"someone/stylekernels={repository}")
    assert get_kernel("someone/stylekernels", version=0) is kernel


#: For each layer: a module of torch's (eps is 0.1), the shape of its input.
LAYERS = {
    "InstanceNorm1d": (lambda kind: kind(6, 0.1, affine=True), (2, 6, 35)),
    "InstanceNorm2d": (
        lambda kind: kind(6, 0.1, affine=True, track_running_stats=True),
        (2, 6, 9, 7),
    ),
    "InstanceNorm3d": (lambda kind: kind(6, 0.1, affine=True), (2, 6, 4, 5, 3)),
    "GroupNorm": (lambda kind: kind(3, 6, 0.1), (2, 6, 9, 7)),
}
MODES = ("INFERENCE", "INFERENCE|TORCH_COMPILE", "TRAINING", "TRAINING|TORCH_COMPILE")


def test_every_layer_is_tested(kernel) -> None:
    assert [*LAYERS] == sorted(kernel.layers.__all__, key=[*LAYERS].index)
    assert all(hasattr(nn, name) for name in LAYERS)


@needs_kernels
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("implementation", ["default", "triton"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_kernelize(repository, kernel, name, mode, implementation, device) -> None:
    from kernels import (
        LocalLayerRepository,
        Mode,
        kernelize,
        use_kernel_forward_from_hub,
        use_kernel_mapping,
    )

    make, shape = LAYERS[name]
    # A subclass, so that torch's own class stays as it is.
    kind = use_kernel_forward_from_hub(name)(type(name, (getattr(nn, name),), {}))
    theirs = make(kind).to(device)
    with torch.no_grad():
        for seed, tensor in enumerate(theirs.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(random(*tensor.shape, seed=seed, device=device).abs() + 0.5)
    theirs.train("TRAINING" in mode)
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    mapping = {name: {BACKEND: LocalLayerRepository(repository, layer_name=name)}}
    flags = [Mode[flag] for flag in mode.split("|")]
    with use_kernel_mapping(mapping, inherit_mapping=False):
        kernelize(ours, mode=flags[0] | flags[-1], device=BACKEND, use_fallback=False)
    assert ours.forward.__func__ is getattr(kernel.layers, name).forward

    def call(module: nn.Module):
        return lambda x, **parameters: torch.func.functional_call(module, parameters, (x,))

    x = random(*shape, device=device, shift=0.5)
    parameters = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    with running(kernel, implementation, device):
        with Recorder() as recorder, torch.no_grad():
            copy.deepcopy(ours)(x)
        assert not {"native_batch_norm", "native_group_norm"} & {*recorder.ops}
        assert "instance_norm" in recorder.ops or implementation == "default"
        if "TORCH_COMPILE" in mode:
            torch.compiler.reset()
            ours.compile(fullgraph=True, backend="aot_eager")
        assert_op_accurate(call(ours), call(theirs), call(exact), {"x": x, **parameters})
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), msg=name)
