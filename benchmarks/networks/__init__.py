"""``python -m benchmarks networks``: published networks, fused, against PyTorch."""
