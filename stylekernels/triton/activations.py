"""Activations and their gradients."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from stylekernels.triton.launch import INTERPRETED

# Coefficients of GELU's approximation, z (1 + tanh u) / 2 with u = z (A + B z^2).
_TWICE_A = tl.constexpr(2 * 0.7978845608028654)
_TWICE_B = tl.constexpr(2 * 0.7978845608028654 * 0.044715)


@triton.jit
def _tanh(z):
    if INTERPRETED:  # the interpreter has no libdevice
        size = tl.abs(z).to(tl.float64)
        large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
        return tl.where(z < 0, -large, large).to(z.dtype)
    else:
        return libdevice.tanh(z)


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _sigmoid_and_slope(z):
    """The sigmoid and its derivative ``y (1 - y)``. For large ``z``, ``1 - y`` would have the error
    of ``y``: it is ``exp(-z) y``."""
    e = tl.exp(-z)
    y = 1.0 / (1.0 + e)
    return y, y * tl.where(z > 0, e * y, 1.0 - y)


@triton.jit
def _normal_cdf(z):
    """The share of a normal distribution below ``z``."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _twice_gelu_u(z):
    """2 u of GELU's approximation, whose factor of ``z`` is (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    return z * (_TWICE_A + _TWICE_B * (z * z))


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
        z = _sigmoid(z)
    elif ACTIVATION == "silu":
        z = z * _sigmoid(z)
    elif ACTIVATION == "gelu":
        z = z * _normal_cdf(z)
    elif ACTIVATION == "gelu_tanh":
        z = z * _sigmoid(_twice_gelu_u(z))
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
        _y, slope = _sigmoid_and_slope(z)
        grad = grad * slope
    elif ACTIVATION == "silu":
        y, slope = _sigmoid_and_slope(z)
        grad = grad * (y + z * slope)
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327  # 1 / sqrt(2 pi)
        grad = grad * (_normal_cdf(z) + z * density)
    elif ACTIVATION == "gelu_tanh":
        y, slope = _sigmoid_and_slope(_twice_gelu_u(z))
        grad = grad * (y + z * ((_TWICE_A + 3.0 * _TWICE_B * (z * z)) * slope))
    return grad
