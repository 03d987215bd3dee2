"""Graphs of modules, by `torch.fx`."""

import operator

from torch import fx, nn

from stylekernels.fusion.geometry import CONVOLUTIONS
from stylekernels.fusion.inputs import NORMS


class _Proxy(fx.Proxy):
    """A value. PyTorch's own class records ``y += x`` as ``y + x``, which leaves y as it was."""

    def __iadd__(self, other):
        return self._in_place(operator.iadd, other)

    def __isub__(self, other):
        return self._in_place(operator.isub, other)

    def __imul__(self, other):
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other):
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function, other) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """Follows all modules but layers, also layers of other packages than torch.nn."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (*CONVOLUTIONS, *NORMS))
            or type(m).__module__.startswith("stylekernels.nn.")
            or super().is_leaf_module(m, module_qualified_name)
        )


def traced(module: nn.Module) -> fx.Graph | None:
    """Return the graph of a module, or None if its forward depends on values, or does what
    `torch.fx` cannot follow."""
    try:
        return _Tracer().trace(module)
    except Exception:  # tracing runs the module's own code
        return None
