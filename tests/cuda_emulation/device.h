// What csrc/cuda/device.cuh and launch.cuh define for nvcc, for the emulated device.
//
// Compile kernels with `g++ -x c++ -std=c++20 -I csrc -I tests/cuda_emulation`, and link the .cpp
// files of this folder. A tensor's memory is the emulated device's global memory.
#pragma once

#include <cstring>
#include <type_traits>

#include "conversions.h"
#include "launch.h"
#include "matrices.h"
#include "operations.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

// Namespaces of the emulated device's ops, compiled as for Hopper and as for other GPUs:
// tests/emulated_cuda.py defines the ops.
#ifdef CUDA_EMULATION_OTHERS
#define STYLEKERNELS_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(stylekernels_emulated_others, CPU, m)
#else
#define STYLEKERNELS_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(stylekernels_emulated, CPU, m)
#endif

namespace stylekernels::device {

#ifdef CUDA_EMULATION_OTHERS
constexpr bool kHopper = false;
#else
constexpr bool kHopper = true;
#endif

// -- indices -----------------------------------------------------------------------------------

using emulation::block_index;
using emulation::block_threads;
using emulation::grid_blocks;
using emulation::shared_memory;
using emulation::thread_index;

// -- warps and blocks --------------------------------------------------------------------------

using emulation::block_barrier;
using emulation::warp_barrier;

template <class T>
T shuffle_xor(T value, int mask) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::shuffle_xor(bits, mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T shuffle(T value, int lane) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::shuffle(bits, lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// -- global memory -----------------------------------------------------------------------------

inline Vector16 load16(const void* from) {
  emulation::check_global(from, 16, 16, "reads 16 bytes from");
  Vector16 value;
  std::memcpy(&value, from, 16);
  return value;
}

inline void store16(void* to, const Vector16& value) {
  emulation::check_global(to, 16, 16, "writes 16 bytes to");
  std::memcpy(to, &value, 16);
}

using emulation::check_aligned;
using emulation::commit_copies;
using emulation::copy16_async;
using emulation::count_arrival;

template <int kPending>
void wait_for_copies() {
  static_assert(kPending >= 0);
  emulation::wait_for_copies(kPending);
}

// -- matrices ----------------------------------------------------------------------------------

using emulation::load_matrices;
using emulation::load_matrices_transposed;

template <class T>
void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
  if constexpr (std::is_same_v<T, BFloat16>)
    emulation::multiply_bfloat16(sums, a, b);
  else
    emulation::multiply_float16(sums, a, b);
}

inline void multiply_tf32(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::multiply_tf32(sums, a, b);
}

inline void multiply_float64(double (&sums)[2], double a, double b) {
  emulation::multiply_float64(sums, a, b);
}

// -- clusters ----------------------------------------------------------------------------------

using emulation::cluster_arrive;
using emulation::cluster_wait;

// Writes are visible at once, whatever the order.
inline void cluster_arrive_relaxed() { emulation::cluster_arrive(); }

template <class T>
const T* shared_of(const T* shared, int rank) {
  return static_cast<const T*>(emulation::shared_of(shared, rank));
}

// -- grids -------------------------------------------------------------------------------------

using emulation::grid_barrier;

// -- values ------------------------------------------------------------------------------------

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return emulation::widened(value); }
inline float widen(Float16 value) { return emulation::widened(value); }

inline void round_to(float value, float& result) { result = value; }
inline void round_to(double value, double& result) { result = value; }
inline void round_to(float value, BFloat16& result) { result = emulation::to_bfloat16(value); }
inline void round_to(float value, Float16& result) { result = emulation::to_float16(value); }

using emulation::to_tf32;

// -- launches ----------------------------------------------------------------------------------

using emulation::properties;

template <class... Parameters>
int largest_cluster(void (*)(Parameters...), int threads) {
  return emulation::largest_cluster(threads);
}

// A call's device and stream: there is one of each.
class DeviceAndStream {
 public:
  explicit DeviceAndStream(int) {}
  void* stream() const { return nullptr; }
};

template <class... Parameters>
void launch(const Launch& config, void*, void (*kernel)(Parameters...),
            std::decay_t<Parameters>... arguments) {
  emulation::run(config, [&] { kernel(arguments...); });
}

}  // namespace stylekernels::device
