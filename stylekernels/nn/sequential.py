"""Sequential containers that run a norm and the activation after it as one op."""

import functools

from torch import Tensor, nn

from stylekernels.nn.derived import Derived, derive
from stylekernels.nn.pairs import is_plain, options_of, passes_on, why_apart


def runs_in_order(module: nn.Module) -> bool:
    """Return whether a module is a Sequential that passes each output to the next module."""
    plain = getattr(type(module), "forward", None) in (nn.Sequential.forward, _Fusing.forward)
    return isinstance(module, nn.Sequential) and plain and "forward" not in module.__dict__


class _Fusing(Derived, nn.Sequential):
    """Runs each plain norm together with the activation after it, and skips what only passes on.

    The modules do not change: called alone, from a list, by index or in a slice, each computes what
    it computed before.
    """

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self)
        index = 0
        while index < len(modules):
            module = modules[index]
            index += 1
            if is_plain(module):
                after = index
                while after < len(modules) and passes_on(modules[after]):
                    after += 1
                successor = modules[after] if after < len(modules) else None
                if why_apart(module, successor) is None:
                    input = module(input, then=options_of(successor))
                    index = after + 1
                    continue
            input = module(input)
        return input


@functools.cache
def fusing(kind: type[nn.Sequential]) -> type[nn.Sequential]:
    """Return the fusing subclass of a Sequential class. Each class has one."""
    if issubclass(kind, _Fusing):
        return kind
    return derive(f"Fusing{kind.__name__}", _Fusing, kind, fusing)
