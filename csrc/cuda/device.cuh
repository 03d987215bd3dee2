// CUDA's builtins for kernels: indices, barriers, shuffles, asynchronous copies, clusters.
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
  int largest_cluster;  // 1 before compute capability 9.0
};

}  // namespace stylekernels::device

#ifndef __CUDACC__
#include "device.h"  // tests/cuda_emulation
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace stylekernels::device {

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

// Begins to copy 16 aligned bytes from global to shared memory.
__device__ inline void copy16_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(uint32_t(__cvta_generic_to_shared(shared))), "l"(global)
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

// -- clusters ----------------------------------------------------------------------------------

__device__ inline int cluster_blocks() {
  int blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// The block's number in its cluster.
__device__ inline int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Says that this thread has reached the barrier of the cluster; its writes become visible to those
// that wait for it.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
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

}  // namespace stylekernels::device

#endif
