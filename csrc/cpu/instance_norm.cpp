// Instance and group norm on the CPU: from tensors to kernel arguments.

#include "instance_norm.h"

#include <algorithm>
#include <vector>

#include "../instance_norm_checks.h"
#include "capability.h"
#include "exact_mean.h"

namespace stylekernels {

namespace {

const InstanceNormKernels& kernels() {
  switch (capability()) {
#ifdef HAVE_AVX512_BF16
    case Capability::amx:
    case Capability::amx_emulated_avx512:
    case Capability::avx512_bf16:
      return avx512_bf16::instance_norm_kernels;
#endif
#ifdef HAVE_AVX512
    case Capability::avx512:
      return avx512::instance_norm_kernels;
#endif
#ifdef HAVE_AVX2
    case Capability::amx_emulated:
    case Capability::avx2:
      return avx2::instance_norm_kernels;
#endif
    default:
      return baseline::instance_norm_kernels;
  }
}

// Elements of a chunk: large enough to pay for its hand-out (about a microsecond), small enough to
// share a small image between many threads.
constexpr int64_t kChunkElements = 32768;

// From this many planes on, a plane is one chunk. From this many groups on, one thread reads a
// group of planes twice, the second time from its cache.
constexpr int64_t kManyPlanes = 16;

// Bytes from which results are written with streaming stores: they would not stay in the caches,
// and reading a line in order to overwrite it costs half as much again.
constexpr int64_t kStreamBytes = int64_t(12) << 20;

PlaneGrid grid_of(const Tensor& x, Layout layout, int64_t group) {
  PlaneGrid g{dtype_of(x), layout, x.size(0), x.size(1), group, x.size(2) * x.size(3), 0, 0, false};
  if (layout == Layout::channels_last) {
    g.chunk_pixels = std::max<int64_t>(64, kChunkElements / std::max<int64_t>(1, g.c) / 64 * 64);
  } else {
    g.chunk_pixels = g.n * g.c >= kManyPlanes ? std::max<int64_t>(1, g.pixels) : kChunkElements;
  }
  g.chunk_pixels = std::min(g.chunk_pixels, std::max<int64_t>(1, g.pixels));
  g.chunks = std::max<int64_t>(1, (g.pixels + g.chunk_pixels - 1) / g.chunk_pixels);
  g.whole_groups = layout == Layout::contiguous && g.chunks == 1 &&
                   (group == 1 || g.n * g.c / group >= kManyPlanes);
  return g;
}

// Scratch memory of a call, in one allocation: sums of chunks, and behind them arrays of
// coefficients.
struct Scratch {
  Scratch(const PlaneGrid& g, int64_t arrays, const Tensor& like)
      : sums(whole_lines(g.n * g.c * g.chunks * 2)),
        memory(workspace(sums + arrays * kernels().coefficient_elements(g), like)) {}

  double* partials() const { return static_cast<double*>(memory.mutable_data_ptr()); }
  double* coefficients() const { return partials() + sums; }

  static int64_t whole_lines(int64_t doubles) { return (doubles + 7) / 8 * 8; }

  int64_t sums;
  Tensor memory;
};

// Tells whether y can take streaming stores, which need every vector aligned to its size. New
// tensors start on 64 bytes; the kernels align the beginning of a plane, but not rows of channels.
bool streams(const PlaneGrid& g, const Tensor& y) {
  const int64_t bytes = y.element_size();
  if (g.n * g.c * g.pixels * bytes < kStreamBytes || uintptr_t(y.const_data_ptr()) % 64 != 0)
    return false;
  if (g.layout == Layout::contiguous) return true;
  return g.c * bytes % 64 == 0 || (g.c < 64 && (g.n == 1 || g.pixels * g.c * bytes % 64 == 0));
}

// Parameter (C,) or (N, C), dense and in the wide dtype, and its stride from image to image.
struct Parameter {
  std::optional<Tensor> tensor;
  int64_t stride = 0;

