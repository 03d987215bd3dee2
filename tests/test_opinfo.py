"""Norms and transposed convolutions on the samples that PyTorch tests its own ops and modules with.

The samples are those of OpInfo and ModuleInfo. Outputs, gradients and running statistics are
compared with PyTorch in float64. Every test fails if PyTorch has no samples for it.
"""

import copy
import importlib
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stylekernels.nn
from stylekernels import group_norm, instance_norm, norm_conv2d, upsample_block
from tests.conftest import DTYPES, assert_accurate, assert_op_accurate, random

pytest.importorskip("expecttest")

MODULES = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm")


def imported(name: str):
    """Import one of PyTorch's modules for tests, which takes seconds. They would forbid the process
    to set flags of backends, which other tests do."""
    with mock.patch.object(torch.backends, "disable_global_flags"):
        return importlib.import_module(f"torch.testing._internal.{name}")


def op_info(name: str):
    """Return PyTorch's description of an op."""
    database = imported("common_methods_invocations").op_db
    (found,) = [info for info in database if info.name == name and not info.variant_test_name]
    return found


def op_samples(name: str, device: str, dtype: torch.dtype) -> list:
    samples = list(op_info(name).sample_inputs(device, dtype))
    assert samples, f"PyTorch has no samples of {name}"
    return samples


def module_info(name: str):
    database = imported("common_modules").module_db
    (found,) = [info for info in database if info.name == f"nn.{name}"]
    return found


def module_samples(name: str, device: str, dtype: torch.dtype, **options) -> list:
    info = module_info(name)
    samples = info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=False, **options
    )
    assert samples, f"PyTorch has no samples of {name}"
    return samples


