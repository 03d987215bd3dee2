"""Recording of gradients: in each op's kernel for PyTorch's autograd keys. A public function that
runs eagerly records without that dispatch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.utils import _pytree as pytree

from stylekernels.ops.transforms import inside_transform, transformed
from stylekernels.tensors import without_autocast

_below_autograd = torch._C._AutoDispatchBelowAutograd
_transform = torch._C._functorch.peek_interpreter_stack
_unwrap = torch._C._functorch.unwrap_if_dead
# Types of inputs without tensors that have to be unwrapped.
_OPTIONS = frozenset((str, float, int, bool, type(None), tuple, list))


def below_autograd(op: Callable, *arguments):
    """Run ``op(*arguments)`` by its kernel for the device. Autograd records nothing."""
    with _below_autograd():
        return op(*arguments)


def forward_of(op: Callable, *arguments):
    """Run ``op(*arguments)`` in the forward pass of an autograd function. PyTorch disables
    gradients there. Outer levels of torch.func must still record the op, so they are enabled."""
    if inside_transform():
        with torch.enable_grad():
            return below_autograd(op, *arguments)
    with _below_autograd():
        return op(*arguments)


def derivative(op: Callable, *arguments):
    """Run ``op(*arguments)``, a first derivative, in the backward pass of an autograd function. It
    is recorded if it may be differentiated again."""
    return op(*arguments) if torch.is_grad_enabled() else below_autograd(op, *arguments)


def needs_grad(*arguments: object) -> bool:
    """Return whether autograd must record an op on these arguments. It looks at tensors and lists
    of tensors, not at tuples."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def recorder(function: type[torch.autograd.Function]) -> Callable:
    """Return ``function.apply``, to call with all inputs, at the level of torch.func that autograd
    is at.

    Before 2.14 PyTorch's ``apply`` inspects the signature of ``forward`` in each call, to fill in
    defaults. That takes longer than a small op.
    """
    apply = super(torch.autograd.Function, function).apply

    def record(*inputs):
        if _transform() is None:
            # Wrappers that an ended transform left are removed, as PyTorch's unwrap_dead_wrappers
            # does in twice the time.
            return apply(
                *[
                    x if type(x) in _OPTIONS or not isinstance(x, Tensor) else _unwrap(x)
                    for x in inputs
                ]
            )
        with enable_single_level_autograd_function():
            return apply(*inputs)

    return record


def call(op: Callable, record: Callable, *arguments):
    """Run ``op(*arguments)`` for a public function.

    Compilers and the transforms of torch.func get the op, and dispatch to its `autograd_kernel`.
    Otherwise this function does what that kernel does, without the dispatch (5 us).

    Args:
        op: an op of ``torch.ops.stylekernels``.
        record: runs the op in an autograd function.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return op(*arguments)
    if needs_grad(*arguments):
        return record(*arguments)
    return below_autograd(op, *arguments)


def autograd_kernel(op: Callable, record: Callable, formula: Callable) -> Callable:
    """Return the kernel of an op for PyTorch's autograd keys.

    Args:
        op, record: as `call` takes them.
        formula: the op in plain PyTorch, for forward-mode differentiation and vmap, which have
            rules for PyTorch's own ops.
    """

    def kernel(*arguments):
        if transformed():
            return formula(*arguments)
        if needs_grad(*arguments):
            return record(*arguments)
        return below_autograd(op, *arguments)

    return kernel


def by_formula(op: Callable, formula: Callable) -> Callable:
    """Return a function that records an op, with the gradient of its plain formula. It is for first
    derivatives, whose own derivatives have no kernel."""

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(structure: pytree.TreeSpec, *leaves) -> tuple[Tensor, ...]:
            results = forward_of(op, *pytree.tree_unflatten(leaves, structure))
            return (results,) if isinstance(results, Tensor) else tuple(results)

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.structure, *leaves = inputs
            ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in leaves))
            ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        @staticmethod
        def backward(ctx, *grads: Tensor):
            leaves = [
                other if tensor is None else tensor
                for tensor, other in zip(ctx.saved_tensors, ctx.others, strict=True)
            ]

            def results(*leaves) -> tuple[Tensor, ...]:
                found = formula(*pytree.tree_unflatten(leaves, ctx.structure))
                return (found,) if isinstance(found, Tensor) else tuple(found)

            return None, *vjp(results, leaves, grads, ctx.needs_input_grad[1:])

    returns = [str(result.type) for result in op._schema.returns]
    record_leaves = recorder(Differentiated)

    def record(*arguments):
        leaves, structure = pytree.tree_flatten(arguments)
        results = record_leaves(structure, *leaves)
        if returns == ["Tensor"]:
            return results[0]
        return list(results) if returns == ["List[Tensor]"] else results

    return record


def vjp(
    formula: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[object],
    cotangents: Tensor | tuple[Tensor, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of ``formula`` at ``inputs``, with None for inputs that are not
    ``wanted``. It is differentiable, because ``formula`` is plain PyTorch."""
    indices = [index for index, want in enumerate(wanted) if want]

    def of_wanted(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        full = list(inputs)
        for index, tensor in zip(indices, tensors, strict=True):
            full[index] = tensor
        return formula(*full)

    products: list[Tensor | None] = [None] * len(inputs)
    given = [inputs[index] for index in indices]
    with without_autocast(given[0].device.type):
        _, pull_back = torch.func.vjp(of_wanted, *given)
        for index, product in zip(indices, pull_back(cotangents), strict=True):
            products[index] = product
    return tuple(products)


def with_gradient_of(value: Tensor, formula: Tensor) -> Tensor:
    """``value``, with the gradient of ``formula``, a less exact way to compute the same number."""
    return value + (formula - formula.detach())
