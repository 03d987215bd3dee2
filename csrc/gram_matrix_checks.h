// Features of Gram matrices, and checks of the arguments of their ops, for every device.
#pragma once

#include <vector>

#include "tensors.h"

namespace stylekernels {

// Features as the kernels see them: C channels of P pixels, dense, in one of the two layouts.
struct GramFeatures {
  Layout layout;
  Tensor x;
  int64_t n, c, pixels;

  explicit GramFeatures(const Tensor& features)
      : layout((check_rank(features, "x", 3, 4), layout_of(features))),
        x(with_layout(features, layout)),
        n(x.size(0)),
        c(x.size(1)),
        pixels(x.size(2) * (x.dim() == 4 ? x.size(3) : 1)) {
    STD_TORCH_CHECK(c > 0 && pixels > 0, "x: expected at least one channel and one pixel, got ",
                    text_of(shape_of(features)));
  }

  // The scale of the Gram matrices, unless one is given.
  double scale(std::optional<double> given) const {
    return given.value_or(1.0 / (double(c) * double(pixels)));
  }

  // x with four dimensions.
  Tensor images() const { return x.dim() == 4 ? x : torch::stable::unsqueeze(x, 3); }
};

// One factor for each layer, or none.
using Scales = std::optional<std::vector<double>>;

inline std::optional<double> scale_of(const Scales& scales, size_t layer) {
  return scales.has_value() ? std::optional((*scales)[layer]) : std::nullopt;
}

// Returns the target of a loss, contiguous, (N, C, C), (1, C, C) or (C, C).
inline Tensor checked_target(const Tensor& target, const GramFeatures& f) {
  check_dtype(target, "target", wide_dtype(f.x));
  check_device(target, "target", f.x);
  STD_TORCH_CHECK(has_shape(target, {f.n, f.c, f.c}) || has_shape(target, {1, f.c, f.c}) ||
                      has_shape(target, {f.c, f.c}),
                  "target: expected shape (N, C, C) = ", text_of({f.n, f.c, f.c}),
                  ", (1, C, C) or (C, C), got ", text_of(shape_of(target)));
  return torch::stable::contiguous(target);
}

// Tells whether all images share a target.
inline bool is_shared(const Tensor& target) { return target.dim() == 2 || target.size(0) == 1; }

// Returns the gradient of Gram matrices, contiguous.
inline Tensor checked_gradient(const Tensor& grad, const GramFeatures& f) {
  check_shape(grad, "grad", {f.n, f.c, f.c});
  check_dtype(grad, "grad", wide_dtype(f.x));
  check_device(grad, "grad", f.x);
  return torch::stable::contiguous(grad);
}

// Returns the means of features and their rounding errors, contiguous, or nothing.
inline std::optional<Tensor> checked_mean(const std::optional<Tensor>& mean,
                                          const GramFeatures& f) {
  if (!mean.has_value()) return std::nullopt;
  check_shape(*mean, "mean", {2, f.n, f.c});
  check_dtype(*mean, "mean", wide_dtype(f.x));
  check_device(mean, "mean", f.x);
  return torch::stable::contiguous(*mean);
}

// Returns the result `mean` of an op: empty where features are not centred.
inline Tensor or_empty(const std::optional<Tensor>& mean, const Tensor& x) {
  return mean.has_value() ? *mean : empty({0}, x, wide_dtype(x));
}

inline void check_each(const std::vector<Tensor>& features) {
  for (const Tensor& x : features) {
    check_device(x, "features", features[0]);
    STD_TORCH_CHECK(x.scalar_type() == features[0].scalar_type(), "features: expected ",
                    name_of(features[0].scalar_type()), " as in the first layer, got ",
                    name_of(x.scalar_type()));
  }
}

inline void check_layers(const std::vector<Tensor>& features, const std::vector<Tensor>& targets,
                         const Scales& scales) {
  STD_TORCH_CHECK(!features.empty() && features.size() == targets.size() &&
                      (!scales.has_value() || scales->size() == features.size()),
                  "targets, scales: expected one for each layer, and at least one layer, got ",
                  features.size(), " layers, ", targets.size(), " targets and ",
                  scales.has_value() ? scales->size() : features.size(), " scales");
  check_each(features);
}

inline void check_gradients_of_layers(const std::vector<Tensor>& features,
                                      const std::vector<Tensor>& grad_grams,
                                      const std::vector<Tensor>& means, const Tensor& grad,
                                      const Scales& scales) {
  STD_TORCH_CHECK(!features.empty() && features.size() == grad_grams.size() &&
                      (means.empty() || means.size() == features.size()) &&
                      (!scales.has_value() || scales->size() == features.size()),
                  "grad_grams, means, scales: expected one for each layer, and at least one layer, "
                  "got ",
                  features.size(), " layers, ", grad_grams.size(), " gradients, ", means.size(),
                  " means and ", scales.has_value() ? scales->size() : features.size(), " scales");
  check_shape(grad, "grad", {int64_t(features.size())});
  check_dtype(grad, "grad", wide_dtype(features[0]));
  check_device(grad, "grad", features[0]);
  check_each(features);
}

}  // namespace stylekernels
