"""Activations and their gradients."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from stylekernels.triton.launch import INTERPRETED


@triton.jit
def _tanh(z):
    if INTERPRETED:  # the interpreter has no libdevice
        size = tl.abs(z).to(tl.float64)
        large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
        return tl.where(z < 0, -large, large).to(z.dtype)
    else:
        return libdevice.tanh(z)


@triton.jit
def _of_type(number, TYPE: tl.constexpr):
    """Convert a float64 argument of a kernel to the dtype that it is multiplied with."""
    if INTERPRETED:  # a Python float there, which multiplies any dtype
        return number
    else:
        return number.to(TYPE)


@triton.jit
def activate(z, negative_slope, ACTIVATION: tl.constexpr):
    """The activation of ``z``. ``relu(NaN)`` is NaN, as in PyTorch."""
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * _of_type(negative_slope, z.dtype))
    elif ACTIVATION == "tanh":
        z = _tanh(z)
    elif ACTIVATION == "sigmoid":
        z = 1.0 / (1.0 + tl.exp(-z))
    return z


@triton.jit
def activation_gradient(grad, z, negative_slope, ACTIVATION: tl.constexpr):
    """The gradient at the activation's input ``z``, from the gradient ``grad`` at its output."""
    if ACTIVATION == "relu":
        grad = tl.where(z <= 0, 0.0, grad)
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(z > 0, grad, grad * _of_type(negative_slope, grad.dtype))
    elif ACTIVATION == "tanh":
        y = _tanh(z)
        grad = grad * (1.0 - y * y)
    elif ACTIVATION == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * (y * (1.0 - y))
    return grad
