"""Benchmarks of the ops, the model, training and live pictures, against rivals and the machine.

``python -m benchmarks ops``, ``model``, ``train`` and ``live``. Each verb has a folder here; shared
files are beside this one.
"""
