"""``python -m benchmarks live``: webcam, video and serve against the painter alone."""
