// Small dense products: the register-blocked inner loop, and packing panels for it.
#pragma once

#include "simd.h"

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

// Transposes kLanes x kLanes values.
template <class V>
[[gnu::always_inline]] inline void transpose(V (&rows)[kLanes<V>]) {
#if defined(__AVX2__)
  if constexpr (sizeof(ElementOf<V>) == 4) {
    V t[kLanes<V>];
    for (int g = 0; g < kLanes<V>; g += 4) {  // 4 x 4 inside each 128 bits
#if defined(__AVX512F__)
      const auto low = [](V a, V b) { return (V)_mm512_unpacklo_ps(a, b); };
      const auto high = [](V a, V b) { return (V)_mm512_unpackhi_ps(a, b); };
      const auto low2 = [](V a, V b) { return (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); };
      const auto high2 = [](V a, V b) { return (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); };
#else
      const auto low = [](V a, V b) { return (V)_mm256_unpacklo_ps(a, b); };
      const auto high = [](V a, V b) { return (V)_mm256_unpackhi_ps(a, b); };
      const auto low2 = [](V a, V b) { return (V)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); };
      const auto high2 = [](V a, V b) { return (V)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); };
#endif
      const V s0 = low(rows[g], rows[g + 1]), s1 = high(rows[g], rows[g + 1]);
      const V s2 = low(rows[g + 2], rows[g + 3]), s3 = high(rows[g + 2], rows[g + 3]);
      t[g] = low2(s0, s2), t[g + 1] = high2(s0, s2);
      t[g + 2] = low2(s1, s3), t[g + 3] = high2(s1, s3);
    }
    for (int j = 0; j < 4; ++j) {  // then the 128-bit lanes among each other
#if defined(__AVX512F__)
      const V u0 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
      const V u1 = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
      const V u2 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
      const V u3 = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
      rows[j] = _mm512_shuffle_f32x4(u0, u2, 0x88);
      rows[4 + j] = _mm512_shuffle_f32x4(u1, u3, 0x88);
      rows[8 + j] = _mm512_shuffle_f32x4(u0, u2, 0xdd);
      rows[12 + j] = _mm512_shuffle_f32x4(u1, u3, 0xdd);
#else
      rows[j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x20);
      rows[4 + j] = _mm256_permute2f128_ps(t[j], t[4 + j], 0x31);
#endif
    }
    return;
  }
#endif
  for (int i = 0; i < kLanes<V>; ++i)
    for (int j = 0; j < i; ++j) {
      const ElementOf<V> swapped = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = swapped;
    }
}

// Lanes and elements of (de)interleaving three channels. Element i of channel k is element 3 i + k
// of the three interleaved vectors: it has lane (3 i + k) % kCount in one of them. The elements of
// one channel have different lanes, so that a permutation per channel and blends suffice.
struct LanesOfThree {
  static constexpr int kCount = kLanes<VecF>;
  int32_t lane[3][kCount];     // lane of element i of channel k
  int32_t element[3][kCount];  // element of channel k in a lane

  constexpr LanesOfThree() : lane{}, element{} {
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < kCount; ++i) {
        lane[k][i] = (3 * i + k) % kCount;
        element[k][lane[k][i]] = i;
      }
  }
};
inline constexpr LanesOfThree kLanesOfThree;

// Takes lanes 0, 3, 6 ... of v[first], 1, 4, 7 ... of v[second] and the others of v[third].
template <int first, int second, int third>
inline VecF blend_three(const VecF (&v)[3]) {
#if defined(__AVX512F__)
  const VecF two_of_three = _mm512_mask_blend_ps(0x2492, v[first], v[second]);
  return _mm512_mask_blend_ps(0x4924, two_of_three, v[third]);
#elif defined(__AVX2__)
  return _mm256_blend_ps(_mm256_blend_ps(v[first], v[second], 0x92), v[third], 0x24);
#else
  return VecF{v[first][0], v[second][1], v[third][2], v[first][3]};
#endif
}

inline VecF permute(VecF v, const int32_t* from) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(_mm512_loadu_si512(from), v);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(v, _mm256_loadu_si256((const __m256i*)from));
#else
  return VecF{v[from[0]], v[from[1]], v[from[2]], v[from[3]]};
#endif
}

// Interleaves three channels: v[k] holds channel k before, and the k-th part of the whole after.
inline void interleave_three(VecF (&v)[3]) {
  constexpr bool k16 = kLanes<VecF> % 3 == 1;
  VecF permuted[3];
  for (int k = 0; k < 3; ++k) permuted[k] = permute(v[k], kLanesOfThree.element[k]);
  v[0] = blend_three<0, 1, 2>(permuted);
  v[1] = k16 ? blend_three<1, 2, 0>(permuted) : blend_three<2, 0, 1>(permuted);
  v[2] = k16 ? blend_three<2, 0, 1>(permuted) : blend_three<1, 2, 0>(permuted);
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
