"""The compiled libraries, which this kernel does not have."""

#: The reason why the C++ kernels for the CPU are not in use.
cpu_missing: str | None = "not part of the kernel from the Hub; install the package stylekernels"

#: The capability that these use; None, because they are not in use.
cpu_capability: str | None = None

#: The reason why the CUDA kernels are not in use.
cuda_missing: str | None = cpu_missing
