// Launches on the emulated device.
#pragma once

#include <functional>

namespace stylekernels::device {
struct Launch;
struct Properties;
}  // namespace stylekernels::device

namespace stylekernels::device::emulation {

// Limits of the emulated device. The environment variables CUDA_EMULATION_MULTIPROCESSORS,
// CUDA_EMULATION_SHARED_BYTES and CUDA_EMULATION_LARGEST_CLUSTER change them.
Properties properties();

// Returns the blocks of the largest cluster that fits, if each has all the shared memory that a
// block can have. CUDA_EMULATION_CLUSTER_MULTIPROCESSORS is the number of multiprocessors for a
// cluster.
int largest_cluster(int threads);

// Calls the kernel in each thread of a grid, and returns when all have exited. Throws if a GPU
// would refuse the launch, if threads wait for what never happens, and what the kernel throws. A
// thread's access to an inaccessible address ends the process after a message. CUDA_EMULATION_SEED
// sets the order of the threads; without it, each launch has another one.
void run(const Launch& config, const std::function<void()>& kernel);

}  // namespace stylekernels::device::emulation
