"""Makes ops known to PyTorch: schema, formula, tracing rule, gradient, and Triton's launcher for
GPUs."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from stylekernels.ops import checks, dispatch
from stylekernels.ops.autograd import autograd_kernel, below_autograd, by_formula, needs_grad
from stylekernels.ops.forcing import is_forced

NAMESPACE = "stylekernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    schema: str, formula: Callable, fake: Callable | None, *, triton: str | None = None
) -> None:
    """Make an op known to PyTorch.

    Args:
        schema: as PyTorch writes it, without the namespace. Defined here only where no compiled
            library has defined it already.
        formula: plain PyTorch with the op's arguments and results, used on every device that has
            no kernel of ours.
        fake: gives the shapes, dtypes and strides of the results, for tracing; None for an op
            whose results a trace can't know.
        triton: the module of ``stylekernels.triton`` that has a launcher of the op's name.
    """
    name = schema[: schema.index("(")]
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, formula, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"{NAMESPACE}::{name}", _on_one_device(fake), lib=_library)
    if triton is not None and dispatch.triton_missing is None:
        launch = _launcher(triton, name, formula)
        _library.impl(name, launch, "CUDA")  # the key of AMD's GPUs too
        if dispatch.interprets_triton:
            _interpret_on_cpu(name, launch)


def _on_one_device(fake: Callable) -> Callable:
    """A tracing rule that refuses tensors of several devices: PyTorch takes it for a call with one
    tensor on ``meta``, and would return memory that nobody wrote."""

    def checked(*arguments):
        devices = {str(tensor.device) for tensor in dispatch.tensors_in(arguments)}
        if len(devices) > 1:
            raise ValueError(
                f"expected all tensors on one device, got {' and '.join(sorted(devices))}"
            )
        return fake(*arguments)

    return checked


def differentiate(op: Callable, formula: Callable, record: Callable | None = None) -> None:
    """Give a defined op its kernel for autograd and its rule for vmap.

    Args:
        op: an op of ``torch.ops.stylekernels``.
        formula: plain PyTorch, as `define` takes it.
        record: runs the op in an autograd function, of the op's arguments; None for a first
            derivative, whose own is that of its formula.
    """
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    record = by_formula(op, formula) if record is None else record
    _library.impl(name, autograd_kernel(op, record, formula), "Autograd")
    _library.impl(name, formula, "FuncTorchBatched")
    _library.impl(name, formula, "Batched")  # is_grads_batched, which is no torch.func


def refuse_gradients(op: Callable, instead: str) -> None:
    """Give a defined op without a gradient a kernel for autograd that says so.

    Args:
        op: an op of ``torch.ops.stylekernels``.
        instead: the remedy, for the message.
    """

    def kernel(*arguments):
        if needs_grad(*arguments):
            raise RuntimeError(
                f"{op._schema.name} has no gradient, but one of its inputs requires one: {instead}"
            )
        return below_autograd(op, *arguments)

    _library.impl(op._schema.name.removeprefix(f"{NAMESPACE}::"), kernel, "Autograd")


def _launcher(module: str, name: str, formula: Callable) -> Callable:
    """Imports Triton when it is first called."""
    check = getattr(checks, name)

    def launch(x: Tensor | Sequence[Tensor], *arguments):
        check(x, *arguments)
        tensors = (x,) if isinstance(x, Tensor) else x
        if any(tensor.numel() == 0 for tensor in tensors):
            return formula(x, *arguments)
        launcher = getattr(import_module(f"stylekernels.triton.{module}"), name)
        if tensors[0].device.type != "cuda":
            return launcher(x, *arguments)
        with torch.cuda.device(tensors[0].device):  # Triton launches on the current one
            return launcher(x, *arguments)

    return launch


def _interpret_on_cpu(name: str, launch: Callable) -> None:
    """Tensors on the CPU go to Triton's interpreter where ``triton`` is forced."""
    otherwise = torch.library.get_kernel(f"{NAMESPACE}::{name}", "CPU")

    def choose(keys, *arguments):
        if is_forced("triton"):
            return launch(*arguments)
        return otherwise.call_boxed(keys, *arguments)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")  # that is what is meant
        _library.impl(name, choose, "CPU", with_keyset=True)
