"""Registration of ops with PyTorch: schema, formula, tracing rule, gradient, and Triton's launcher
for GPUs."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from stylekernels.namespace import NAMESPACE, ops
from stylekernels.ops import checks, dispatch
from stylekernels.ops.autograd import autograd_kernel, below_autograd, by_formula, needs_grad
from stylekernels.ops.forcing import is_forced

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    schema: str, formula: Callable, fake: Callable | None, *, triton: str | None = None
) -> None:
    """Register an op with PyTorch.

    Args:
        schema: PyTorch's schema, without the namespace. It is defined here only if no compiled
            library has defined it already.
        formula: plain PyTorch with the op's arguments and results, used on every device that has
            no kernel of ours.
        fake: returns results with the right shapes, dtypes and strides, for tracing; None for an
            op whose results depend on more than that.
        triton: the module of ``stylekernels.triton`` that has a launcher of the op's name.
    """
    name = schema[: schema.index("(")]
    if not hasattr(ops, name):
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, formula, "CompositeExplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"{NAMESPACE}::{name}", _on_one_device(fake), lib=_library)
    if triton is not None and dispatch.triton_missing is None:
        launch = _launcher(triton, name, formula)
        if _is_compiled(name, "CUDA"):
            _put_over(name, "CUDA", launch, lambda: not is_forced("native"))
        else:
            _library.impl(name, launch, "CUDA")  # AMD's GPUs have this key as well
        if dispatch.interprets_triton:
            _put_over(name, "CPU", launch, lambda: is_forced("triton"))


def _on_one_device(fake: Callable) -> Callable:
    """Return a tracing rule that refuses tensors on several devices. PyTorch also calls it for real
    tensors if one is on ``meta``, and would return uninitialised memory."""

    def checked(*arguments):
        devices = {str(tensor.device) for tensor in dispatch.tensors_in(arguments)}
        if len(devices) > 1:
            raise ValueError(
                f"tensors: expected one device, got {' and '.join(sorted(devices))}; move them "
                "to one"
            )
        return fake(*arguments)

    return checked


def differentiate(op: Callable, formula: Callable, record: Callable | None = None) -> None:
    """Give a defined op its kernel for autograd and its rule for vmap.

    Args:
        op: an op of ``torch.ops.stylekernels``.
        formula: plain PyTorch, as `define` takes it.
        record: a function of the op's arguments that runs it in an autograd function. None for a
            first derivative, whose own derivative is that of its formula.
    """
    name = op._schema.name.removeprefix(f"{NAMESPACE}::")
    record = by_formula(op, formula) if record is None else record
    _library.impl(name, autograd_kernel(op, record, formula), "Autograd")
    _library.impl(name, formula, "FuncTorchBatched")
    _library.impl(name, formula, "Batched")  # is_grads_batched, which does not use torch.func


def refuse_gradients(op: Callable, instead: str) -> None:
    """Give a defined op without a gradient a kernel for autograd that raises RuntimeError.

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
    """Return a function that checks arguments and launches Triton's kernels. Triton is imported in
    its first call."""
    check = getattr(checks, name)

    def launch(x: Tensor | Sequence[Tensor], *arguments):
        check(x, *arguments)
        tensors = (x,) if isinstance(x, Tensor) else x
        if any(tensor.numel() == 0 for tensor in tensors):
            return formula(x, *arguments)
        launcher = getattr(import_module(f"..triton.{module}", __package__), name)
        if tensors[0].device.type != "cuda":
            return launcher(x, *arguments)
        with torch.cuda.device(tensors[0].device):  # Triton launches on the current device
            return launcher(x, *arguments)

    return launch


def _is_compiled(name: str, key: str) -> bool:
    """Return whether a library has a kernel for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def _put_over(name: str, key: str, launch: Callable, chosen: Callable[[], bool]) -> None:
    """Send calls to ``launch`` where ``chosen()`` says so, and others to the kernel that ``key``
    has already."""
    otherwise = torch.library.get_kernel(f"{NAMESPACE}::{name}", key)

    def choose(keys, *arguments):
        if chosen():
            return launch(*arguments)
        return otherwise.call_boxed(keys, *arguments)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")  # overriding is intended
        _library.impl(name, choose, key, with_keyset=True)
