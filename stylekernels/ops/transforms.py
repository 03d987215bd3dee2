"""Detection of PyTorch's transforms, which have rules for PyTorch's own ops only."""

import torch

_MAPS = (torch._C._functorch.TransformType.Vmap, torch._C._functorch.TransformType.Jvp)


def inside_transform() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is active."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._functorch.peek_interpreter_stack() is not None


def transformed() -> bool:
    """Return whether forward-mode differentiation, vmap or torch.jit.trace is active. Autograd
    functions without a rule for it cannot be used then."""
    if torch.autograd.forward_ad._current_level >= 0 or torch.jit.is_tracing():
        return True
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    return any(level.key() in _MAPS for level in torch._C._functorch.get_interpreter_stack())


# The result is a constant for torch.compile, which guards on transforms itself.
# torch.compiler.assume_constant_result sets the same attribute, but imports the compiler (1 s).
transformed._dynamo_marked_constant = inside_transform._dynamo_marked_constant = True
