"""``python -m benchmarks train``: a step of training a style against PyTorch."""
