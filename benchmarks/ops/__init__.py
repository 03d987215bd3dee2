"""``python -m benchmarks ops``: every op against PyTorch and against the machine."""
