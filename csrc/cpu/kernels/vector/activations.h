// Activations and their derivatives, over vectors and their scalars.
#pragma once

#include <cmath>

#include "simd.h"

namespace stylekernels::CPU_CAPABILITY {

inline float exponential(float x) { return std::exp(x); }
inline double exponential(double x) { return std::exp(x); }
inline VecD exponential(VecD x) {
  for (int i = 0; i < kLanes<VecD>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Splits e^x = 2^k e^r, with r in [-ln 2 / 2, ln 2 / 2] and a polynomial of degree 6 for e^r:
// within 2 ulp, and infinity from e^88 on.
inline VecF exponential(VecF x) {
  const VecF clamped = x > 88.0f ? splat<VecF>(88.0f) : (x < -87.0f ? splat<VecF>(-87.0f) : x);
  const VecF magic = splat<VecF>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = clamped * 1.44269504f + magic;
  const VecF k = shifted - magic;
  VecF r = clamped - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  VecF p = splat<VecF>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecI exponent = ((VecI)shifted - (VecI)magic + 127) << 23;
  const VecF result = x > 88.0f ? splat<VecF>(HUGE_VALF) : p * (VecF)exponent;
  return x != x ? x : result;
}

template <class V>
inline V sigmoid(V z) {
  return 1 / (1 + exponential(-z));
}

inline float hyperbolic_tangent(float z) { return std::tanh(z); }
inline double hyperbolic_tangent(double z) { return std::tanh(z); }
inline VecD hyperbolic_tangent(VecD z) {
  for (int i = 0; i < kLanes<VecD>; ++i) z[i] = std::tanh(z[i]);
  return z;
}

// Computes 1 - 2 / (e^2z + 1), and an odd polynomial below 0.625, where that difference cancels.
inline VecF hyperbolic_tangent(VecF z) {
  const VecF magnitude = (VecF)((VecI)z & 0x7fffffff);
  const VecF far = 1.0f - 2.0f / (exponential(magnitude + magnitude) + 1.0f);
  const VecF square = z * z;
  VecF p = splat<VecF>(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const VecF near = p * square * z + z;
  const VecF signed_far = (VecF)((VecI)far | ((VecI)z & (int32_t)0x80000000));
  return magnitude < 0.625f ? near : signed_far;
}

// Computes max(z, 0); NaN stays NaN.
template <class V>
inline V positive_part(V z) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, VecF>)
    return _mm512_max_ps(V{}, z);  // vmaxps returns its second operand for NaN
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, VecF>) return _mm256_max_ps(V{}, z);
#endif
  return z < 0 ? V{} : z;
}

template <Activation A, class V>
inline V activate(V z, ElementOf<V> negative_slope) {
  if constexpr (A == Activation::relu) return positive_part(z);
  if constexpr (A == Activation::leaky_relu) return z > 0 ? z : z * negative_slope;
  if constexpr (A == Activation::tanh) return hyperbolic_tangent(z);
  if constexpr (A == Activation::sigmoid) return sigmoid(z);
  return z;
}

// Returns the gradient before the activation: grad times the activation's derivative at z.
template <Activation A, class V>
inline V activation_gradient(V grad, V z, ElementOf<V> negative_slope) {
  if constexpr (A == Activation::relu) return z <= 0 ? V{} : grad;
  if constexpr (A == Activation::leaky_relu) return z > 0 ? grad : grad * negative_slope;
  if constexpr (A == Activation::tanh) {
    const V y = hyperbolic_tangent(z);
    return grad * (1 - y * y);
  }
  if constexpr (A == Activation::sigmoid) {
    const V y = sigmoid(z);
    return grad * (y * (1 - y));
  }
  return grad;
}

template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

// Calls f with the activation as a compile-time constant.
template <class F>
inline void for_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::none:
      return f(ActivationTag<Activation::none>{});
    case Activation::relu:
      return f(ActivationTag<Activation::relu>{});
    case Activation::leaky_relu:
      return f(ActivationTag<Activation::leaky_relu>{});
    case Activation::tanh:
      return f(ActivationTag<Activation::tanh>{});
    case Activation::sigmoid:
      return f(ActivationTag<Activation::sigmoid>{});
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
