"""How fast the ops are, against PyTorch and against the machine: ``python -m benchmarks ops``."""
