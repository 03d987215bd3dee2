"""``python -m benchmarks live``: the live pipeline of `stylekernels webcam` against its painter."""
