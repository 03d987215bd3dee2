// Checks of the arguments of instance norm's ops, for every device.
#pragma once

#include "tensors.h"

namespace stylekernels {

// Checks that groups of `group` channels divide the channels of x.
inline void check_group(const Tensor& x, int64_t group) {
  STD_TORCH_CHECK(group >= 1 && x.size(1) % group == 0,
                  "group: expected a number that divides the channels, ", x.size(1), ", got ",
                  group);
}

inline void check_instance_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& residual,
                                const std::optional<Tensor>& mean, const std::optional<Tensor>& var,
                                int64_t group) {
  check_rank(x, "x", 4, 4);
  check_group(x, group);
  check_per_channel(weight, "weight", x.size(0), x.size(1));
  check_per_channel(bias, "bias", x.size(0), x.size(1));
  check_per_channel(mean, "mean", x.size(0), x.size(1));
  check_per_channel(var, "var", x.size(0), x.size(1));
  check_like(residual, "residual", x);
  check_device(weight, "weight", x);
  check_device(bias, "bias", x);
  check_device(residual, "residual", x);
  check_device(mean, "mean", x);
  check_device(var, "var", x);
  STD_TORCH_CHECK(mean.has_value() == var.has_value(),
                  "mean, var: expected both or neither, got one of them; pass both");
}

inline void check_instance_norm_backward(const Tensor& grad, const Tensor& x,
                                         const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& bias,
                                         const std::optional<Tensor>& residual, const Tensor& mean,
                                         const Tensor& rstd, int64_t group) {
  check_rank(x, "x", 4, 4);
  check_group(x, group);
  check_like(grad, "grad", x);
  check_like(residual, "residual", x);
  check_per_channel(weight, "weight", x.size(0), x.size(1));
  check_per_channel(bias, "bias", x.size(0), x.size(1));
  check_shape(mean, "mean", {2, x.size(0), x.size(1)});
  check_shape(rstd, "rstd", {x.size(0), x.size(1)});
  check_dtype(mean, "mean", wide_dtype(x));
  check_dtype(rstd, "rstd", wide_dtype(x));
  check_device(grad, "grad", x);
  check_device(weight, "weight", x);
  check_device(bias, "bias", x);
  check_device(residual, "residual", x);
  check_device(mean, "mean", x);
  check_device(rstd, "rstd", x);
}

// Returns the shape in which the kernels of the backward pass write the sums of planes: (N, C), or
// (C,) if the sums over all images are wanted and there is one image.
inline Shape sums_shape(const Tensor& x, bool sum_images) {
  if (sum_images && x.size(0) == 1) return {x.size(1)};
  return {x.size(0), x.size(1)};
}

}  // namespace stylekernels
