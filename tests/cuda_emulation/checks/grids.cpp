// Clusters, barriers over blocks, and launches.

#include <thread>

#include "checks.h"

namespace checks {

namespace {

enum class Fault {
  none,
  no_barrier,
  no_wait,
  no_arrival,
  one_missing,
  early_exit,
  exit_without_wait,
  rank_16,
  outside,
  no_second_barrier,
};

// Sum of the block's row, for its thread 0.
__device__ inline float row_sum(const float* row, int count) {
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  float sum = 0;
  for (int i = thread_index(); i < count; i += block_threads()) sum += row[i];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_index() % kWarp == 0) of_warps[thread_index() / kWarp] = sum;
  block_barrier();
  return of_warps[0] + of_warps[1];
}

constexpr int kThreads = 64, kCluster = 16;
constexpr int kTotal = 2;  // element of shared memory with the block's sum

// All blocks of a cluster have the sum of its rows.
template <Fault kFault>
__global__ void cluster_sums(const float* x, float* sums, int count) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const float own = row_sum(x + block_index() * count, count);
  if (thread_index() == 0) shared[kTotal] = own;
  if constexpr (kFault != Fault::no_barrier && kFault != Fault::no_arrival) {
    if (kFault != Fault::one_missing || block_index() != 3 || thread_index() != 40)
      cluster_arrive();
  }
  if constexpr (kFault != Fault::no_barrier && kFault != Fault::no_wait) {
    if (kFault != Fault::one_missing || block_index() != 3 || thread_index() != 40) cluster_wait();
  }
  if (thread_index() == 0) {
    float sum = 0;
    for (int rank = 0; rank < emulation::cluster_blocks() + (kFault == Fault::rank_16); rank++)
      sum += *shared_of(kFault == Fault::outside ? x : shared + kTotal, rank);
    sums[block_index()] = sum + 0.0f * float(emulation::cluster_rank());
  }
  if constexpr (kFault != Fault::early_exit) cluster_arrive();
  if constexpr (kFault != Fault::early_exit && kFault != Fault::exit_without_wait) cluster_wait();
}

template <Fault kFault>
bool check_cluster_sums() {
  constexpr int kBlocks = 2 * kCluster, kCount = 100;
  const std::vector<float> x = random(kBlocks * kCount);
  std::vector<float> sums(kBlocks, NAN);
  launch({.blocks = kBlocks, .threads = kThreads, .shared_bytes = 12, .cluster = kCluster}, nullptr,
         cluster_sums<kFault>, x.data(), sums.data(), kCount);
  bool right = true;
  for (int block = 0; block < kBlocks; block++)
    right &= near(sums[size_t(block)],
                  sum(&x[size_t(block / kCluster * kCluster * kCount)], kCluster * kCount));
  return right;
}

// All blocks have the sum of all rows.
template <Fault kFault>
__global__ void grid_sums(const float* x, float* of_threads, float* sums, int count) {
  float own = 0;
  for (int i = thread_index(); i < count; i += block_threads()) own += x[block_index() * count + i];
  of_threads[block_index() * block_threads() + thread_index()] = own;
  if constexpr (kFault == Fault::one_missing) {
    if (block_index() == 3 && thread_index() == 40) return;
  }
  if constexpr (kFault != Fault::no_barrier) grid_barrier();
  float sum = 0;
  for (int i = 0; i < grid_blocks() * block_threads(); i++) sum += of_threads[i];
  if constexpr (kFault != Fault::no_second_barrier) grid_barrier();
  of_threads[block_index() * block_threads() + thread_index()] = sum;
  block_barrier();
  const int neighbour = block_index() * block_threads() + (thread_index() + 1) % block_threads();
  sums[neighbour] = of_threads[neighbour];
}

template <Fault kFault>
bool check_grid_sums(bool cooperative = true) {
  constexpr int kBlocks = 12, kCount = 100;
  const std::vector<float> x = random(kBlocks * kCount);
  std::vector<float> of_threads(kBlocks * kThreads, NAN), sums(kBlocks * kThreads, NAN);
  launch({.blocks = kBlocks, .threads = kThreads, .shared_bytes = 0, .cooperative = cooperative},
         nullptr, grid_sums<kFault>, x.data(), of_threads.data(), sums.data(), kCount);
  bool right = true;
  for (float value : sums) right &= near(value, sum(x.data(), kBlocks * kCount));
  return right;
}

