"""The compiled library, which this kernel does not have."""

#: The reason why the C++ kernels for the CPU are not in use.
cpu_missing: str | None = "not part of the kernel from the Hub; install the package stylekernels"

#: The capability that they use; None, because they are not in use.
cpu_capability: str | None = None
