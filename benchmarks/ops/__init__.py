"""``python -m benchmarks ops``: every op against PyTorch and the limits of the machine."""