// Half of the block waits at one barrier, half at another.
template <Fault kFault>
__global__ void halves(int* passed) {
  if (kFault == Fault::none || thread_index() < kThreads / 2) block_barrier();
  grid_barrier();
  if (thread_index() == 0) *passed = 1;
}

template <Fault kFault>
bool check_halves() {
  int passed = 0;
  launch({.blocks = 1, .threads = kThreads, .shared_bytes = 0, .cooperative = true}, nullptr,
         halves<kFault>, &passed);
  return passed == 1;
}

// The emulated threads are those of one thread of the host: no two of them are here at once.
__global__ void count(unsigned* threads) { ++*threads; }

// Every thread of a launch runs once.
Check check_launch(const Launch& config) {
  return [config] {
    unsigned threads = 0;
    launch(config, nullptr, count, &threads);
    return threads == unsigned(config.blocks) * unsigned(config.threads);
  };
}

bool check_host_threads() {
  bool right[2] = {true, true};
  const auto work = [&](int i) {
    for (int repeat = 0; repeat < 5; repeat++)
      right[i] &= all().at("block_sums")() && all().at("cluster_sums")() && all().at("grid_sums")();
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  return right[0] && right[1];
}

constexpr int kMost = 227 << 10;

const Registration registrations[] = {
    {"cluster_sums", check_cluster_sums<Fault::none>},
    {"cluster_sums/no_barrier", check_cluster_sums<Fault::no_barrier>},
    {"cluster_sums/no_wait", check_cluster_sums<Fault::no_wait>},
    {"cluster_sums/no_arrival", check_cluster_sums<Fault::no_arrival>},
    {"cluster_sums/one_missing", check_cluster_sums<Fault::one_missing>},
    {"cluster_sums/early_exit", check_cluster_sums<Fault::early_exit>},
    {"cluster_sums/exit_without_wait", check_cluster_sums<Fault::exit_without_wait>},
    {"cluster_sums/rank_16", check_cluster_sums<Fault::rank_16>},
    {"cluster_sums/outside", check_cluster_sums<Fault::outside>},
    {"grid_sums", [] { return check_grid_sums<Fault::none>(); }},
    {"grid_sums/not_cooperative", [] { return check_grid_sums<Fault::none>(false); }},
    {"grid_sums/no_barrier", [] { return check_grid_sums<Fault::no_barrier>(); }},
    {"grid_sums/no_second_barrier", [] { return check_grid_sums<Fault::no_second_barrier>(); }},
    {"grid_sums/one_missing", [] { return check_grid_sums<Fault::one_missing>(); }},
    {"halves", check_halves<Fault::none>},
    {"halves/two_barriers", check_halves<Fault::one_missing>},
    {"host_threads", check_host_threads},
    {"launch/largest_block", check_launch({2, 1024, kMost})},
    {"launch/no_block", check_launch({0, 32, 0})},
    {"launch/1056_threads", check_launch({1, 1056, 0})},
    {"launch/33_threads", check_launch({1, 33, 0})},
    {"launch/too_much_shared", check_launch({1, 32, kMost + 1})},
    {"launch/64_kb_shared", check_launch({1, 32, 64 << 10})},
    {"launch/cluster_of_16", check_launch({32, 32, 0, 16})},
    {"launch/cluster_of_17", check_launch({17, 32, 0, 17})},
    {"launch/cluster_of_16_large", check_launch({16, 64, kMost, 16})},
    {"launch/part_of_a_cluster", check_launch({6, 32, 0, 4})},
    {"launch/cooperative_16", check_launch({16, 1024, 0, 1, true})},
    {"launch/cooperative_17", check_launch({17, 1024, 0, 1, true})},
    {"launch/cooperative_8_large", check_launch({8, 64, kMost, 1, true})},
    {"launch/cooperative_9_large", check_launch({9, 64, kMost, 1, true})},
    {"launch/cooperative_clusters", check_launch({8, 64, kMost, 4, true})},
    {"launch/many_blocks", check_launch({5000, 32, 16})},
};

}  // namespace

}  // namespace checks
