// Barriers and shuffles in a block.

#include "checks.h"

namespace checks {

namespace {

enum class Fault {
  none,
  no_first_barrier,
  no_second_barrier,
  no_warp_barrier,
  divergent_shuffle,
  divergent_barrier,
  two_operations,
  early_exit,
  lane_32,
};

__device__ inline float warp_sum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

constexpr int kRounds = 2;

// Each block sums two rows, with the same shared memory for both.
template <Fault kFault>
__global__ void __launch_bounds__(256) block_sums(const float* x, float* sums, int count) {
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  const int warp = thread_index() / kWarp, lane = thread_index() % kWarp;
  for (int round = 0; round < kRounds; round++) {
    const int row = block_index() * kRounds + round;
    float sum = 0;
    for (int i = thread_index(); i < count; i += block_threads()) sum += x[row * count + i];
    sum = warp_sum(sum);
    if (lane == 0) of_warps[warp] = sum;
    if constexpr (kFault != Fault::no_first_barrier) block_barrier();
    if (thread_index() == 0) {
      sum = 0;
      for (int w = 0; w < block_threads() / kWarp; w++) sum += of_warps[w];
      sums[row] = sum;
    }
    if constexpr (kFault != Fault::no_second_barrier) block_barrier();
  }
}

template <Fault kFault>
bool check_block_sums() {
  constexpr int kBlocks = 5, kCount = 1000;
  const std::vector<float> x = random(kBlocks * kRounds * kCount);
  std::vector<float> sums(kBlocks * kRounds, NAN);
  launch({.blocks = kBlocks, .threads = 256, .shared_bytes = 8 * int(sizeof(float))}, nullptr,
         block_sums<kFault>, x.data(), sums.data(), kCount);
  bool right = true;
  for (size_t row = 0; row < sums.size(); row++)
    right &= near(sums[row], sum(&x[row * kCount], kCount));
  return right;
}

// Each warp reverses 32 values through shared memory, then adds its lane 0's.
template <Fault kFault>
__global__ void reverse(const float* x, float* y) {
  float* values = reinterpret_cast<float*>(shared_memory());
  const int i = thread_index(), lane = i % kWarp;
  values[i] = x[i];
  if constexpr (kFault != Fault::no_warp_barrier) warp_barrier();
  float value = values[i - lane + kWarp - 1 - lane];
  if constexpr (kFault == Fault::early_exit) {
    if (lane == 7) return;
  }
  if constexpr (kFault == Fault::divergent_shuffle) {
    if (lane < 16) value += shuffle(value, 0);
    block_barrier();
  } else if constexpr (kFault == Fault::two_operations) {
    if (lane < 16)
      value += shuffle(value, 0);
    else
      warp_barrier();
  } else {
    value += shuffle(value, kFault == Fault::lane_32 ? 32 : 0);
  }
  if constexpr (kFault == Fault::divergent_barrier) {
    if (lane < 16) block_barrier();
  }
  y[i] = value;
}

template <Fault kFault>
bool check_reverse() {
  const std::vector<float> x = random(128);
  std::vector<float> y(128, NAN);
  launch({.blocks = 1, .threads = 128, .shared_bytes = 128 * int(sizeof(float))}, nullptr,
         reverse<kFault>, x.data(), y.data());
  bool right = true;
  for (int i = 0; i < 128; i++) {
    const int first = i / kWarp * kWarp;
    right &= near(y[size_t(i)], x[size_t(first + kWarp - 1 - i % kWarp)] + x[size_t(first + 31)]);
  }
  return right;
}

// Ten barriers and twenty shuffles.
__global__ void many_waits(double* y) {
  double value = block_index() * block_threads() + thread_index();
  for (int i = 0; i < 10; i++) {
    value += shuffle_xor(value, 1);
    value -= shuffle_xor(value, 2) / 2;
    block_barrier();
  }
  y[block_index() * block_threads() + thread_index()] = value;
}

bool check_many_waits() {
  constexpr int kBlocks = 64, kThreads = 256;
  std::vector<double> y(kBlocks * kThreads, NAN);
  launch({.blocks = kBlocks, .threads = kThreads, .shared_bytes = 0}, nullptr, many_waits,
         y.data());
  bool right = true;
  for (int i = 0; i < kBlocks * kThreads; i += 4) {
    double lanes[4] = {double(i), double(i + 1), double(i + 2), double(i + 3)};
    for (int round = 0; round < 10; round++) {
      const double pairs[2] = {lanes[0] + lanes[1], lanes[2] + lanes[3]};
      for (int lane = 0; lane < 4; lane++) lanes[lane] = pairs[lane / 2] - pairs[1 - lane / 2] / 2;
    }
    for (int lane = 0; lane < 4; lane++)
      right &= std::fabs(y[size_t(i + lane)] - lanes[lane]) <= 1e-9 * std::fabs(lanes[lane]);
  }
  return right;
}

// Notes in which order threads pass a barrier.
__global__ void note_order(int* order, int* count) {
  block_barrier();
  order[(*count)++] = block_index() * block_threads() + thread_index();
}

bool check_order() {
  constexpr int kBlocks = 3, kThreads = 64;
  std::vector<int> orders[3];
  for (int i = 0; i < 3; i++) {
    setenv("CUDA_EMULATION_SEED", i < 2 ? "5" : "6", 1);
    int count = 0;
    orders[i].resize(kBlocks * kThreads);
    launch({.blocks = kBlocks, .threads = kThreads, .shared_bytes = 0}, nullptr, note_order,
           orders[i].data(), &count);
  }
  return orders[0] == orders[1] && orders[0] != orders[2];
}

const Registration registrations[] = {
    {"block_sums", check_block_sums<Fault::none>},
    {"block_sums/no_first_barrier", check_block_sums<Fault::no_first_barrier>},
    {"block_sums/no_second_barrier", check_block_sums<Fault::no_second_barrier>},
    {"reverse", check_reverse<Fault::none>},
    {"reverse/no_warp_barrier", check_reverse<Fault::no_warp_barrier>},
    {"reverse/divergent_shuffle", check_reverse<Fault::divergent_shuffle>},
    {"reverse/divergent_barrier", check_reverse<Fault::divergent_barrier>},
    {"reverse/two_operations", check_reverse<Fault::two_operations>},
    {"reverse/early_exit", check_reverse<Fault::early_exit>},
    {"reverse/lane_32", check_reverse<Fault::lane_32>},
    {"many_waits", check_many_waits},
    {"order", check_order},
};

}  // namespace

}  // namespace checks
