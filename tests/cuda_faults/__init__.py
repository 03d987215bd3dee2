"""Faults put into the CUDA kernels on purpose, and the checks that find them."""

from tests.cuda_faults import gram_matrix, instance_norm

KERNELS = {"instance norm": instance_norm.KERNELS, "Gram matrix": gram_matrix.KERNELS}
