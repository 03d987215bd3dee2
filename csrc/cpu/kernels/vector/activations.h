// Activations and their derivatives, over vectors and their scalars.
//
// Functions of vectors are inlined by force. Called out of line, they keep vectors on the stack,
// and the processor finishes one vector before it starts the next.
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

// Returns e^r for r in [-ln 2 / 2, ln 2 / 2] by a polynomial of degree 6.
[[gnu::always_inline]] inline VecF exponential_of_rest(VecF r) {
  VecF p = splat<VecF>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// Returns r = x - k ln 2. The product of k and the first part of ln 2 is exact.
[[gnu::always_inline]] inline VecF exponential_rest(VecF x, VecF k) {
  const VecF r = x - k * 0.693359375f;
  return r + k * 2.12194440e-4f;
}

// e^x = 2^k e^r, within 2 ulp.
#if defined(__AVX512F__)
// vminps and vmaxps return their second operand for NaN. vscalefps rounds to subnormal numbers and
// overflows to infinity.
[[gnu::always_inline]] inline VecF exponential(VecF x) {
  x = _mm512_max_ps(splat<VecF>(-104.0f), _mm512_min_ps(splat<VecF>(89.0f), x));
  const VecF k = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT);
  return _mm512_scalef_ps(exponential_of_rest(exponential_rest(x, k)), k);
}
#else
// The result is infinity from e^88 on, and at least e^-87.
[[gnu::always_inline]] inline VecF exponential(VecF x) {
  const VecF clamped = x > 88.0f ? splat<VecF>(88.0f) : (x < -87.0f ? splat<VecF>(-87.0f) : x);
  const VecF magic = splat<VecF>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = clamped * 1.44269504f + magic;
  const VecF k = shifted - magic;
  const VecF p = exponential_of_rest(exponential_rest(clamped, k));
  const VecI exponent = ((VecI)shifted - (VecI)magic + 127) << 23;
  const VecF result = x > 88.0f ? splat<VecF>(HUGE_VALF) : p * (VecF)exponent;
  return x != x ? x : result;
}
#endif

// Computes 1 / x for x >= 1.
template <class V>
[[gnu::always_inline]] inline V reciprocal(V x) {
#if defined(__AVX512F__)
  // A 14-bit estimate and a step of Newton's method, within 1 ulp, in half the time of a division.
  // From 1e38 on, where the estimate is subnormal, the result is 0.
  if constexpr (std::is_same_v<V, VecF>) {
    const VecF y = _mm512_rcp14_ps(x);
    const __mmask16 small = _mm512_cmp_ps_mask(x, splat<VecF>(1e38f), _CMP_NGT_UQ);
    return _mm512_maskz_fmadd_ps(small, _mm512_fnmadd_ps(x, y, splat<VecF>(1.0f)), y, y);
  }
#endif
  return 1 / x;
}

template <class V>
[[gnu::always_inline]] inline V sigmoid(V z) {
  return reciprocal(1 + exponential(-z));
}

template <class V>
struct Sigmoid {
  V value, slope;
};

// Computes the sigmoid and its derivative y (1 - y). For large z, 1 - y would have the error of y:
// it is e^-z y.
template <class V>
[[gnu::always_inline]] inline Sigmoid<V> sigmoid_and_slope(V z) {
  const V e = exponential(-z), y = reciprocal(1 + e);
  return {y, y * (z > 0 ? e * y : 1 - y)};
}

inline float hyperbolic_tangent(float z) { return std::tanh(z); }
inline double hyperbolic_tangent(double z) { return std::tanh(z); }
inline VecD hyperbolic_tangent(VecD z) {
  for (int i = 0; i < kLanes<VecD>; ++i) z[i] = std::tanh(z[i]);
  return z;
}

