"""Triton kernels of the ops, and their launchers.

A launcher takes and returns what the op of its name in ``torch.ops.stylekernels`` does. Importing a
module of this package imports Triton.
"""

from stylekernels.lazy import lazy

__getattr__, __dir__ = lazy(__name__, {})
