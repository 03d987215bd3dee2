"""What the ops' autograd functions share: the inputs they take, and derivatives of plain formulas
for the second derivative of an op whose first is a kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def vjp(
    formula: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    cotangents: Tensor | tuple[Tensor, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of ``formula`` at ``inputs``; None for an input that is None or not
    ``wanted``.

    The result is itself differentiable, because ``formula`` is plain PyTorch.
    """
    places = [index for index, want in enumerate(wanted) if want and inputs[index] is not None]

    def of_wanted(*tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        full = list(inputs)
        for index, tensor in zip(places, tensors, strict=True):
            full[index] = tensor
        return formula(*full)

    _, pull_back = torch.func.vjp(of_wanted, *(inputs[index] for index in places))
    products: list[Tensor | None] = [None] * len(inputs)
    for index, product in zip(places, pull_back(cotangents), strict=True):
        products[index] = product
    return tuple(products)


def apply(function: type[torch.autograd.Function], *inputs):
    """``function.apply(*inputs)``, of all inputs. PyTorch's, before 2.14, inspects the signature of
    ``forward`` each time, to fill in defaults, which takes longer than a small op."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    inputs = torch._functorch.utils.unwrap_dead_wrappers(inputs)
    return super(torch.autograd.Function, function).apply(*inputs)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd has to record an op on these tensors."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors, with a view in place of one that has come before: torch.compile refuses an
    autograd function that is given the same tensor twice."""
    if not torch.compiler.is_compiling():
        return tensors
    seen: list[Tensor | None] = []
    for tensor in tensors:
        repeated = tensor is not None and any(tensor is other for other in seen)
        seen.append(tensor.view_as(tensor) if repeated else tensor)
    return tuple(seen)
