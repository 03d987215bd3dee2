// Conversions between float32 and 16 bits, as the GPU has them: to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "types.h"

namespace stylekernels::device::emulation {

constexpr uint16_t kNaN = 0x7FFF;

inline float widened(BFloat16 value) { return std::bit_cast<float>(uint32_t(value.bits) << 16); }

inline float widened(Float16 value) {
  const int exponent = value.bits >> 10 & 31;
  const int mantissa = value.bits & 1023;
  float result;
  if (exponent == 31)
    result = mantissa == 0 ? INFINITY : NAN;
  else if (exponent == 0)
    result = std::ldexp(float(mantissa), -24);
  else
    result = std::ldexp(float(mantissa + 1024), exponent - 25);
  return value.bits & 0x8000 ? -result : result;
}

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

}  // namespace stylekernels::device::emulation
