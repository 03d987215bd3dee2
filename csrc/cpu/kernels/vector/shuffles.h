// Shuffles of the lanes of several vectors: transposing, and interleaving three channels.
#pragma once

#include "simd.h"

namespace stylekernels::CPU_CAPABILITY {

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

}  // namespace stylekernels::CPU_CAPABILITY
