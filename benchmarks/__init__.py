"""Benchmarks of the ops, the model and training, against rivals and the limits of the machine.

``python -m benchmarks ops``, ``model`` and ``train``. Each verb has a folder here; shared files are
beside this one.
"""
