"""The namespace of the ops, ``torch.ops.stylekernels``. Python code names it here and nowhere else:
`hub/` gives a kernel for Hugging Face ``kernels`` a namespace of its own."""

import torch

NAMESPACE = "stylekernels"

ops = getattr(torch.ops, NAMESPACE)
