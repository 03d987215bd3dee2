// Gram matrix: arguments of the kernels, which csrc/cpu/gram_matrix.cpp fills in.
#pragma once

#include <cstdint>

#include "../types.h"

namespace stylekernels {

// gram[n] = scale * (x[n] - mean[n]) (x[n] - mean[n])^T, summed over pixels: one triangle is
// computed and mirrored. Statistics and Gram matrices are float, or double for float64 x.
struct GramMatrix {
  DType dtype;
  Layout layout;
  int64_t n, c, pixels;
  const void* x;
  const void* mean;   // (2, N, C): mean and its rounding error; null: not centred
  bool centers_sums;  // features are multiplied as they are, and the sums are centred
  double scale;
  void* gram;            // (N, C, C), out
  int64_t chunk_pixels;  // pixels summed by one task (split-K): by the shape alone
  int64_t chunks;        // per image
  void* sums;            // (N x chunks, or workers if chunks is 1; padded C, padded C) scratch
  void* panels;          // workers x panel_elements() scratch
};

// grad_x[n] = scale * (grad[n] + grad[n]^T) (x[n] - mean[n])
struct GramMatrixBackward {
  DType dtype;
  Layout layout;
  int64_t n, c, pixels;
  const void* grad;  // (N, C, C)
  const void* x;
  const void* mean;  // (2, N, C): mean and its rounding error; null: not centred
  double scale;
  void* grad_x;   // out
  void* product;  // (N, padded C, padded C) scratch
  void* offsets;  // (N, padded C) scratch: minus the sum over channels of S mean
  void* panels;   // workers x backward_panel_elements() scratch
};

struct GramMatrixKernels {
  bool multiplies_bfloat16;  // without widening; only then centers_sums may be set, for bfloat16
  int64_t (*padded_channels)(DType dtype, int64_t c);
  int64_t (*panel_elements)(DType dtype, int64_t c);  // scratch of one worker
  int64_t (*backward_panel_elements)(DType dtype, int64_t c);
  void (*forward)(const GramMatrix&);
  void (*backward)(const GramMatrixBackward&);
};

#define DECLARE_KERNELS(capability)                   \
  namespace capability {                              \
  extern const GramMatrixKernels gram_matrix_kernels; \
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
