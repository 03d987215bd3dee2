// CUDA's runtime for the host code of ops: the current device, its stream, and launches.
#pragma once

#include "device.cuh"

#ifdef __CUDACC__  // else tests/cuda_emulation/device.h has the same names

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <mutex>
#include <set>
#include <type_traits>
#include <utility>

// Registers the kernels of ops: STYLEKERNELS_CUDA_OPS(m) { m.impl(name, function); }
#define STYLEKERNELS_CUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(stylekernels, CUDA, m)

namespace stylekernels::device {

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

inline int current_device() {
  int device;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

inline int attribute(cudaDeviceAttr attribute) {
  int value;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "cudaDeviceGetAttribute");
  return value;
}

// Does nothing: its attributes are those of all kernels.
template <class>
__global__ void empty_kernel() {}

// Tells whether the kernels that the current device runs can use clusters. PTX for older GPUs, as
// TORCH_CUDA_ARCH_LIST=8.0+PTX makes it, has no instructions for them; newer GPUs run it too.
inline bool uses_clusters() {
  cudaFuncAttributes compiled;
  check(cudaFuncGetAttributes(&compiled, empty_kernel<void>), "cudaFuncGetAttributes");
  return compiled.ptxVersion >= 90;
}

// Limits of the current device. Clusters of 16 are those of data centres' Hopper and Blackwell;
// every GPU with clusters has 8.
inline const Properties& properties() {
  thread_local int device = -1;
  thread_local Properties found;
  if (const int current = current_device(); current != device) {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor);
    found = {attribute(cudaDevAttrMultiProcessorCount),
             attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
             !uses_clusters() ? 1
             : major <= 10    ? kLargestCluster
                              : 8};
    device = current;
  }
  return found;
}

// Lets a kernel have all the shared memory and the largest clusters of the current device. These do
// not depend on the launch, so that they are set once for each kernel and device.
inline void permit(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> done;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair<const void*, int> key{kernel, current_device()};
  if (done.count(key) > 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             properties().shared_bytes),
        "cudaFuncSetAttribute, shared memory");
  if (properties().largest_cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cudaFuncSetAttribute, clusters");
  done.insert(key);
}

// Returns the blocks of the largest cluster that the current device can run, if each has so many
// threads and all the shared memory that a block can have: fewer than its kind of GPU allows where
// a part of it (MIG) has fewer multiprocessors side by side. It is found once for each kernel and
// device. A size for which the query fails does not fit either.
template <class... Parameters>
int largest_cluster(void (*kernel)(Parameters...), int threads) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> found;
  const void* function = reinterpret_cast<const void*>(kernel);
  permit(function);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = found.try_emplace({function, current_device()}, 1);
  if (!is_new) return entry->second;
  for (int cluster = properties().largest_cluster; cluster > 1; cluster /= 2) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    cudaLaunchConfig_t grid{};
    grid.gridDim = dim3(unsigned(cluster));
    grid.blockDim = dim3(unsigned(threads));
    grid.dynamicSmemBytes = size_t(properties().shared_bytes);
    grid.attrs = &attribute;
    grid.numAttrs = 1;
    int active = 0;
    if (cudaOccupancyMaxActiveClusters(&active, function, &grid) == cudaSuccess && active > 0) {
      entry->second = cluster;
      break;
    }
    cudaGetLastError();  // clears the error of the query
  }
  return entry->second;
}

// Makes the device of a call's tensors current, and has PyTorch's stream there.
//
// The function that returns the stream is in libtorch_cuda.so, which the library is not linked to:
// it would not load into a PyTorch without CUDA.
class DeviceAndStream {
 public:
  explicit DeviceAndStream(int device) : guard_(device) {
    using Function = int32_t (*)(int32_t, void**);
    static const auto function = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
      return reinterpret_cast<Function>(
          dlsym(library != nullptr ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    }();
    STD_TORCH_CHECK(function != nullptr, "expected a PyTorch with CUDA, found no libtorch_cuda.so");
    STD_TORCH_CHECK(function(device, &stream_) == 0, "PyTorch has no current stream on device ",
                    device);
  }

  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// Launches a kernel on the current device.
template <class... Parameters>
void launch(const Launch& config, void* stream, void (*kernel)(Parameters...),
            std::decay_t<Parameters>... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  permit(function);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t grid{};
  grid.gridDim = dim3(unsigned(config.blocks));
  grid.blockDim = dim3(unsigned(config.threads));
  grid.dynamicSmemBytes = size_t(config.shared_bytes);
  grid.stream = static_cast<cudaStream_t>(stream);
  grid.attrs = attributes;
  if (config.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[grid.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {unsigned(config.cluster), 1, 1};
  }
  if (config.cooperative) {
    cudaLaunchAttribute& cooperative = attributes[grid.numAttrs++];
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
  }
  void* pointers[] = {&arguments...};
  check(cudaLaunchKernelExC(&grid, function, pointers), "cudaLaunchKernelExC");
}

}  // namespace stylekernels::device

#endif
