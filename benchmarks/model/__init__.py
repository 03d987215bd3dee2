"""``python -m benchmarks model``: the generator against PyTorch, other engines and limits."""
