// A vector pair (`Pair`) holds consecutive elements of memory in two vectors, in the order that
// costs least. For bfloat16 that is the even elements in `a` and the odd ones in `b`: a shift and a
// mask separate them, and one blend joins them. Keeping the order would take two loads that widen
// and two shifts.
#pragma once

#include "simd.h"

namespace stylekernels::CPU_CAPABILITY {

template <class V>
struct Pair {
  V a, b;
};

template <class V>
constexpr int kPairLanes = 2 * kLanes<V>;

// Maps lane j of a vector pair to its element of memory; the lanes of b come after those of a.
template <class T>
constexpr int element_of_lane(int j) {
  constexpr int kHalf = kLanes<Vec<T>>;
  if constexpr (std::is_same_v<T, BFloat16>) return j < kHalf ? 2 * j : 2 * (j - kHalf) + 1;
  return j;
}

// Returns v with elements [begin, end) of memory, and zeros for the others.
template <class T>
inline Pair<Vec<T>> only_elements(const Pair<Vec<T>>& v, int64_t begin, int64_t end) {
  using V = Vec<T>;
  V first, second;
  for (int j = 0; j < kLanes<V>; ++j) {
    first[j] = ElementOf<V>(element_of_lane<T>(j));
    second[j] = ElementOf<V>(element_of_lane<T>(kLanes<V> + j));
  }
  const V low = splat<V>(ElementOf<V>(begin)), high = splat<V>(ElementOf<V>(end));
  const auto only = [&](V v, V element) {
    return element >= low ? (element < high ? v : V{}) : V{};
  };
  return {only(v.a, first), only(v.b, second)};
}

template <class V>
inline Pair<V> load_lanes(const ElementOf<V>* p) {
  return {load<V>(p), load<V>(p + kLanes<V>)};
}

template <class V>
inline Pair<V> splat_pair(ElementOf<V> value) {
  return {splat<V>(value), splat<V>(value)};
}

template <class T>
inline Pair<Vec<T>> load_pair(const T* p) {
  using V = Vec<T>;
  if constexpr (std::is_same_v<T, BFloat16>) {
    VecU bits;
    std::memcpy(&bits, p, sizeof(bits));
    return {(V)(bits << 16), (V)(bits & 0xffff0000u)};
  } else {
    return {load<V>(p), load<V>(p + kLanes<V>)};
  }
}

#if defined(__AVX512F__)
using Bits = __m512i;
inline void stream(Bits* p, Bits v) { _mm512_stream_si512(p, v); }
#elif defined(__AVX2__)
using Bits = __m256i;
inline void stream(Bits* p, Bits v) { _mm256_stream_si256(p, v); }
#else
using Bits = VecU;
inline void stream(Bits* p, Bits v) { std::memcpy(p, &v, sizeof(v)); }
#endif

#if defined(__AVX512F__)
// Interleaves the 16-bit elements of the lower half with those of the upper half.
inline Bits interleaved(Bits halves) {
  const VecU even = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return _mm512_permutexvar_epi16((Bits)(even | (even + 16) << 16), halves);
}
#endif

inline Bits bits_of_pair(VecF even, VecF odd) {
#if ROUNDS_BFLOAT16
  return interleaved((Bits)_mm512_cvtne2ps_pbh(odd, even));
#else
  const VecU low = round_to_bfloat16(even) >> 16, high = round_to_bfloat16(odd);
#if defined(__AVX512F__)
  return _mm512_mask_blend_epi16(0xaaaaaaaa, (Bits)low, (Bits)high);
#elif defined(__AVX2__)
  return _mm256_blend_epi16((Bits)low, (Bits)high, 0xaa);
#else
  return low | (high & 0xffff0000u);
#endif
#endif
}

// Stores a vector pair. `past_caches` asks for streaming stores, if the machine has them: p must
// then be aligned to the size of a vector.
template <class T>
inline void store_pair(T* p, Pair<Vec<T>> v, bool past_caches) {
  using V = Vec<T>;
  if constexpr (sizeof(T) == sizeof(ElementOf<V>)) {
    if (past_caches) {
      stream((Bits*)p, (Bits)v.a);
      stream((Bits*)p + 1, (Bits)v.b);
    } else {
      store(p, v.a);
      store(p + kLanes<V>, v.b);
    }
  } else {
    Bits bits;
    if constexpr (std::is_same_v<T, BFloat16>) {
      bits = bits_of_pair(v.a, v.b);
    } else {
      T rounded[kPairLanes<V>];
      store(rounded, v.a);
      store(rounded + kLanes<V>, v.b);
      std::memcpy(&bits, rounded, sizeof(bits));
    }
    if (past_caches)
      stream((Bits*)p, bits);
    else
      std::memcpy(p, &bits, sizeof(bits));
  }
}

// Copies the first `count` elements of a vector pair in memory.
template <class T>
inline void copy_first(const T* from, T* to, int64_t count) {
#if defined(__AVX512BW__)
  for (int64_t rest = count * int64_t(sizeof(T)), done = 0; rest > 0; rest -= 64, done += 64) {
    const __mmask64 bytes = rest >= 64 ? ~__mmask64(0) : (__mmask64(1) << rest) - 1;
    _mm512_mask_storeu_epi8((char*)to + done, bytes,
                            _mm512_maskz_loadu_epi8(bytes, (const char*)from + done));
  }
#else
  std::memcpy(to, from, count * sizeof(T));
#endif
}

// Access to all of a vector pair.
struct WholePair {
  template <class T>
  inline Pair<Vec<T>> load(const T* p) const {
    return load_pair(p);
  }
  template <class T>
  inline void store(T* p, const Pair<Vec<T>>& v, bool past_caches) const {
    store_pair(p, v, past_caches);
  }
};

// Access to the first `count` elements of a vector pair: the others are 0, and are not written.
struct FirstOfPair {
  int64_t count;

  template <class T>
  inline Pair<Vec<T>> load(const T* p) const {
    T values[kPairLanes<Vec<T>>] = {};
    copy_first(p, values, count);
    return load_pair(values);
  }
  template <class T>
  inline void store(T* p, const Pair<Vec<T>>& v, bool) const {
    T values[kPairLanes<Vec<T>>];
    store_pair(values, v, false);
    copy_first(values, p, count);
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
