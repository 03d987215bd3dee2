"""Benchmarks of the ops, the model, other networks, training and live pictures, against rivals and
the machine.

``python -m benchmarks ops``, ``model``, ``networks``, ``train`` and ``live``. Each verb has a
folder here; shared files are beside this one.
"""
