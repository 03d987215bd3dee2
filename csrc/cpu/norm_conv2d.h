// Deferred-norm convolution: arguments of the kernels, which csrc/cpu/norm_conv2d.cpp fills in.
#pragma once

#include <cstdint>

#include "../conv_geometry.h"

namespace stylekernels {

// Kernel size from which nested Winograd transforms may be used, and from which bands are taller,
// because many input rows are read by two bands.
constexpr int64_t kLargeKernel = 5;

struct NormConv2d : ConvGeometry {
  DType dtype;
  Layout layout;
  int64_t n, cin, h, w;
  int64_t cout, rows, columns;  // output pixels of one parity: all of them, or a crop
  const void* x;
  bool bytes_in;            // x holds unsigned bytes, 0 to 255
  const void* scale_shift;  // (N, Cin, 2), float or double; null: x as it is
  Activation activation;
  double negative_slope;
  const void* residual;  // null: none
  void* input;           // x's shape, out: the input as it is convolved; null: not wanted
  const void* weight;
  int64_t weight_cout, weight_cin, weight_row, weight_column;  // strides of weight, in elements
  const void* bias;  // (Cout), float or double; null: none
  void* packed;      // packed weights: packed_elements(), written by pack()
  void* y;           // (N, Cout, parities * rows, parities * columns), out
  bool bytes_out;    // y holds unsigned bytes: rounded, 0 below and 255 above
  void* mean;        // (N, Cout), out; null: not wanted
  void* var;
  const void* norm_weight;  // (Cout), float or double, of the instance norm that follows; null: 1
  const void* norm_bias;    // null: 0
  double eps;
  void* next_scale_shift;  // (N, Cout, 2), out: that norm as scale and shift; null: not wanted
  int64_t band;            // output rows with partial statistics of their own: by the shape alone
  int64_t bands;           // per image
  int64_t band_cost;       // time of a band, in elements of a pass over memory
  int64_t tasks;           // each of one band or several consecutive ones
  const int64_t* task_begins;  // tasks + 1: the first band of each, counted over all images
  double* partials;            // (N, bands, 2, Cout) scratch: mean and m2, as in Moments
  void* coefficients;          // (2, N, Cin) scratch
  void* rows_memory;           // workers x worker_elements() scratch

  bool wants_statistics() const { return mean != nullptr || next_scale_shift != nullptr; }
};

// Sizes are in elements of the wide type. packed_elements and pack see the weights only, nothing of
// an image.
struct NormConv2dKernels {
  int64_t (*packed_elements)(const NormConv2d&);
  void (*pack)(const NormConv2d&);
  int64_t (*worker_elements)(const NormConv2d&);
  void (*run)(const NormConv2d&);
};

#define DECLARE_KERNELS(capability)                   \
  namespace capability {                              \
  extern const NormConv2dKernels norm_conv2d_kernels; \
  }
DECLARE_KERNELS(baseline)
DECLARE_KERNELS(avx2)
DECLARE_KERNELS(avx512)
DECLARE_KERNELS(avx512_bf16)
DECLARE_KERNELS(amx)
DECLARE_KERNELS(amx_emulated)
DECLARE_KERNELS(amx_emulated_avx512)
#undef DECLARE_KERNELS

}  // namespace stylekernels
