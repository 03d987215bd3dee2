// What a thread of the emulated grid can do. device.h gives it the names that kernels use.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stylekernels::device::emulation {

int thread_index();
int block_threads();
int block_index();
int grid_blocks();
unsigned char* shared_memory();

void block_barrier();
void warp_barrier();
// Values are up to 8 bytes. They throw if a lane's number is not in the warp.
uint64_t shuffle_xor(uint64_t value, int mask);
uint64_t shuffle(uint64_t value, int lane);

// Throws if an address is not in global memory, or not a multiple of the alignment.
void check_aligned(const void* address, size_t alignment);
void check_global(const void* address, size_t bytes, size_t alignment, const char* what);
void copy16_async(void* shared, const void* global, int bytes);
void commit_copies();
void wait_for_copies(int pending);
int count_arrival(int* counter);

int cluster_blocks();
int cluster_rank();
void cluster_arrive();
void cluster_wait();
const void* shared_of(const void* shared, int rank);

void grid_barrier();

}  // namespace stylekernels::device::emulation
