"""How fast the ops and the model are, against their rivals and against the machine.

``python -m benchmarks ops`` and ``python -m benchmarks model``. Each verb is a folder here; what
they share lies beside this file.
"""
