// Conversions between float32, 16 bits and tf32, as the GPU has them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "types.h"

namespace stylekernels::device::emulation {

constexpr uint16_t kNaN = 0x7FFF;

inline float widened(BFloat16 value) { return std::bit_cast<float>(uint32_t(value.bits) << 16); }

inline float widened(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t size = value.bits & 0x7FFF;
  // The exponent's bias is 127 in place of 15; that of infinity and NaN is the highest in both.
  const uint32_t bias = size >= 0x7C00 ? 224u << 23 : 112u << 23;
  const float subnormal = float(size) * 0x1p-24f;
  const uint32_t bits = size < 0x0400 ? std::bit_cast<uint32_t>(subnormal) : (size << 13) + bias;
  return std::bit_cast<float>(sign | bits);
}

// To nearest, ties to even.
inline BFloat16 to_bfloat16(float value) {
  if (std::isnan(value)) return {kNaN};
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return {uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline Float16 to_float16(float value) {
  if (std::isnan(value)) return {kNaN};
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return {uint16_t(sign | 0x7C00)};  // infinite
  // Units in the last place: of subnormal numbers 2^-24, and of a number from 2^e on 2^(e - 10).
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const auto units = uint16_t(std::nearbyint(std::ldexp(size, 10 - exponent)));  // up to 2048
  return {uint16_t(sign | (((exponent + 14) << 10) + units))};
}

// The bits of a float32 that tf32 lacks.
constexpr uint32_t kBelowTf32 = (1u << 13) - 1;

// To nearest, ties away from zero.
inline uint32_t to_tf32(float value) {
  if (std::isnan(value)) return 0x7FFFFFFF;
  return (std::bit_cast<uint32_t>(value) + (kBelowTf32 + 1) / 2) & ~kBelowTf32;
}

// A sum of tensor cores: rounded toward zero to float32. From 2^128 on it is infinite.
inline float truncated(double value) {
  if (std::isnan(value)) return std::bit_cast<float>(0x7FFFFFFF);
  const float nearest = float(value);
  const bool away = std::fabs(nearest) > std::fabs(value) && std::fabs(value) < 0x1p128;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - (away ? 1 : 0));
}

}  // namespace stylekernels::device::emulation
