// Instance and group norm: arguments of the kernels, which csrc/cpu/instance_norm.cpp fills in.
#pragma once

#include <cstdint>

#include "../types.h"

namespace stylekernels {

// Division of x into chunks, each a task with partial sums of its own. These are merged in the
// order of the chunks, so that results do not depend on timing. The division depends on the shape
// alone.
struct PlaneGrid {
  DType dtype;
  Layout layout;
  int64_t n, c;
  int64_t group;         // consecutive channels that share mean and variance: 1 in instance norm
  int64_t pixels;        // H * W
  int64_t chunk_pixels;  // pixels of one chunk of one plane (contiguous) or image (channels_last)
  int64_t chunks;        // per plane or image; one empty chunk without pixels
  bool whole_groups;     // a task takes a group of planes: it reads them again from its cache
};

// Parameters are float, or double for float64 x. Pointers may be null where a comment says so.
struct InstanceNormStats {
  PlaneGrid grid;
  const void* x;
  void* mean;        // (N, C), out
  void* mean_error;  // (N, C), out: the rounding error of mean; null: not wanted
  void* var;         // (N, C), out: biased variance
  double* partials;  // (N, chunks, 2, C) for channels_last, (N C, chunks, 2, 1) for contiguous
};

struct InstanceNormForward {
  PlaneGrid grid;
  const void* x;
  const void* residual;  // null: none
  void* y;
  const void* weight;     // null: 1
  const void* bias;       // null: 0
  int64_t weight_stride;  // elements from one image's weights to the next: 0 or C
  int64_t bias_stride;
  const void* mean_in;  // (N, C), given statistics; null: those of x
  const void* var_in;
  int64_t mean_stride;
  int64_t var_stride;
  Activation activation;
  double negative_slope;
  bool residual_first;
  bool stream;  // streaming stores: y is too large for the caches
  double eps;
  void* mean;          // (2, N, C), out: the mean used, its group's, and its rounding error
  void* rstd;          // (N, C), out: 1 / sqrt(variance used + eps)
  double* partials;    // as in InstanceNormStats
  void* coefficients;  // 3 x coefficient_elements() scratch
};

struct InstanceNormBackward {
  PlaneGrid grid;
  const void* grad;
  const void* x;
  const void* residual;  // null unless it was added before the activation
  void* grad_x;
  void* grad_residual;  // null: not wanted
  const void* weight;
  const void* bias;
  int64_t weight_stride;
  int64_t bias_stride;
  const void* mean;  // (2, N, C): mean and its rounding error
  const void* rstd;
  Activation activation;
  double negative_slope;
  bool own_stats;  // mean and rstd come from x: the gradient runs through them
  bool stream;
  void* sum_grad;             // (N, C), out
  void* sum_grad_normalized;  // (N, C), out
  double* partials;           // as in InstanceNormStats
  void* coefficients;         // 5 x coefficient_elements() scratch
};

struct InstanceNormKernels {
  int64_t (*coefficient_elements)(const PlaneGrid&);
  void (*stats)(const InstanceNormStats&);
  void (*forward)(const InstanceNormForward&);
  void (*backward)(const InstanceNormBackward&);
};

#define DECLARE_KERNELS(capability)                       \
  namespace capability {                                  \
  extern const InstanceNormKernels instance_norm_kernels; \
  }
DECLARE_KERNELS(baseline)
DECLARE_KERNELS(avx2)
DECLARE_KERNELS(avx512)
DECLARE_KERNELS(avx512_bf16)
#undef DECLARE_KERNELS

}  // namespace stylekernels
