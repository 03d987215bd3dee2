"""How fast the ops are, against PyTorch and against the machine: ``python -m benchmarks ops``.

Each verb is a folder here; what
they share lies beside this file.
"""