  Parameter(const std::optional<Tensor>& parameter, const Tensor& x) {
    if (!parameter.has_value()) return;
    tensor = torch::stable::contiguous(*parameter);
    if (tensor->scalar_type() != wide_dtype(x)) tensor = torch::stable::to(*tensor, wide_dtype(x));
    stride = tensor->dim() == 2 ? x.size(1) : 0;
  }
};

// -- planes whose squares exceed float32 -------------------------------------------------------
//
// A call with such a plane is repeated in float64. Its statistics show it, so that the float32
// kernels check no values.

// Deviation above which squares may overflow: float32 sums are kept over kSummed = 256 of them.
constexpr float kLargestDeviation = 1e17f;

// Smallest rstd whose square float32 holds: the backward kernels multiply with it.
constexpr float kSmallestRstd = 1e-12f;

Tensor in_float64(const Tensor& x) { return torch::stable::to(x, ScalarType::Double); }

std::optional<Tensor> in_float64(const std::optional<Tensor>& x) {
  return x.has_value() ? std::optional(in_float64(*x)) : std::nullopt;
}

// Tells whether a plane of x, which is dense, has neither infinite values nor NaN. `exponent`: the
// bits of T that are all ones in these.
template <class T>
bool is_finite(const Tensor& x, const PlaneGrid& g, int64_t plane, T exponent) {
  const bool contiguous = g.layout == Layout::contiguous;
  const int64_t stride = contiguous ? 1 : g.c, n = plane / g.c, c = plane % g.c;
  const T* bits = static_cast<const T*>(x.const_data_ptr()) +
                  (contiguous ? plane * g.pixels : n * g.pixels * g.c + c);
  for (int64_t i = 0; i < g.pixels; ++i)
    if ((bits[i * stride] & exponent) == exponent) return false;
  return true;
}

// Tells whether a plane of finite values has a statistic that overflows(value). float16 has no such
// range, and float64 nothing wider.
template <class F>
bool exceeds_float32(const Tensor& x, const PlaneGrid& g, const Tensor& statistics,
                     const F& overflows) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  if (g.pixels == 0 || (!half && x.scalar_type() != ScalarType::Float)) return false;
  const float* values = static_cast<const float*>(statistics.const_data_ptr());
  for (int64_t plane = 0; plane < g.n * g.c; ++plane)
    if (overflows(values[plane]) && (half ? is_finite<uint16_t>(x, g, plane, 0x7f80)
                                          : is_finite<uint32_t>(x, g, plane, 0x7f800000)))
      return true;
  return false;
}

// Splits float64 means: (2, N, C), the means as float32 and their rounding errors.
Tensor rounded_with_error(const Tensor& mean) {
  const int64_t count = mean.numel() / 2;
  Tensor rounded = empty({2, mean.size(1), mean.size(2)}, mean, ScalarType::Float);
  const double* from = static_cast<const double*>(mean.const_data_ptr());
  float* to = static_cast<float*>(rounded.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    to[i] = float(from[i]);
    to[count + i] = float(from[i] - double(to[i]) + from[count + i]);
  }
  return rounded;
}

std::tuple<Tensor, Tensor, Tensor> instance_norm(Tensor x, std::optional<Tensor> weight,
                                                 std::optional<Tensor> bias,
                                                 std::optional<Tensor> residual,
                                                 std::optional<Tensor> mean,
                                                 std::optional<Tensor> var, Name activation,
                                                 double negative_slope, bool residual_first,
                                                 double eps, bool own_stats, int64_t group) {
  check_instance_norm(x, weight, bias, residual, mean, var, group);
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  if (residual.has_value()) residual = with_layout(*residual, layout);
  const PlaneGrid grid = grid_of(x, layout, group);
  const Parameter weights(weight, x), biases(bias, x), means(mean, x), vars(var, x);
  Tensor y = empty_like(x, layout);
  Tensor used_mean = empty({2, grid.n, grid.c}, x, wide_dtype(x));
  Tensor rstd = empty({grid.n, grid.c}, x, wide_dtype(x));
  const Scratch scratch(grid, 3, x);
  kernels().forward({
      .grid = grid,
      .x = x.const_data_ptr(),
      .residual = data(residual),
      .y = y.mutable_data_ptr(),
      .weight = data(weights.tensor),
      .bias = data(biases.tensor),
      .weight_stride = weights.stride,
      .bias_stride = biases.stride,
      .mean_in = data(means.tensor),
      .var_in = data(vars.tensor),
      .mean_stride = means.stride,
      .var_stride = vars.stride,
      .activation = activation_of(activation),
      .negative_slope = negative_slope,
      .residual_first = residual_first,
      .stream = streams(grid, y),
      .eps = eps,
      .mean = used_mean.mutable_data_ptr(),
      .rstd = rstd.mutable_data_ptr(),
      .partials = scratch.partials(),
      .coefficients = scratch.coefficients(),
  });
  const auto overflows = [](float value) { return !(value > 1 / kLargestDeviation); };
  if ((own_stats || !mean.has_value()) && exceeds_float32(x, grid, rstd, overflows)) {
    const auto [wide_y, wide_mean, wide_rstd] = instance_norm(
        in_float64(x), in_float64(weight), in_float64(bias), in_float64(residual), std::nullopt,
        std::nullopt, activation, negative_slope, residual_first, eps, true, group);
    return {torch::stable::to(wide_y, x.scalar_type()), rounded_with_error(wide_mean),
            torch::stable::to(wide_rstd, ScalarType::Float)};
  }
  return {y, used_mean, rstd};
}

// Sums (N, C) over the images, in double precision.
template <class W>
void add_images(const W* rows, int64_t images, int64_t channels, W* sums) {
  std::vector<double> totals(channels);
  for (int64_t n = 0; n < images; ++n)
    for (int64_t c = 0; c < channels; ++c) totals[c] += double(rows[n * channels + c]);
  for (int64_t c = 0; c < channels; ++c) sums[c] = W(totals[c]);
}

Tensor sum_over_images(const Tensor& rows) {
  const int64_t n = rows.size(0), c = rows.size(1);
  Tensor sums = empty({c}, rows, rows.scalar_type());
  const void* from = rows.const_data_ptr();
  void* to = sums.mutable_data_ptr();
  if (rows.scalar_type() == ScalarType::Double)
    add_images(static_cast<const double*>(from), n, c, static_cast<double*>(to));
  else
    add_images(static_cast<const float*>(from), n, c, static_cast<float*>(to));
  return sums;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> instance_norm_backward(
    Tensor grad, Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias,
    std::optional<Tensor> residual, Tensor mean, Tensor rstd, Name activation,
    double negative_slope, bool own_stats, bool want_residual, bool sum_images, int64_t group) {
  check_instance_norm_backward(grad, x, weight, bias, residual, mean, rstd, group);
  rstd = torch::stable::contiguous(rstd);
  const float* deviations = static_cast<const float*>(rstd.const_data_ptr());
  if (wide_dtype(x) == ScalarType::Float &&
      std::any_of(deviations, deviations + rstd.numel(),
                  [](float value) { return value < kSmallestRstd; })) {
    auto [grad_x, grad_residual, sum_grad, sum_grad_normalized] = instance_norm_backward(
        in_float64(grad), in_float64(x), in_float64(weight), in_float64(bias), in_float64(residual),
        in_float64(mean), in_float64(rstd), activation, negative_slope, own_stats, want_residual,
        sum_images, group);
    for (Tensor* image : {&grad_x, &grad_residual})
      *image = torch::stable::to(*image, x.scalar_type());
    for (Tensor* sums : {&sum_grad, &sum_grad_normalized})
      *sums = torch::stable::to(*sums, ScalarType::Float);
    return {grad_x, grad_residual, sum_grad, sum_grad_normalized};
  }
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  grad = with_layout(grad, layout);
  if (residual.has_value()) residual = with_layout(*residual, layout);
  const PlaneGrid grid = grid_of(x, layout, group);
  const Parameter weights(weight, x), biases(bias, x);
  mean = torch::stable::contiguous(mean);
  Tensor grad_x = empty_like(x, layout);
  Tensor grad_residual = want_residual ? empty_like(x, layout) : empty({0}, x, x.scalar_type());
  const Shape rows = sums_shape(x, sum_images);
  Tensor sum_grad = empty(rows, x, wide_dtype(x));
  Tensor sum_grad_normalized = empty(rows, x, wide_dtype(x));
  const Scratch scratch(grid, 5, x);
  kernels().backward({
      .grid = grid,
      .grad = grad.const_data_ptr(),
      .x = x.const_data_ptr(),
      .residual = data(residual),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_residual = want_residual ? grad_residual.mutable_data_ptr() : nullptr,
      .weight = data(weights.tensor),
      .bias = data(biases.tensor),
      .weight_stride = weights.stride,
      .bias_stride = biases.stride,
      .mean = mean.const_data_ptr(),
      .rstd = rstd.const_data_ptr(),
      .activation = activation_of(activation),
      .negative_slope = negative_slope,
      .own_stats = own_stats,
      .stream = streams(grid, grad_x) && (!want_residual || streams(grid, grad_residual)),
      .sum_grad = sum_grad.mutable_data_ptr(),
      .sum_grad_normalized = sum_grad_normalized.mutable_data_ptr(),
      .partials = scratch.partials(),
      .coefficients = scratch.coefficients(),
  });
  if (sum_images && rows.size() == 2)
    for (Tensor* sums : {&sum_grad, &sum_grad_normalized}) *sums = sum_over_images(*sums);
  return {grad_x, grad_residual, sum_grad, sum_grad_normalized};
}

// Writes mean (N, C), biased variance (N, C), and with two rows of `mean` (2, N, C) its rounding
// error.
void write_statistics(Tensor x, const Tensor& mean, int64_t rows, const Tensor& var) {
  const Layout layout = layout_of(x);
  x = with_layout(x, layout);
  const PlaneGrid grid = grid_of(x, layout, 1);
  const Scratch scratch(grid, 0, x);
  char* values = static_cast<char*>(mean.mutable_data_ptr());
  kernels().stats({
      .grid = grid,
      .x = x.const_data_ptr(),
      .mean = values,
      .mean_error = rows == 1 ? nullptr : values + grid.n * grid.c * int64_t(mean.element_size()),
      .var = var.mutable_data_ptr(),
      .partials = scratch.partials(),
  });
}

std::tuple<Tensor, Tensor> instance_norm_stats(Tensor x) {
  check_rank(x, "x", 4, 4);
  Tensor mean = empty({x.size(0), x.size(1)}, x, wide_dtype(x));
  Tensor var = empty({x.size(0), x.size(1)}, x, wide_dtype(x));
  write_statistics(x, mean, 1, var);
  const Layout layout = layout_of(x);
  const Tensor dense = with_layout(x, layout);
  const auto overflows = [](float value) {
    return !(value < kLargestDeviation * kLargestDeviation);
  };
  if (exceeds_float32(dense, grid_of(dense, layout, 1), var, overflows)) {
    const auto [wide_mean, wide_var] = instance_norm_stats(in_float64(x));
    return {torch::stable::to(wide_mean, ScalarType::Float),
            torch::stable::to(wide_var, ScalarType::Float)};
  }
  return {mean, var};
}

}  // namespace

Tensor exact_mean(Tensor x) {
  Tensor mean = empty({2, x.size(0), x.size(1)}, x, wide_dtype(x));
  write_statistics(x, mean, 2, empty({x.size(0), x.size(1)}, x, wide_dtype(x)));
  return mean;
}

STABLE_TORCH_LIBRARY_IMPL(stylekernels, CPU, m) {
  m.impl("instance_norm_stats", TORCH_BOX(&instance_norm_stats));
  m.impl("instance_norm", TORCH_BOX(&instance_norm));
  m.impl("instance_norm_backward", TORCH_BOX(&instance_norm_backward));
}

}  // namespace stylekernels
