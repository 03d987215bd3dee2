"""Triton kernels, one file per op: jit functions, the shapes of their blocks, and launchers.

A launcher takes and returns what the op of its name in ``torch.ops.stylekernels`` does. Importing a
module of this package imports Triton.

Words of this package:

- program: one instance of a kernel, numbered by ``tl.program_id``.
- tile: the part of a result that a program holds in registers at once; BLOCK_* are its sides.
- chunk: some consecutive pixels of a plane. Results of chunks are partial and merged afterwards.
- step: one iteration of the loop over the inner dimension of a matrix product.
- stages: steps in flight at once in a software pipeline.
- group: output pixels of a convolution that are computed together.
- window: the input pixels that a group reads.
- run: one row of a window, consecutive in channels_last memory, filled up to whole steps.
"""

from stylekernels.lazy import lazy

__getattr__, __dir__ = lazy(__name__, {})
