#include "launch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "faults.h"
#include "grid.h"

namespace stylekernels::device::emulation {

namespace {

using std::to_string;

constexpr int kLargestBlock = 1024;
// Of a multiprocessor of compute capability 9.0.
constexpr int kThreads = 2048, kBlocks = 32;
constexpr int kReservedBytes = 1 << 10;  // of shared memory, for each block

int environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char* end;
  const long value = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < 0 || value > 1 << 30)
    throw std::runtime_error(std::string(name) + ": expected a number, got " + text);
  return int(value);
}

void expect(bool condition, const std::string& expected, int got) {
  if (!condition)
    throw std::runtime_error("CUDA emulation: launch: expected " + expected + ", got " +
                             to_string(got));
}

// Multiprocessors side by side, to which the blocks of a cluster are confined: a GPC's.
int cluster_multiprocessors() { return environment("CUDA_EMULATION_CLUSTER_MULTIPROCESSORS", 16); }

// Blocks that share a multiprocessor.
int blocks_of_multiprocessor(int threads, int shared_bytes) {
  return std::min({kBlocks, kThreads / threads,
                   (properties().shared_bytes + kReservedBytes) / (shared_bytes + kReservedBytes)});
}

// Throws if a GPU would refuse the launch. It cannot know what registers allow.
void check(const Launch& config) {
  const Properties limits = properties();
  expect(config.blocks >= 1, "at least 1 block", config.blocks);
  expect(config.threads >= 1 && config.threads <= kLargestBlock, "1 to 1024 threads",
         config.threads);
  expect(config.threads % kWarp == 0, "threads of whole warps", config.threads);
  expect(config.shared_bytes >= 0 && config.shared_bytes <= limits.shared_bytes,
         "shared_bytes from 0 to " + to_string(limits.shared_bytes), config.shared_bytes);
  expect(config.cluster >= 1 && config.cluster <= limits.largest_cluster,
         "a cluster of 1 to " + to_string(limits.largest_cluster) + " blocks", config.cluster);
  expect(config.blocks % config.cluster == 0,
         "a multiple of the cluster's " + to_string(config.cluster) + " blocks", config.blocks);
  const int fit = blocks_of_multiprocessor(config.threads, config.shared_bytes);
  expect(config.cluster <= cluster_multiprocessors() * fit,
         "a cluster of at most " + to_string(cluster_multiprocessors() * fit) +
             " blocks, which fit on " + to_string(cluster_multiprocessors()) + " multiprocessors",
         config.cluster);
  if (!config.cooperative) return;
  expect(config.blocks <= limits.multiprocessors * fit,
         "at most " + to_string(limits.multiprocessors * fit) +
             " blocks at the same time, as the launch is cooperative",
         config.blocks);
}

unsigned next_seed() {
  static std::atomic<unsigned> launches{0};
  const unsigned own = launches++;
  return unsigned(environment("CUDA_EMULATION_SEED", int(own % (1u << 30))));
}

}  // namespace

Properties properties() {
  return {environment("CUDA_EMULATION_MULTIPROCESSORS", 8),
          environment("CUDA_EMULATION_SHARED_BYTES", 227 << 10),
          environment("CUDA_EMULATION_LARGEST_CLUSTER", kLargestCluster)};
}

int largest_cluster(int threads) {
  const int fit =
      cluster_multiprocessors() * blocks_of_multiprocessor(threads, properties().shared_bytes);
  int cluster = properties().largest_cluster;
  while (cluster > std::max(fit, 1)) cluster /= 2;
  return cluster;
}

void run(const Launch& config, const std::function<void()>& kernel) {
  if (current != nullptr) throw std::runtime_error("CUDA emulation: a kernel launches a kernel");
  check(config);
  watch_faults();
  Grid(config, kernel, next_seed()).run();
}

}  // namespace stylekernels::device::emulation
