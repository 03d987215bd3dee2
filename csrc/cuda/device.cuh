// CUDA's builtins for kernels: indices, barriers, shuffles, asynchronous copies, tensor cores,
// clusters.
//
// nvcc compiles it to instructions. Any other compiler takes the same names from
// tests/cuda_emulation/device.h, which runs blocks as fibers on the CPU, so that tests need no GPU.
// Kernels have no other inline assembly and no other CUDA builtins, and all their shared memory is
// dynamic: `shared_memory()`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace stylekernels::device {

// Threads of a warp, which run in step.
constexpr int kWarp = 32;

// Blocks of a cluster at most. More than 8 need the permission that `launch` asks for.
constexpr int kLargestCluster = 16;

// a / b, rounded up.
constexpr int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 16 bytes, the most that a thread moves at once.
struct alignas(16) Vector16 {
  uint32_t words[4];
};

// Grid of a launch.
struct Launch {
  int blocks;
  int threads;       // of a block, whole warps
  int shared_bytes;  // of a block
  int cluster = 1;   // consecutive blocks that share their shared memory; divides the blocks
  // All blocks run at the same time, as `grid_barrier` needs. `launch` fails if they do not fit.
  bool cooperative = false;
};

// Limits of the current GPU.
struct Properties {
  int multiprocessors;
  int shared_bytes;     // of a block
  int largest_cluster;  // 1 in kernels compiled for less than compute capability 9.0
};

}  // namespace stylekernels::device

#ifndef __CUDACC__
#include "device.h"  // tests/cuda_emulation
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

namespace stylekernels::device {

// Tells whether code is compiled for compute capability 9.0. For other GPUs the compiler needs more
// registers, so that some kernels load fewer vectors at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr bool kHopper = false;
#else
constexpr bool kHopper = true;
#endif

// -- indices -----------------------------------------------------------------------------------

__device__ inline int thread_index() { return int(threadIdx.x); }
__device__ inline int block_threads() { return int(blockDim.x); }
__device__ inline int block_index() { return int(blockIdx.x); }
__device__ inline int grid_blocks() { return int(gridDim.x); }

// The block's shared memory, aligned to 128 bytes.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// -- warps and blocks --------------------------------------------------------------------------

// Waits for all threads of the block, and makes their writes visible to each other.
__device__ inline void block_barrier() { __syncthreads(); }

// Waits for all threads of the warp, and makes their writes visible to each other.
__device__ inline void warp_barrier() { __syncwarp(); }

// Returns the value of the lane whose number differs in the bits of `mask`. All lanes take part.
template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Returns the value of a lane. All lanes take part.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// -- global memory -----------------------------------------------------------------------------

// Reads 16 aligned bytes that nobody writes meanwhile.
__device__ inline Vector16 load16(const void* from) {
  const uint4 words = __ldg(static_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
}

// Writes 16 aligned bytes that nobody reads soon.
__device__ inline void store16(void* to, const Vector16& value) {
  __stcs(static_cast<uint4*>(to),
         make_uint4(value.words[0], value.words[1], value.words[2], value.words[3]));
}

// Checks the alignment of another access, on the emulated device: a GPU does so itself.
__device__ inline void check_aligned(const void*, size_t) {}

// Begins to copy `bytes` of 16 aligned bytes from global to shared memory; zeros follow them. With
// 0 bytes nothing is read, and `global` may be any address.
__device__ inline void copy16_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global), "r"(bytes)
               : "memory");
}

// Ends a group of copies: those that this thread began since the previous group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies, but for the last `kPending` groups. Other threads see what was
// copied after a barrier.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// Adds 1 to a counter in global memory and returns its value before. One thread of a block calls it
// after a `block_barrier`: what the block wrote is visible to the block that gets the last number.
__device__ inline int count_arrival(int* counter) {
  __threadfence();
  const int before = atomicAdd(counter, 1);
  __threadfence();
  return before;
}

// -- matrices ----------------------------------------------------------------------------------
//
// All lanes of a warp take part. Below, group = lane / 4 and member = lane % 4.

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8
// of matrix l / 8: 16 aligned bytes. Word m has the elements (group, 2 member) and (group,
// 2 member + 1) of matrix m, the first one in the low bits.
__device__ inline Vector16 load_matrices(const void* row) {
  Vector16 result;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result.words[0]), "=r"(result.words[1]), "=r"(result.words[2]),
                 "=r"(result.words[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
  return result;
}

// The same, transposed: word m has the elements (2 member, group) and (2 member + 1, group).
__device__ inline Vector16 load_matrices_transposed(const void* row) {
  Vector16 result;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result.words[0]), "=r"(result.words[1]), "=r"(result.words[2]),
                 "=r"(result.words[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
  return result;
}

// sums += a b of 16 x 16 and 16 x 8 BFloat16 or Float16. Word i of a has the rows group + 8 (i % 2)
// and the columns 2 member + 8 (i / 2) and + 1; word i of b the rows 2 member + 8 i and + 1 of
// column group; sum i is that of row group + 8 (i / 2) and column 2 member + i % 2.
template <class T>
__device__ inline void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>);
  if constexpr (std::is_same_v<T, BFloat16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums += a b of 16 x 8 and 8 x 8 tf32: bits of float32, whose low 13 are ignored. Word i of a is
// the element (group + 8 (i % 2), member + 4 (i / 2)), word i of b (member + 4 i, group); sums as
// above.
__device__ inline void multiply_tf32(float (&sums)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// sums += a b of 8 x 4 and 4 x 8 float64. a is the element (group, member), b (member, group); sum
// i is that of row group and column 2 member + i.
__device__ inline void multiply_float64(double (&sums)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(sums[0]), "+d"(sums[1])
      : "d"(a), "d"(b));
}

// -- clusters ----------------------------------------------------------------------------------

// Says that this thread has reached the barrier of the cluster; its writes become visible to those
// that wait for it.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// The same, for a thread that has written nothing that others wait for.
__device__ inline void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// Waits until all threads of the cluster have arrived.
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Returns the address in the shared memory of another block of the cluster that corresponds to
// `shared` in this block's.
template <class T>
__device__ inline const T* shared_of(const T* shared, int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<const T*>(address);
#else
  return shared;
#endif
}

// -- grids -------------------------------------------------------------------------------------

// Waits for all threads of a cooperative grid, and makes their writes visible to each other.
__device__ inline void grid_barrier() { cooperative_groups::this_grid().sync(); }

// -- values ------------------------------------------------------------------------------------

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(BFloat16 value) {
  return __uint_as_float(uint32_t(value.bits) << 16);
}
__device__ inline float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }

// Rounds to the nearest value of the type, ties to even.
__device__ inline void round_to(float value, float& result) { result = value; }
__device__ inline void round_to(double value, double& result) { result = value; }
__device__ inline void round_to(float value, BFloat16& result) {
  result = {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
__device__ inline void round_to(float value, Float16& result) {
  result = {__half_as_ushort(__float2half_rn(value))};
}

// Rounds float32 to the nearest tf32, ties away from zero, and returns its bits as a float32.
__device__ inline uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

}  // namespace stylekernels::device

#endif
