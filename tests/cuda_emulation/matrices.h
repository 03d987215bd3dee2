// Tensor cores, as a thread of the emulated grid uses them.
#pragma once

#include <cstdint>

namespace stylekernels::device {
struct Vector16;
}

namespace stylekernels::device::emulation {

// Throw if a row is not in the block's shared memory, or not a multiple of 16. A row is read when
// its lane calls, so that lanes that have not written it yet are noticed.
Vector16 load_matrices(const void* row);
Vector16 load_matrices_transposed(const void* row);

// Products are exact. They and the previous sum are added in float64, and the result is rounded
// toward zero to float32, as by tensor cores. Not emulated: tensor cores also truncate the addends,
// which they align to the largest one. A NaN is 0x7FFFFFFF.
void multiply_bfloat16(float* sums, const uint32_t* a, const uint32_t* b);
void multiply_float16(float* sums, const uint32_t* a, const uint32_t* b);
void multiply_tf32(float* sums, const uint32_t* a, const uint32_t* b);
// Fused multiply-adds in float64.
void multiply_float64(double* sums, double a, double b);

}  // namespace stylekernels::device::emulation
