// Small dense products: the register-blocked inner loop, and packing panels for it.
#pragma once

#include "shuffles.h"

#if defined(__AVX512BF16__)
#define HAS_PAIRS 1  // vdpbf16ps: products of bfloat16 pairs, added up in float32
#else
#define HAS_PAIRS 0
#endif

namespace stylekernels::CPU_CAPABILITY {

// A panel is the packed right operand of the inner loop: for each k, kPanel columns side by side,
// in two vectors. The register block is kBlockRows rows x kPanel columns of accumulators: each step
// loads the two vectors of a panel's row and multiplies them with kBlockRows broadcast values.
//
// Accumulators take 12 of 16 vector registers (AVX2) or 16 of 32 (AVX-512): more than the 8 that
// two multiply-adds per cycle need to hide their latency of four.
template <class V>
constexpr int kPanel = 2 * kLanes<V>;
constexpr int kBlockRows = VECTOR_BYTES == 64 ? 8 : 6;

// Terms that one lane of an accumulator takes per step: 2 for bfloat16 pairs.
template <class R>
constexpr int kTermsPerLane = sizeof(R) == 2 ? 2 : 1;

// Rows of the convolution's register block, for values R. Pairs are multiplied twice as fast, so
// that 24 accumulators pay: panels are read less often (a fifth of the time of a convolution).
// float32 loses a tenth by it.
template <class R>
constexpr int kBlockRowsOf = kTermsPerLane<R> == 2 ? 12 : kBlockRows;

// Computes a * b + sum, of vectors of values R.
template <class R, class V>
inline V add_products(V a, V b, V sum) {
#if HAS_PAIRS
  if constexpr (kTermsPerLane<R> == 2) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
  return multiply_add(a, b, sum);
}

// Zeroes a register block, accumulator by accumulator. An initialiser {} fills memory first: that
// takes as long as ten steps of the inner loop, and the compiler keeps more accumulators in memory.
template <class V, int kCount, int kVectors>
inline void clear(V (&sums)[kCount][kVectors]) {
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = V{};
}

// Adds to a register block: sums[r] += a[r][k * a_k] * b[k] over `depth` values of k, with kVectors
// vectors of the kPanel columns of b.
template <class V, int kCount, int kVectors>
inline void multiply_panel(const ElementOf<V>* const (&a)[kCount], int64_t a_k,
                           const ElementOf<V>* b, int64_t depth, V (&sums)[kCount][kVectors]) {
  const int64_t end = depth * a_k;
  for (int64_t k = 0; k < end; k += a_k) {
    V columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = load<V>(b + v * kLanes<V>);
    b += kPanel<V>;
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      const V value = splat<V>(a[r][k]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add(value, columns[v], sums[r][v]);
    }
  }
}

#if HAS_PAIRS
// Does the same for bfloat16 pairs: a[r][k * a_k] is a pair, and the panel has a pair for each of
// its columns.
template <int kCount, int kVectors>
inline void multiply_panel(const BFloat16* const (&a)[kCount], int64_t a_k, const BFloat16* b,
                           int64_t pairs, VecF (&sums)[kCount][kVectors]) {
  const int64_t end = pairs * a_k;
  for (int64_t k = 0; k < end; k += a_k) {
    VecF columns[kVectors];
    for (int v = 0; v < kVectors; ++v)
      std::memcpy(&columns[v], b + v * 2 * kLanes<VecF>, sizeof(VecF));
    b += 2 * kPanel<VecF>;
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r) {
      float bits;
      std::memcpy(&bits, a[r] + k, sizeof(bits));
      const VecF pair = _mm512_set1_ps(bits);  // moves bits, where splat subtracts zero
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = add_products<BFloat16>(pair, columns[v], sums[r][v]);
    }
  }
}
#endif

// Stores a row of a register block: `columns` of its kPanel columns, or all.
template <class V, class T>
inline void store_columns(T* p, const V (&row)[2], int64_t columns) {
  if (columns >= kPanel<V>) {
    store(p, row[0]);
    store(p + kLanes<V>, row[1]);
    return;
  }
  ElementOf<V> values[kPanel<V>];
  store(values, row[0]);
  store(values + kLanes<V>, row[1]);
  for (int64_t j = 0; j < columns; ++j) store(p + j, values[j]);
}

// Packs a panel of up to kPanel columns of x, `column_stride` apart, at `depth` values of k that
// are `k_stride` apart (one of the strides is 1): panel[k][column], minus mean[column] and its
// rounding error if given, and zero for columns from `columns` on.
template <class V, class T>
inline void pack_panel(const T* x, int64_t k_stride, int64_t column_stride, int64_t columns,
                       int64_t depth, const ElementOf<V>* mean, const ElementOf<V>* mean_error,
                       ElementOf<V>* panel) {
  using W = ElementOf<V>;
  W center[kPanel<V>], error[kPanel<V>];
  for (int j = 0; j < kPanel<V>; ++j) {
    center[j] = mean && j < columns ? mean[j] : W(0);
    error[j] = mean && j < columns ? mean_error[j] : W(0);
  }
  const auto scalar = [&](int64_t k, int64_t j) {
    panel[k * kPanel<V> + j] =
        j < columns ? load<W>(x + k * k_stride + j * column_stride) - center[j] - error[j] : W(0);
  };
  int64_t k = 0;
  if (columns == kPanel<V> && column_stride == 1) {
    const V c0 = load<V>(center), c1 = load<V>(center + kLanes<V>);
    const V e0 = load<V>(error), e1 = load<V>(error + kLanes<V>);
    for (; k < depth; ++k) {
      V left = load<V>(x + k * k_stride), right = load<V>(x + k * k_stride + kLanes<V>);
      if (mean) left = left - c0 - e0, right = right - c1 - e1;
      store(panel + k * kPanel<V>, left);
      store(panel + k * kPanel<V> + kLanes<V>, right);
    }
  } else if (columns == kPanel<V> && k_stride == 1) {
    // Reads whole cache lines of few channels at a time: if planes are a power of two in size, the
    // same pixels of all channels compete for one set of the cache.
    for (; k + kPanel<V> <= depth; k += kPanel<V>) {
      for (int half = 0; half < kPanel<V>; half += kLanes<V>) {
        for (int64_t first = k; first < k + kPanel<V>; first += kLanes<V>) {
          V rows[kLanes<V>];
          for (int j = 0; j < kLanes<V>; ++j) {
            rows[j] = load<V>(x + first + (half + j) * column_stride);
            if (mean) rows[j] = rows[j] - splat<V>(center[half + j]) - splat<V>(error[half + j]);
          }
          transpose(rows);
          for (int j = 0; j < kLanes<V>; ++j)
            store(panel + (first + j) * kPanel<V> + half, rows[j]);
        }
      }
    }
  }
  for (; k < depth; ++k)
    for (int j = 0; j < kPanel<V>; ++j) scalar(k, j);
}

}  // namespace stylekernels::CPU_CAPABILITY
