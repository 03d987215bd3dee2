// Gram matrix and Gram loss on the CPU: from tensors to kernel arguments.

#include "gram_matrix.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../gram_matrix_checks.h"
#include "capability.h"
#include "exact_mean.h"
#include "parallel.h"

namespace stylekernels {

namespace {

const GramMatrixKernels& kernels() {
  switch (capability()) {
#ifdef HAVE_AMX
    case Capability::amx:
      return amx::gram_matrix_kernels;
#endif
#ifdef HAVE_AMX_EMULATED
    case Capability::amx_emulated:
      return amx_emulated::gram_matrix_kernels;
#endif
#ifdef HAVE_AMX_EMULATED_AVX512
    case Capability::amx_emulated_avx512:
      return amx_emulated_avx512::gram_matrix_kernels;
#endif
#ifdef HAVE_AVX512_BF16
    case Capability::avx512_bf16:
      return avx512_bf16::gram_matrix_kernels;
#endif
#ifdef HAVE_AVX512
    case Capability::avx512:
      return avx512::gram_matrix_kernels;
#endif
#ifdef HAVE_AVX2
    case Capability::avx2:
      return avx2::gram_matrix_kernels;
#endif
    default:
      return baseline::gram_matrix_kernels;
  }
}

// Pixels of a chunk, the sum of one task. A large image has about 16 chunks, each large enough that
// merging costs little. With few pixels in all there are four tasks.
constexpr int64_t kChunkPixels = 512, kEnoughPixels = 4096;
constexpr int64_t kChunks = 16, kFewestTasks = 4;

// Largest norm of what is subtracted from sums to centre them, relative to the norm of the result.
// Products of bfloat16 are exact, and sums of them in float32 have a relative error of 6e-8, so
// that this allows 1e-6. Loss networks have 0.7 to 12. A loss doubles the error of a Gram matrix of
// one channel, and averages those of many: the limit is the number of channels if that is less.
constexpr int64_t kLargestCancelled = 16;

// Tells whether sums were centred that are much larger than the result, of some image.
bool cancels(const GramFeatures& f, const float* mean, const float* gram, double scale) {
  constexpr int64_t kSums = 16;  // at a time
  const double largest = double(std::min(kLargestCancelled, f.c));
  for (int64_t n = 0; n < f.n; ++n) {
    double subtracted = 0, squares[kSums] = {};
    for (int64_t i = n * f.c; i < (n + 1) * f.c; ++i) subtracted += double(mean[i]) * mean[i];
    const float* g = gram + n * f.c * f.c;
    const int64_t count = f.c * f.c, whole = count / kSums * kSums;
    for (int64_t i = 0; i < whole; i += kSums)
      for (int64_t j = 0; j < kSums; ++j) squares[j] += double(g[i + j]) * g[i + j];
    for (int64_t i = whole; i < count; ++i) squares[0] += double(g[i]) * g[i];
    double square = 0;
    for (const double some : squares) square += some;
    subtracted *= std::abs(scale) * double(f.pixels);
    if (!(subtracted <= largest * std::sqrt(square))) return true;  // NaN too
  }
  return false;
}

Tensor gram_of(const GramFeatures& f, const std::optional<Tensor>& mean, double scale) {
  const DType dtype = dtype_of(f.x);
  const int64_t wanted =
      std::max(f.pixels / kChunks, std::min(kEnoughPixels, f.n * f.pixels / kFewestTasks));
  const int64_t per_chunk =
      std::max(kChunkPixels, (wanted + kChunkPixels - 1) / kChunkPixels * kChunkPixels);
  const int64_t chunks = std::max<int64_t>(1, (f.pixels + per_chunk - 1) / per_chunk);
  const int64_t width = kernels().padded_channels(dtype, f.c);
  const int64_t workers = parallel_workers(f.n * chunks, per_chunk * f.c);
  Tensor gram = empty({f.n, f.c, f.c}, f.x, wide_dtype(f.x));
  // Sums of one chunk an image are finished by the worker that computed them.
  const int64_t sum_count = chunks == 1 ? workers : f.n * chunks;
  Tensor sums = empty({sum_count * width * width}, f.x, wide_dtype(f.x));
  Tensor panels = empty({workers * kernels().panel_elements(dtype, f.c)}, f.x, wide_dtype(f.x));
  GramMatrix args{
      .dtype = dtype,
      .layout = f.layout,
      .n = f.n,
      .c = f.c,
      .pixels = f.pixels,
      .x = f.x.const_data_ptr(),
      .mean = data(mean),
      .centers_sums = mean.has_value() && dtype == DType::bfloat16 && kernels().multiplies_bfloat16,
      .scale = scale,
      .gram = gram.mutable_data_ptr(),
      .chunk_pixels = per_chunk,
      .chunks = chunks,
      .sums = sums.mutable_data_ptr(),
      .panels = panels.mutable_data_ptr(),
  };
  kernels().forward(args);
  if (args.centers_sums && cancels(f, static_cast<const float*>(args.mean),
                                   static_cast<const float*>(args.gram), scale)) {
    args.centers_sums = false;
    kernels().forward(args);
  }
  return gram;
}

// Returns (2, N, C), the mean of features that are to be centred and its rounding error, or nothing
// of others.
std::optional<Tensor> mean_of(const GramFeatures& f, bool center) {
  if (!center) return std::nullopt;
  return exact_mean(f.images());
}

std::tuple<Tensor, Tensor> gram_matrix(Tensor x, std::optional<double> scale, bool center) {
  const GramFeatures f(x);
  const std::optional<Tensor> mean = mean_of(f, center);
  return {gram_of(f, mean, f.scale(scale)), or_empty(mean, x)};
}

// Returns scale (grad + grad^T) (x - mean).
Tensor product_with(Tensor grad, const GramFeatures& f, std::optional<Tensor> mean, double scale) {
  const DType dtype = dtype_of(f.x);
  mean = checked_mean(mean, f);
  grad = checked_gradient(grad, f);
  const int64_t width = kernels().padded_channels(dtype, f.c);
  Tensor grad_x = empty_like(f.x, f.layout);
  Tensor product = empty({f.n * width * width}, f.x, wide_dtype(f.x));
  Tensor offsets = empty({f.n * width}, f.x, wide_dtype(f.x));
  Tensor panels = empty({parallel_workers(f.n * f.c * f.pixels, 1 << 20) *
                         kernels().backward_panel_elements(dtype, f.c)},
                        f.x, wide_dtype(f.x));
  kernels().backward({
      .dtype = dtype,
      .layout = f.layout,
      .n = f.n,
      .c = f.c,
      .pixels = f.pixels,
      .grad = grad.const_data_ptr(),
      .x = f.x.const_data_ptr(),
      .mean = data(mean),
      .scale = scale,
      .grad_x = grad_x.mutable_data_ptr(),
      .product = product.mutable_data_ptr(),
      .offsets = offsets.mutable_data_ptr(),
      .panels = panels.mutable_data_ptr(),
  });
  return grad_x;
}

Tensor gram_matrix_backward(Tensor grad, Tensor x, std::optional<Tensor> mean,
                            std::optional<double> scale) {
  const GramFeatures f(x);
  return product_with(grad, f, mean, f.scale(scale));
}

// Turns a Gram matrix into the gradient of its mean squared error; returns that error.
template <class W>
double squared_error(W* gram, const W* target, int64_t n, int64_t target_n, int64_t size) {
  const int64_t rows = n * size;
  const double count = double(rows) * double(size);
  std::vector<double> errors(rows);  // added up in order, to be the same run to run
  parallel_tasks(rows, size, [&](int64_t row) {
    W* g = gram + row * size;
    const W* t = target + (target_n == 1 ? row % size : row) * size;
    double error = 0;
    for (int64_t j = 0; j < size; ++j) {
      const W difference = g[j] - t[j];
      error += double(difference) * double(difference);
      g[j] = W(2.0 / count) * difference;
    }
    errors[row] = error;
  });
  double total = 0;
  for (const double error : errors) total += error;
  return total / count;
}

// Returns the gradient with respect to the Gram matrix, and writes the loss to loss[layer].
Tensor loss_of(const GramFeatures& f, const std::optional<Tensor>& mean, Tensor target,
               std::optional<double> scale, Tensor& loss, int64_t layer) {
  const Tensor& x = f.x;
  target = checked_target(target, f);
  Tensor gram = gram_of(f, mean, f.scale(scale));
  const int64_t target_n = is_shared(target) ? 1 : f.n;
  if (wide_dtype(x) == ScalarType::Double)
    static_cast<double*>(loss.mutable_data_ptr())[layer] =
        squared_error(static_cast<double*>(gram.mutable_data_ptr()),
                      static_cast<const double*>(target.const_data_ptr()), f.n, target_n, f.c);
  else
    static_cast<float*>(loss.mutable_data_ptr())[layer] = float(
        squared_error(static_cast<float*>(gram.mutable_data_ptr()),
                      static_cast<const float*>(target.const_data_ptr()), f.n, target_n, f.c));
  return gram;
}

std::tuple<Tensor, Tensor, Tensor> gram_loss(Tensor x, Tensor target, std::optional<double> scale,
                                             bool center) {
  const GramFeatures f(x);
  const std::optional<Tensor> mean = mean_of(f, center);
  Tensor loss = empty({}, x, wide_dtype(x));
  Tensor grad_gram = loss_of(f, mean, target, scale, loss, 0);
  return {loss, grad_gram, or_empty(mean, x)};
}

// Takes layer by layer: one alone fills the machine.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> gram_losses(
    std::vector<Tensor> features, std::vector<Tensor> targets, Scales scales, bool center) {
  check_layers(features, targets, scales);
  const Tensor& first = features[0];
  Tensor losses = empty({int64_t(features.size())}, first, wide_dtype(first));
  std::vector<Tensor> grad_grams, means;
  for (size_t i = 0; i < features.size(); ++i) {
    const GramFeatures f(features[i]);
    const std::optional<Tensor> mean = mean_of(f, center);
    grad_grams.push_back(loss_of(f, mean, targets[i], scale_of(scales, i), losses, i));
    if (center) means.push_back(*mean);
  }
  return {losses, grad_grams, means};
}

std::vector<Tensor> gram_losses_backward(std::vector<Tensor> features,
                                         std::vector<Tensor> grad_grams, std::vector<Tensor> means,
                                         Tensor grad, Scales scales) {
  grad = torch::stable::contiguous(grad);
  check_gradients_of_layers(features, grad_grams, means, grad, scales);
  std::vector<Tensor> grad_features;
  for (size_t i = 0; i < features.size(); ++i) {
    const GramFeatures f(features[i]);
    const double factor = wide_dtype(f.x) == ScalarType::Double
                              ? static_cast<const double*>(grad.const_data_ptr())[i]
                              : static_cast<const float*>(grad.const_data_ptr())[i];
    const std::optional<Tensor> mean = means.empty() ? std::nullopt : std::optional(means[i]);
    grad_features.push_back(
        product_with(grad_grams[i], f, mean, factor * f.scale(scale_of(scales, i))));
  }
  return grad_features;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stylekernels, CPU, m) {
  m.impl("gram_matrix", TORCH_BOX(&gram_matrix));
  m.impl("gram_matrix_backward", TORCH_BOX(&gram_matrix_backward));
  m.impl("gram_loss", TORCH_BOX(&gram_loss));
  m.impl("gram_losses", TORCH_BOX(&gram_losses));
  m.impl("gram_losses_backward", TORCH_BOX(&gram_losses_backward));
}

}  // namespace stylekernels
