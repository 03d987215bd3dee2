// Tensors over LibTorch's stable ABI (one binary serves torch 2.11 and later): dtypes, layouts, and
// checks of everything that kernels index by.
//
// Each op file ends with its registration: STABLE_TORCH_LIBRARY_IMPL(stylekernels, CPU, m) puts
// functions under the schemas of schemas.cpp. Public functions check their arguments in Python. The
// checks here are for direct calls of torch.ops.stylekernels, exported models and C++ programs;
// their exceptions arrive as RuntimeError with a file name.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "conv_geometry.h"

namespace stylekernels {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Returns the name of a dtype, for messages.
inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Byte:
      return "uint8";
    default:
      return "another dtype";
  }
}

inline DType dtype_of(const Tensor& x, const char* name = "x") {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::Double:
      return DType::float64;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, bfloat16, float16 or float64, got ",
                      name_of(x.scalar_type()));
  }
}

// The wide dtype: statistics, parameters and Gram matrices of x have it.
inline ScalarType wide_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4) return false;
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

// Returns contiguous for a tensor that has both layouts (one channel, say), as PyTorch does.
inline Layout layout_of(const Tensor& x) {
  return !x.is_contiguous() && is_channels_last(x) ? Layout::channels_last : Layout::contiguous;
}

inline MemoryFormat memory_format(Layout layout) {
  return layout == Layout::contiguous ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast;
}

// Returns x if it is dense and has the layout, else a copy that is and has.
inline Tensor with_layout(const Tensor& x, Layout layout) {
  if (x.is_contiguous() ? layout == Layout::contiguous || is_channels_last(x)
                        : layout == Layout::channels_last && is_channels_last(x))
    return x;
  return torch::stable::contiguous(x, memory_format(layout));
}

using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& x) {
  Shape shape(x.dim());
  for (int64_t i = 0; i < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

// Allocates by LibTorch's C function: torch::stable::empty looks its op up by name in each call.
inline Tensor empty(const Shape& sizes, const Tensor& like, ScalarType dtype,
                    Layout layout = Layout::contiguous) {
  Shape strides(sizes.size());
  int64_t elements = 1;
  const auto lay_out = [&](size_t dim) {
    strides[dim] = elements;
    elements *= std::max<int64_t>(1, sizes[dim]);
  };
  if (layout == Layout::channels_last) {
    for (const size_t dim : {1, 3, 2, 0}) lay_out(dim);
  } else {
    for (size_t dim = sizes.size(); dim-- > 0;) lay_out(dim);
  }
  int32_t device_type, device_index;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty_like(const Tensor& x, Layout layout) {
  return empty(shape_of(x), x, x.scalar_type(), layout);
}

// Allocates the scratch memory of a call.
inline Tensor workspace(int64_t doubles, const Tensor& like) {
  return empty({doubles}, like, ScalarType::Double);
}

// -- names -----------------------------------------------------------------------------------

// A string argument of an op. The conversion to std::string of torch up to 2.13, at least, leaks a
// string per call (docs/pytorch-faults.md).
struct Name {
  std::string text;

  operator const std::string&() const { return text; }
};

inline Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "tanh") return Activation::tanh;
  if (name == "sigmoid") return Activation::sigmoid;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  STD_TORCH_CHECK(name == "none",
                  "activation: expected none, relu, leaky_relu, tanh, sigmoid, silu, gelu or "
                  "gelu_tanh, got ",
                  name);
  return Activation::none;
}

inline PaddingMode padding_mode_of(const std::string& name) {
  if (name == "reflect") return PaddingMode::reflect;
  if (name == "replicate") return PaddingMode::replicate;
  STD_TORCH_CHECK(name == "zeros", "padding_mode: expected zeros, reflect or replicate, got ",
                  name);
  return PaddingMode::zeros;
}

inline Upsample upsample_of(const std::string& name) {
  if (name == "nearest") return Upsample::nearest;
  if (name == "transpose") return Upsample::transpose;
  STD_TORCH_CHECK(name == "none", "upsample: expected none, nearest or transpose, got ", name);
  return Upsample::none;
}

// -- checks ----------------------------------------------------------------------------------

inline bool has_shape(const Tensor& x, const Shape& shape) {
  if (x.dim() != int64_t(shape.size())) return false;
  for (size_t i = 0; i < shape.size(); ++i)
    if (x.size(int64_t(i)) != shape[i]) return false;
  return true;
}

inline std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

inline void check_rank(const Tensor& x, const char* name, int64_t lowest, int64_t highest) {
  const std::string range = lowest == highest ? "" : " to " + std::to_string(highest);
  STD_TORCH_CHECK(x.dim() >= lowest && x.dim() <= highest, name, ": expected rank ", lowest, range,
                  ", got ", text_of(shape_of(x)));
}

inline void check_shape(const Tensor& x, const char* name, const Shape& shape) {
  STD_TORCH_CHECK(has_shape(x, shape), name, ": expected shape ", text_of(shape), ", got ",
                  text_of(shape_of(x)));
}

inline void check_dtype(const Tensor& x, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": expected ", name_of(dtype), ", got ",
                  name_of(x.scalar_type()));
}

// Checks for the shape and dtype of `other`.
inline void check_like(const std::optional<Tensor>& x, const char* name, const Tensor& other) {
  if (!x.has_value()) return;
  check_shape(*x, name, shape_of(other));
  check_dtype(*x, name, other.scalar_type());
}

// Checks that an operand is where x is: kernels follow its pointer.
inline void check_device(const std::optional<Tensor>& operand, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(!operand.has_value() || (operand->is_cpu() == x.is_cpu() &&
                                           operand->get_device_index() == x.get_device_index()),
                  name, ": expected the device of x, got another one; move it there");
}

// Checks for shape (C,) or (N, C), in any floating-point dtype.
inline void check_per_channel(const std::optional<Tensor>& x, const char* name, int64_t n,
                              int64_t c) {
  STD_TORCH_CHECK(!x.has_value() || has_shape(*x, {c}) || has_shape(*x, {n, c}), name,
                  ": expected shape (C,) = ", text_of({c}), " or (N, C) = ", text_of({n, c}),
                  ", got ", text_of(x.has_value() ? shape_of(*x) : Shape{}));
  if (x.has_value()) dtype_of(*x, name);
}

inline const void* data(const std::optional<Tensor>& x) {
  return x.has_value() ? x->const_data_ptr() : nullptr;
}

}  // namespace stylekernels

// Takes the string that the dispatcher passes, and deletes it.
template <>
struct torch::stable::detail::ToImpl<stylekernels::Name> {
  static stylekernels::Name call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length;
    const char* data;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    stylekernels::Name name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
