// Element types, memory layouts and the names of modes, as the kernels see them.
//
// The kernels are compiled once per CPU capability with different machine flags. They include no
// torch header and no library template that could be emitted out of line: the linker would keep one
// copy, perhaps one with instructions this CPU lacks.
#pragma once

#include <cstdint>

namespace stylekernels {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

enum class DType { float32, bfloat16, float16, float64 };

// Memory order: contiguous is (N, C, H, W), channels_last is (N, H, W, C).
enum class Layout { contiguous, channels_last };

// gelu_tanh is the approximation of gelu by a tanh.
enum class Activation { none, relu, leaky_relu, tanh, sigmoid, silu, gelu, gelu_tanh };

enum class PaddingMode { zeros, reflect, replicate };

// The wide type: sums over elements of type T and parameters have it.
template <class T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
template <class T>
using Wide = typename WideOf<T>::Type;

// Calls f with a value of the element type, and returns its result.
template <class F>
inline auto for_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Float16{});
    case DType::float64:
      break;
  }
  return f(double{});
}

}  // namespace stylekernels
