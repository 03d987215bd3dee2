// Gradient of a Gram matrix of bfloat16 features, by products of pairs of channels. See
// gram_matrix.cpp for the division of work.
#pragma once

#include "gram_features.h"

#if HAS_PAIRS
namespace stylekernels::CPU_CAPABILITY {

// Returns the offset of element (i, j) of the symmetric factor S: in rows, or for channels_last in
// panels whose rows are pairs of rows of S.
inline int64_t offset_in_pairs(bool panels, int64_t width, int64_t i, int64_t j) {
  constexpr int64_t kColumns = kPanel<VecF>;
  if (!panels) return i * width + j;
  return j / kColumns * width * kColumns + i / 2 * 2 * kColumns + j % kColumns * 2 + i % 2;
}

// Computes grad_x of `count` pixels from `first` on. `packed` has room for all their channels.
inline void backward_chunk_of_pairs(const GramMatrixBackward& args, int64_t n, int64_t first,
                                    int64_t count, int64_t width, BFloat16* packed) {
  constexpr int64_t kColumns = kPanel<VecF>;
  const int64_t c = args.c, pairs = (c + 1) / 2;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t offset = n * c * args.pixels + first * (contiguous ? 1 : c);
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + offset;
  BFloat16* grad_x = static_cast<BFloat16*>(args.grad_x) + offset;
  const BFloat16* product = reinterpret_cast<const BFloat16*>(
      static_cast<const float*>(args.product) + n * width * width);
  const float* offsets = args.mean ? static_cast<const float*>(args.offsets) + n * width : nullptr;

  if (contiguous) {  // rows of S, panels of pixels
    for (int64_t p = 0; p < count; p += kColumns) {
      for (int64_t k = 0; k < c; k += 2) {
        const BFloat16* even = x + k * args.pixels + p;
        pack_pairs_of_planes(even, k + 1 < c ? even + args.pixels : nullptr, count - p,
                             packed + k * kColumns);
      }
      for (int64_t i = 0; i < c; i += kBlockRows) {
        const BFloat16* rows[kBlockRows];
        for (int r = 0; r < kBlockRows; ++r) rows[r] = product + smaller(i + r, c - 1) * width;
        VecF sums[kBlockRows][2];
        clear(sums);
        for (int r = 0; offsets && r < kBlockRows; ++r)
          sums[r][0] = sums[r][1] = splat<VecF>(offsets[smaller(i + r, c - 1)]);
        multiply_panel(rows, 2, packed, pairs, sums);
        for (int64_t r = 0; r < smaller<int64_t>(kBlockRows, c - i); ++r)
          store_columns(grad_x + (i + r) * args.pixels + p, sums[r], count - p);
      }
    }
    return;
  }
  const int64_t pitch = 2 * pairs;
  for (int64_t p = 0; p < count; ++p) {  // rows of pixels, panels of S
    std::memcpy(packed + p * pitch, x + p * c, c * sizeof(BFloat16));
    if (c < pitch) packed[p * pitch + c] = {};
  }
  for (int64_t column = 0; column < c; column += kColumns) {
    for (int64_t p = 0; p < count; p += kBlockRows) {
      const BFloat16* rows[kBlockRows];
      for (int r = 0; r < kBlockRows; ++r) rows[r] = packed + smaller(p + r, count - 1) * pitch;
      VecF sums[kBlockRows][2];
      clear(sums);
      for (int r = 0; offsets && r < kBlockRows; ++r)
        for (int v = 0; v < 2; ++v) sums[r][v] = load<VecF>(offsets + column + v * kLanes<VecF>);
      multiply_panel(rows, 2, product + column * width, pairs, sums);
      for (int64_t r = 0; r < smaller<int64_t>(kBlockRows, count - p); ++r)
        store_columns(grad_x + (p + r) * c + column, sums[r], c - column);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