// Computes 1 - 2 / (e^2z + 1), and an odd polynomial below 0.625, where that difference cancels.
[[gnu::always_inline]] inline VecF hyperbolic_tangent(VecF z) {
  const VecF magnitude = (VecF)((VecI)z & 0x7fffffff);
  const VecF far = 1.0f - 2.0f * reciprocal(exponential(magnitude + magnitude) + 1.0f);
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

// Computes e^(-z^2 / 2), 0 where that is below the smallest float.
template <class V>
[[gnu::always_inline]] inline V gaussian(V z) {
  const V square = z * z * constant<V>(0.5);
  return square > 87 ? V{} : exponential(-square);
}

constexpr double kSqrtHalf = 0.7071067811865476;

inline double normal_cdf(double z, double /*density*/) { return 0.5 * std::erfc(-z * kSqrtHalf); }
inline VecD normal_cdf(VecD z, VecD density) {
  for (int i = 0; i < kLanes<VecD>; ++i) z[i] = normal_cdf(double(z[i]), double(density[i]));
  return z;
}

// Computes the share of a normal distribution below z. Its tail is density = gaussian(z) times a
// polynomial of t = 1 / (1 + 0.4 x), x = |z| / sqrt(2): a Chebyshev fit of erfc(x) e^(x^2) / (2 t),
// within 2e-7 of each value.
template <class V>
[[gnu::always_inline]] inline V normal_cdf(V z, V density) {
  const V t = reciprocal(1 + (z < 0 ? -z : z) * constant<V>(0.4 * kSqrtHalf));
  V p = t * constant<V>(0.0250936442) - constant<V>(0.0913076734);
  p = p * t + constant<V>(0.084321934);
  p = p * t - constant<V>(0.0026277049);
  p = p * t + constant<V>(0.0706386705);
  p = p * t + constant<V>(0.0842890858);
  p = p * t + constant<V>(0.1039192920);
  p = p * t + constant<V>(0.1128348867);
  p = p * t + constant<V>(0.1128379304);
  const V tail = p * t * density;
  return z < 0 ? tail : 1 - tail;
}

// The tanh of GELU's approximation is 2 sigmoid(2 u) - 1 with u = z (a + b z^2).
constexpr double kGeluA = 0.7978845608028654, kGeluB = 0.044715 * kGeluA;

template <class V>
[[gnu::always_inline]] inline V twice_gelu_u(V z) {
  return z * (constant<V>(2 * kGeluA) + constant<V>(2 * kGeluB) * (z * z));
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
[[gnu::always_inline]] inline V activate(V z, ElementOf<V> negative_slope) {
  if constexpr (A == Activation::relu) return positive_part(z);
  if constexpr (A == Activation::leaky_relu) return z > 0 ? z : z * negative_slope;
  if constexpr (A == Activation::tanh) return hyperbolic_tangent(z);
  if constexpr (A == Activation::sigmoid) return sigmoid(z);
  if constexpr (A == Activation::silu) return z * sigmoid(z);
  if constexpr (A == Activation::gelu) return z * normal_cdf(z, gaussian(z));
  if constexpr (A == Activation::gelu_tanh) return z * sigmoid(twice_gelu_u(z));
  return z;
}

// Returns the gradient before the activation: grad times the activation's derivative at z.
template <Activation A, class V>
[[gnu::always_inline]] inline V activation_gradient(V grad, V z, ElementOf<V> negative_slope) {
  if constexpr (A == Activation::relu) return z <= 0 ? V{} : grad;
  if constexpr (A == Activation::leaky_relu) return z > 0 ? grad : grad * negative_slope;
  if constexpr (A == Activation::tanh) {
    const V y = hyperbolic_tangent(z);
    return grad * (1 - y * y);
  }
  if constexpr (A == Activation::sigmoid) return grad * sigmoid_and_slope(z).slope;
  if constexpr (A == Activation::silu) {
    const Sigmoid<V> y = sigmoid_and_slope(z);
    // z - z is NaN for infinite z, as in PyTorch.
    return grad * (y.value + z * y.slope + (z - z));
  }
  if constexpr (A == Activation::gelu) {
    constexpr double kDensity = 0.3989422804014327;  // 1 / sqrt(2 pi)
    const V density = gaussian(z);
    return grad * (normal_cdf(z, density) + z * (density * constant<V>(kDensity)));
  }
  if constexpr (A == Activation::gelu_tanh) {
    // Beyond 10 the slope of the sigmoid is 0. z - z is NaN for infinite z, as in PyTorch.
    const V c = z > 10 ? constant<V>(10) : (z < -10 ? constant<V>(-10) : z);
    const Sigmoid<V> y = sigmoid_and_slope(twice_gelu_u(c));
    const V slope = constant<V>(2 * kGeluA) + constant<V>(6 * kGeluB) * (c * c);
    return grad * (y.value + c * (slope * y.slope) + (z - z));
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
    case Activation::silu:
      return f(ActivationTag<Activation::silu>{});
    case Activation::gelu:
      return f(ActivationTag<Activation::gelu>{});
    case Activation::gelu_tanh:
      return f(ActivationTag<Activation::gelu_tanh>{});
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
