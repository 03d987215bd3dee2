// Vectors of the width of the capability this file is compiled for, over the compilers' vector
// extensions. Arithmetic, comparison and ?: are the language's own and work on any machine. This
// file adds what the extensions lack: loads and stores that convert, and a few functions.
//
// Kernels are templates over V, a vector or its scalar: loops run on vectors, tails on scalars.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../../types.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#if defined(__AVX512BF16__)
#define ROUNDS_BFLOAT16 1  // vcvtneps2bf16, which reads subnormal numbers as 0
#else
#define ROUNDS_BFLOAT16 0
#endif

namespace stylekernels::CPU_CAPABILITY {

typedef float VecF __attribute__((vector_size(VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t VecI __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t VecU __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t VecH __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class W>
struct VecOf;
template <>
struct VecOf<float> {
  using Type = VecF;
};
template <>
struct VecOf<double> {
  using Type = VecD;
};
template <class T>
using Vec = typename VecOf<Wide<T>>::Type;

template <class V>
struct Element {
  using Type = V;
};
template <>
struct Element<VecF> {
  using Type = float;
};
template <>
struct Element<VecD> {
  using Type = double;
};
template <class V>
using ElementOf = typename Element<V>::Type;

template <class V>
constexpr int kLanes = sizeof(V) / sizeof(ElementOf<V>);

template <class T>
inline T smaller(T a, T b) {
  return a < b ? a : b;
}

// Divides and rounds up.
constexpr int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <class V>
inline V splat(ElementOf<V> value) {
  if constexpr (kLanes<V> == 1) {
    return value;
  } else {
    return value - V{};  // -0.0 and NaN survive a subtraction of zero
  }
}

template <class V>
inline V constant(double value) {
  return splat<V>(ElementOf<V>(value));
}

// -- bfloat16 and float16, one value ---------------------------------------------------------

inline float widen(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return {uint16_t(0x7fc0)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float widen(Float16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  uint32_t bits;
  float result;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {
    result = float(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &result, 4);
  }
  bits |= sign;
  std::memcpy(&result, &bits, 4);
  return result;
#endif
}

inline Float16 to_float16(float value) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(value, 0))};
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return {uint16_t(sign | (bits - 0x3f000000))};
  }
  bits += 0xfff + ((bits >> 13) & 1) - (112u << 23);
  return {uint16_t(sign | (bits >> 13))};
#endif
}

// -- loads and stores ------------------------------------------------------------------------

template <class V>
inline V load(const ElementOf<V>* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
inline V load(const BFloat16* p) {
  if constexpr (kLanes<V> == 1) {
    return widen(*p);
  } else {
#if defined(__AVX512F__)
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    VecH half;
    std::memcpy(&half, p, sizeof(half));
    return (V)(__builtin_convertvector(half, VecU) << 16);
#endif
  }
}

template <class V>
inline V load(const Float16* p) {
  if constexpr (kLanes<V> == 1) {
    return widen(*p);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    V v;
    for (int i = 0; i < kLanes<V>; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }
}

template <class V>
inline V load(const uint8_t* p) {
  if constexpr (kLanes<V> == 1) {
    return V(*p);
  } else {
    if constexpr (sizeof(ElementOf<V>) == 4) {
#if defined(__AVX512F__)
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#endif
    }
    V v;
    for (int i = 0; i < kLanes<V>; ++i) v[i] = p[i];
    return v;
  }
}

template <class V>
inline void store(ElementOf<V>* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

// Rounds to nearest, clamps to 0 and 255; NaN becomes 0.
template <class V>
inline void store(uint8_t* p, V v) {
  if constexpr (kLanes<V> == 1) {
    const float value = v > 0 ? v < 255 ? float(v) : 255.0f : 0.0f;
    *p = uint8_t(int(value + 12582912.0f - 12582912.0f));  // rounds to even, as vectors do
  } else {
#if defined(__AVX512F__) || defined(__AVX2__)
    if constexpr (sizeof(ElementOf<V>) == 4) {
      const V clamped = v > 0 ? (v < 255 ? v : splat<V>(255)) : V{};
#if defined(__AVX512F__)
      _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped)));
#else
      const __m256i whole = _mm256_cvtps_epi32(clamped);
      const __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
      const __m128i halves = _mm_packus_epi32(low, high);
      _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(halves, halves));
#endif
      return;
    }
#endif
    for (int i = 0; i < kLanes<V>; ++i) store(p + i, v[i]);
  }
}

inline void store(BFloat16* p, float value) { *p = to_bfloat16(value); }
inline void store(Float16* p, float value) { *p = to_float16(value); }

// Rounds to nearest even: bfloat16 in the low half of each element. NaN keeps its upper half: as a
// result of arithmetic it is quiet.
inline VecU bfloat16_bits(VecF v) {
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return v == v ? rounded : bits >> 16;
}

inline void store(BFloat16* p, VecF v) {
#if ROUNDS_BFLOAT16
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#elif defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)bfloat16_bits(v)));
#elif defined(__AVX2__)
  const __m256i bits = (__m256i)bfloat16_bits(v), packed = _mm256_packus_epi32(bits, bits);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  const VecH half = __builtin_convertvector(bfloat16_bits(v), VecH);
  std::memcpy(p, &half, sizeof(half));
#endif
}

inline void store(Float16* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, 0));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, 0));
#else
  for (int i = 0; i < kLanes<VecF>; ++i) p[i] = to_float16(v[i]);
#endif
}

// Rounds to nearest even: bfloat16 in the upper half of each element. Unlike bfloat16_bits it
// relies on NaN being quiet with a lower half of zeros: arithmetic on bfloat16 values and on the
// kernels' own coefficients leaves no other.
inline VecU round_to_bfloat16(VecF v) {
  const VecU bits = (VecU)v;
  return bits + (((bits >> 16) & 1) + 0x7fff);
}

// Rounds v to T: the value that is read back after v was stored as a T.
template <class T, class V>
inline V rounded_to(V v) {
  if constexpr (sizeof(T) == sizeof(ElementOf<V>)) {
    return v;
  } else if constexpr (std::is_same_v<T, BFloat16> && kLanes<V> > 1 && !ROUNDS_BFLOAT16) {
    return (V)(round_to_bfloat16(v) & 0xffff0000u);
  } else {
    T rounded[kLanes<V>];
    store(rounded, v);
    return load<V>(rounded);
  }
}

// -- functions -------------------------------------------------------------------------------

template <class V>
inline V multiply_add(V a, V b, V c) {
  return a * b + c;  // contracted to one instruction where the machine has it
}

// Computes a * b + c, rounded once. Without an instruction for it float products are taken in
// double precision, where they are exact: half the speed. Use it if c cancels most of a * b.
template <class V>
inline V multiply_add_rounded_once(V a, V b, V c) {
#if !defined(__FMA__) && !defined(__FP_FAST_FMAF)
  if constexpr (std::is_same_v<ElementOf<V>, float>) {
    if constexpr (kLanes<V> == 1) {
      return (float)((double)a * b + c);
    } else {
      typedef double Doubles __attribute__((vector_size(2 * VECTOR_BYTES)));
      const Doubles product =
          __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles);
      return __builtin_convertvector(product + __builtin_convertvector(c, Doubles), V);
    }
  }
#endif
  return multiply_add(a, b, c);
}

}  // namespace stylekernels::CPU_CAPABILITY