def tensors_of(sample, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return x and the given parameters of a sample."""
    given = {name: sample.kwargs.get(name) for name in names}
    return {"x": sample.input} | {name: t for name, t in given.items() if t is not None}


def assert_same_state(ours: nn.Module, in_torch: nn.Module, exact: nn.Module) -> None:
    """Parameters and running statistics have equal names, and values by the accuracy rule."""
    states = [module.state_dict() for module in (ours, in_torch, exact)]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        if value.is_floating_point():
            assert_accurate(value, states[1][name], states[2][name], name)
        else:
            assert torch.equal(value, states[1][name]), name


# Functions.


@pytest.mark.parametrize("dtype", DTYPES)
def test_instance_norm(dtype, device) -> None:
    for sample in op_samples("nn.functional.instance_norm", device, dtype):
        options = dict(sample.kwargs)
        running = options.pop("running_mean", None), options.pop("running_var", None)
        own = options.get("use_input_stats", True)
        eps = options.get("eps", 1e-5)
        assert not sample.args
        tensors = tensors_of(sample, ("weight", "bias"))
        for name in tensors:
            options.pop(name, None)

        def in_torch(x, running=running, options=options, **parameters) -> Tensor:
            mean, var = (None if t is None else t.to(x.dtype, copy=True) for t in running)
            return F.instance_norm(x, mean, var, **parameters | options)

        def ours(x, running=running, own=own, eps=eps, **parameters) -> Tensor:
            return instance_norm(x, **parameters, eps=eps, stats=None if own else running)

        assert_op_accurate(ours, in_torch, in_torch, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instance_norm_with_running_statistics(dtype, device) -> None:
    """The module computes what the function does, which has running statistics in PyTorch only."""
    tracking = 0
    for sample in op_samples("nn.functional.instance_norm", device, dtype):
        options, x = sample.kwargs, sample.input
        if options.get("running_mean") is None:
            continue
        tracking += 1
        parameters = {name: options.get(name) for name in ("weight", "bias")}
        training = options.get("use_input_stats", True)
        name = f"InstanceNorm{x.dim() - 2}d"
        modules = []
        for library, wide in ((stylekernels.nn, False), (nn, False), (nn, True)):
            module = getattr(library, name)(
                x.shape[1],
                options.get("eps", 1e-5),
                options.get("momentum", 0.1),
                track_running_stats=True,
                device=device,
                dtype=dtype,
            ).train(training)
            module.running_mean.copy_(options["running_mean"])
            module.running_var.copy_(options["running_var"])
            module.weight, module.bias = (
                None if t is None else nn.Parameter(t.detach()) for t in parameters.values()
            )
            modules.append(module.double() if wide else module)
        ours, in_torch, exact = modules
        compare_modules(ours, in_torch, exact, x)
    assert tracking, "no sample has running statistics"


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm(dtype, device) -> None:
    for sample in op_samples("nn.functional.group_norm", device, dtype):
        (groups,), eps = sample.args, sample.kwargs.get("eps", 1e-5)
        assert sample.kwargs.keys() <= {"weight", "bias", "eps"}

        def in_torch(x, groups=groups, eps=eps, **parameters) -> Tensor:
            return F.group_norm(x, groups, **parameters, eps=eps)

        def ours(x, groups=groups, eps=eps, **parameters) -> Tensor:
            return group_norm(x, groups, **parameters, eps=eps)

        tensors = tensors_of(sample, ("weight", "bias"))
        if sample.input.shape[1:].numel() == 2 * groups:
            # Two normalised values are always +-1, and their gradient cancels.
            wide = {name: t.double() for name, t in tensors.items()}
            assert_accurate(ours(**tensors), in_torch(**tensors), in_torch(**wide), "output")
            continue
        assert_op_accurate(ours, in_torch, in_torch, tensors)


def test_group_norm_refuses_what_torch_refuses(device) -> None:
    refused = list(op_info("nn.functional.group_norm").error_inputs(device))
    assert refused, "PyTorch has no error inputs"
    for wrong in refused:
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            F.group_norm(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(ValueError, match=r"^(x|num_groups): expected .*, got "):
            group_norm(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_convolution(dtype, device) -> None:
    """Images and weights of the samples at the stride, padding and dilation that our ops have. Ours
    refuse images without a batch and kernels that are not square."""
    convolved = refused = 0
    for sample in op_samples("nn.functional.conv_transpose2d", device, dtype):
        weight, *biases = sample.args
        bias = biases[0] if biases else None
        tensors = {"x": sample.input, "weight": weight}
        options = {"padding_mode": "zeros", "upsample": "transpose"}
        block = options | {"norm": "none", "activation": "none"}
        if sample.input.dim() != 4 or weight.shape[2] != weight.shape[3]:
            refused += 1
            for op, more in ((upsample_block, block), (norm_conv2d, options)):
                with pytest.raises(ValueError, match=r"^(x|weight): expected shape .*, got "):
                    op(**tensors, **more)
            continue
        convolved += 1
        if bias is not None:
            tensors["bias"] = bias

        def in_torch(x, weight, bias=None) -> Tensor:
            more = {"stride": 2, "padding": 1, "output_padding": 4 - weight.shape[2]}
            return F.conv_transpose2d(x, weight, bias, **more)

        def ours(block=block, **tensors) -> Tensor:
            return upsample_block(**tensors, **block)

        assert_op_accurate(ours, in_torch, in_torch, tensors)
        y = norm_conv2d(**tensors, **options).y
        wide = {name: t.double() for name, t in tensors.items()}
        assert_accurate(y, in_torch(**tensors), in_torch(**wide), "norm_conv2d")
    assert convolved, "no sample was convolved"
    assert refused, "no sample was refused"


# Modules.


def compare_modules(ours: nn.Module, in_torch: nn.Module, exact: nn.Module, x: Tensor) -> None:
    """Compare a forward and a backward pass, and the state after it."""
    results = []
    for module in (ours, in_torch, exact):
        dtype = torch.float64 if module is exact else x.dtype
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        y = module(leaf)
        cotangent = random(*y.shape, dtype=x.dtype, device=x.device.type, shift=0.5, seed=99)
        parameters = dict(module.named_parameters())
        grads = torch.autograd.grad(y, (leaf, *parameters.values()), cotangent.to(dtype))
        names = ("output", "gradient of x", *(f"gradient of {name}" for name in parameters))
        results.append(dict(zip(names, (y.detach(), *grads), strict=True)))
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        assert_accurate(*(result[name] for result in results), name)
    assert_same_state(ours, in_torch, exact)


@torch.no_grad()
def error_of(module: nn.Module, x: Tensor) -> tuple[type, str] | None:
    try:
        module(x)
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)
    return None


def check_modules(name: str, lazy: bool, training: bool, dtype: torch.dtype, device: str) -> None:
    options = {"training": training, **({"lazy": True} if lazy else {})}
    classes = [getattr(library, "Lazy" * lazy + name) for library in (stylekernels.nn, nn)]
    assert issubclass(*classes)
    for sample in module_samples(name, device, dtype, **options):
        arguments = sample.constructor_input
        (x,), more = sample.forward_input.args, sample.forward_input.kwargs
        assert not more
        ours, in_torch = (
            kind(*arguments.args, **arguments.kwargs, device=device, dtype=dtype).train(training)
            for kind in classes
        )
        if lazy and error_of(in_torch, x) is not None:
            # Both take the features of an image without a batch from the wrong dimension.
            assert sample.desc.endswith("no_batch_dim")
            assert error_of(ours, x) == error_of(in_torch, x)
            continue
        if lazy:
            assert error_of(ours, x) is None  # the parameters are made
            assert type(ours) is getattr(stylekernels.nn, name)
        with torch.no_grad():  # ones and zeros would hide a missing term
            for seed, parameter in enumerate(in_torch.parameters()):
                parameter.copy_(random(*parameter.shape, dtype=dtype, shift=0.5, seed=seed))
        ours.load_state_dict(in_torch.state_dict())
        compare_modules(ours, in_torch, copy.deepcopy(in_torch).double(), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, training, dtype, device) -> None:
    check_modules(name, False, training, dtype, device)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES[:3])
@pytest.mark.filterwarnings("ignore:input.s size:UserWarning")
def test_lazy_modules(name, training, device) -> None:
    """The samples of the lazy classes are those of the others, without the number of features."""
    check_modules(name, True, training, torch.float32, device)


def test_group_norm_module_refuses_what_torch_refuses(device) -> None:
    info = module_info("GroupNorm")
    refused = info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=True
    )
    assert refused, "PyTorch has no error inputs"
    for wrong in refused:
        arguments = wrong.module_error_input.constructor_input
        for kind in (nn.GroupNorm, stylekernels.nn.GroupNorm):
            with pytest.raises(wrong.error_type, match=wrong.error_regex):
                kind(*arguments.args, **arguments.kwargs)
