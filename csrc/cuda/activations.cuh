// Activations and their derivatives.
#pragma once

#include <cmath>

#include "device.cuh"

namespace stylekernels::device {

// The tanh of GELU's approximation is 2 sigmoid(2 u) - 1 with u = z (a + b z^2).
constexpr double kGeluA = 0.7978845608028654, kGeluB = 0.044715 * kGeluA;

template <class W>
__device__ inline W sigmoid(W z) {
  return W(1) / (W(1) + exp(-z));
}

template <class W>
struct Sigmoid {
  W value, slope;
};

// Returns the sigmoid and its derivative, which is even. y (1 - y) would have the error of y for
// large z.
template <class W>
__device__ inline Sigmoid<W> sigmoid_and_slope(W z) {
  const W e = exp(z < 0 ? z : -z), y = W(1) / (W(1) + e);
  return {z < 0 ? e * y : y, e * y * y};
}

// The share of a normal distribution below z.
template <class W>
__device__ inline W normal_cdf(W z) {
  return W(0.5) * erfc(z * W(-0.7071067811865476));
}

template <class W>
__device__ inline W twice_gelu_u(W z) {
  return z * (W(2 * kGeluA) + W(2 * kGeluB) * (z * z));
}

// NaN stays NaN.
template <class W>
__device__ inline W activate(W z, Activation activation, W negative_slope) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return z < 0 ? W(0) : z;
    case Activation::leaky_relu:
      return z > 0 ? z : z * negative_slope;
    case Activation::tanh:
      return tanh(z);
    case Activation::sigmoid:
      return sigmoid(z);
    case Activation::silu:
      return z * sigmoid(z);
    case Activation::gelu:
      return z * normal_cdf(z);
    case Activation::gelu_tanh:
      break;
  }
  return z * sigmoid(twice_gelu_u(z));
}

// Returns the gradient before the activation: grad times the activation's derivative at z.
template <class W>
__device__ inline W activation_gradient(W grad, W z, Activation activation, W negative_slope) {
  switch (activation) {
    case Activation::none:
      return grad;
    case Activation::relu:
      return z <= 0 ? W(0) : grad;
    case Activation::leaky_relu:
      return z > 0 ? grad : grad * negative_slope;
    case Activation::tanh: {
      const W y = tanh(z);
      return grad * (1 - y * y);
    }
    case Activation::sigmoid:
      return grad * sigmoid_and_slope(z).slope;
    case Activation::silu: {
      const Sigmoid<W> y = sigmoid_and_slope(z);
      return grad * (y.value + z * y.slope);
    }
    case Activation::gelu: {
      const W density = exp(W(-0.5) * z * z) * W(0.3989422804014327);  // 1 / sqrt(2 pi)
      return grad * (normal_cdf(z) + z * density);
    }
    case Activation::gelu_tanh:
      break;
  }
  const Sigmoid<W> y = sigmoid_and_slope(twice_gelu_u(z));
  const W slope = W(2 * kGeluA) + W(6 * kGeluB) * (z * z);
  return grad * (y.value + z * (slope * y.slope));
}

// An activation that is known when its code is compiled.
template <Activation kActivation>
struct ConstantActivation {
  __device__ constexpr operator Activation() const { return kActivation; }
};

// Calls f with the activation as a constant, so that one branch serves all elements of a vector.
template <class F>
__device__ inline void with_constant(Activation activation, const F& f) {
  switch (activation) {
    case Activation::none:
      return f(ConstantActivation<Activation::none>{});
    case Activation::relu:
      return f(ConstantActivation<Activation::relu>{});
    case Activation::leaky_relu:
      return f(ConstantActivation<Activation::leaky_relu>{});
    case Activation::tanh:
      return f(ConstantActivation<Activation::tanh>{});
    case Activation::sigmoid:
      return f(ConstantActivation<Activation::sigmoid>{});
    case Activation::silu:
      return f(ConstantActivation<Activation::silu>{});
    case Activation::gelu:
      return f(ConstantActivation<Activation::gelu>{});
    case Activation::gelu_tanh:
      break;
  }
  f(ConstantActivation<Activation::gelu_tanh>{});
}

// Replaces values before an activation by those behind it.
template <class W, int kLanes>
__device__ inline void activate_all(W (&z)[kLanes], Activation activation, W negative_slope) {
  with_constant(activation, [&](auto constant) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      z[lane] = activate(z[lane], Activation(constant), negative_slope);
  });
}

// Replaces gradients behind an activation by those before it, of values z.
template <class W, int kLanes>
__device__ inline void activation_gradients(W (&grad)[kLanes], const W (&z)[kLanes],
                                            Activation activation, W negative_slope) {
  with_constant(activation, [&](auto constant) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      grad[lane] = activation_gradient(grad[lane], z[lane], Activation(constant), negative_slope);
  });
}

}  // namespace stylekernels::device
