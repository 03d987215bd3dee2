// Asynchronous copies, accesses of 16 bytes, and counters in global memory.

#include "../../../csrc/cuda/vectors.cuh"
#include "checks.h"

namespace checks {

namespace {

enum class Fault {
  none,
  no_commit,
  no_wait,
  late_wait,
  no_barrier_after_wait,
  no_barrier_before_refill,
  misaligned_from,
  misaligned_to,
  to_global,
  from_shared,
  minus_1_byte,
  bytes_17,
  no_barrier,
  misaligned,
  shared_counter,
};

constexpr int kThreads = 64, kSteps = 5, kStages = 2;
constexpr int kRow = kThreads * 4;  // values of a step

// Sums rows that pass through two stages of shared memory. A thread adds what its neighbour copied.
template <Fault kFault>
__global__ void sum_rows(const float* x, float* y) {
  float* stages = reinterpret_cast<float*>(shared_memory());
  const auto begin = [&](int step) {
    float* to = stages + step % kStages * kRow + thread_index() * 4;
    const float* from = x + step * kRow + thread_index() * 4;
    if constexpr (kFault == Fault::misaligned_from) from++;
    if constexpr (kFault == Fault::misaligned_to) to++;
    if constexpr (kFault == Fault::to_global) to = y;
    if constexpr (kFault == Fault::from_shared) from = stages;
    int bytes = 16;
    if constexpr (kFault == Fault::minus_1_byte) bytes = -1;
    if constexpr (kFault == Fault::bytes_17) bytes = 17;
    copy16_async(to, from, bytes);
  };
  const int neighbour = (thread_index() + 33) % kThreads;
  float sums[4] = {};
  begin(0);
  commit_copies();
  for (int step = 0; step < kSteps; step++) {
    if (step + 1 < kSteps) begin(step + 1);
    if constexpr (kFault != Fault::no_commit) commit_copies();
    if constexpr (kFault != Fault::no_wait) wait_for_copies<kFault == Fault::late_wait ? 2 : 1>();
    if constexpr (kFault != Fault::no_barrier_after_wait) block_barrier();
    const float* row = stages + step % kStages * kRow + neighbour * 4;
    for (int i = 0; i < 4; i++) sums[i] += row[i];
    if constexpr (kFault != Fault::no_barrier_before_refill) block_barrier();
  }
  for (int i = 0; i < 4; i++) y[neighbour * 4 + i] = sums[i];
}

template <Fault kFault>
bool check_sum_rows() {
  const std::vector<float> x = random(kSteps * kRow + 4);
  std::vector<float> y(kRow, NAN);
  launch({.blocks = 1, .threads = kThreads, .shared_bytes = kStages * kRow * int(sizeof(float))},
         nullptr, sum_rows<kFault>, x.data(), y.data());
  bool right = true;
  for (int i = 0; i < kRow; i++) {
    double expected = 0;
    for (int step = 0; step < kSteps; step++) expected += x[size_t(step * kRow + i)];
    right &= near(y[size_t(i)], expected);
  }
  return right;
}

// Thread i copies i bytes of a row of 16.
__global__ void copy_parts(const unsigned char* x, unsigned char* y) {
  const int i = thread_index();
  if (i <= 16) {
    copy16_async(shared_memory() + i * 16, i == 0 ? shared_memory() + 1 : x + i * 16, i);
    commit_copies();
    wait_for_copies<0>();
    for (int byte = 0; byte < 16; byte++) y[i * 16 + byte] = shared_memory()[i * 16 + byte];
  }
}

bool check_copy_parts() {
  struct alignas(16) Row {
    unsigned char bytes[16];
  };
  std::vector<Row> x(17), y(17);
  for (size_t i = 0; i < x.size(); i++)
    for (int byte = 0; byte < 16; byte++)
      x[i].bytes[byte] = static_cast<unsigned char>(1 + i * 14 + size_t(byte));
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = 17 * 16}, nullptr, copy_parts, x[0].bytes,
         y[0].bytes);
  bool right = true;
  for (size_t i = 0; i < x.size(); i++)
    for (int byte = 0; byte < 16; byte++)
      right &= y[i].bytes[byte] == (byte < int(i) ? x[i].bytes[byte] : 0);
  return right;
}

constexpr int kBlocks = 6;

// The block that arrives last sums what all blocks wrote.
template <Fault kFault>
__global__ void last_block_sums(const float* x, float* y, int* counter, float* sum) {
  const int i = block_index() * kThreads + thread_index();
  y[i] = x[i];
  if constexpr (kFault != Fault::no_barrier) block_barrier();
  if (thread_index() != 0) return;
  if constexpr (kFault == Fault::shared_counter) counter = reinterpret_cast<int*>(shared_memory());
  if constexpr (kFault == Fault::misaligned)
    counter = reinterpret_cast<int*>(reinterpret_cast<char*>(counter) + 2);
  if (count_arrival(counter) != kBlocks - 1) return;
  *sum = 0;
  for (int k = 0; k < kBlocks * kThreads; k++) *sum += y[k];
}

template <Fault kFault>
bool check_last_block_sums() {
  const std::vector<float> x = random(kBlocks * kThreads);
  std::vector<float> y(kBlocks * kThreads, NAN);
  int counters[2] = {};
  float total = NAN;
  launch({.blocks = kBlocks, .threads = kThreads, .shared_bytes = 4, .cooperative = true}, nullptr,
         last_block_sums<kFault>, x.data(), y.data(), counters, &total);
  return near(total, sum(x.data(), kBlocks * kThreads)) && counters[0] == kBlocks;
}

__global__ void move16(const float* from, float* to, bool into_shared, bool out_of_shared) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  store16(into_shared ? shared : to, load16(out_of_shared ? shared : from));
}

// Moves a pair of elements.
__global__ void move_pair(const float* from, float* to) { vector_at<2>(to) = vector_at<2>(from); }

bool check_move_pair(int from_offset, int to_offset) {
  alignas(8) float from[4], to[4] = {};
  const std::vector<float> x = random(4);
  std::copy(x.begin(), x.end(), from);
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = 0}, nullptr, move_pair, from + from_offset,
         to + to_offset);
  return std::equal(to, to + 2, from) && to[2] == 0;
}

bool check_move16(int from_offset, int to_offset, bool into_shared, bool out_of_shared) {
  alignas(16) float from[8], to[8] = {};
  const std::vector<float> x = random(8);
  std::copy(x.begin(), x.end(), from);
  launch({.blocks = 1, .threads = kWarp, .shared_bytes = 256}, nullptr, move16, from + from_offset,
         to + to_offset, into_shared, out_of_shared);
  return std::equal(to, to + 4, from) && to[4] == 0;
}

const Registration registrations[] = {
    {"sum_rows", check_sum_rows<Fault::none>},
    {"sum_rows/no_commit", check_sum_rows<Fault::no_commit>},
    {"sum_rows/no_wait", check_sum_rows<Fault::no_wait>},
    {"sum_rows/late_wait", check_sum_rows<Fault::late_wait>},
    {"sum_rows/no_barrier_after_wait", check_sum_rows<Fault::no_barrier_after_wait>},
    {"sum_rows/no_barrier_before_refill", check_sum_rows<Fault::no_barrier_before_refill>},
    {"sum_rows/misaligned_from", check_sum_rows<Fault::misaligned_from>},
    {"sum_rows/misaligned_to", check_sum_rows<Fault::misaligned_to>},
    {"sum_rows/to_global", check_sum_rows<Fault::to_global>},
    {"sum_rows/from_shared", check_sum_rows<Fault::from_shared>},
    {"sum_rows/minus_1_byte", check_sum_rows<Fault::minus_1_byte>},
    {"sum_rows/17_bytes", check_sum_rows<Fault::bytes_17>},
    {"copy_parts", check_copy_parts},
    {"last_block_sums", check_last_block_sums<Fault::none>},
    {"last_block_sums/no_barrier", check_last_block_sums<Fault::no_barrier>},
    {"last_block_sums/misaligned", check_last_block_sums<Fault::misaligned>},
    {"last_block_sums/shared_counter", check_last_block_sums<Fault::shared_counter>},
    {"move16", [] { return check_move16(0, 0, false, false); }},
    {"move16/misaligned_load", [] { return check_move16(1, 0, false, false); }},
    {"move16/misaligned_store", [] { return check_move16(0, 1, false, false); }},
    {"move16/store_into_shared", [] { return check_move16(0, 0, true, false); }},
    {"move16/load_out_of_shared", [] { return check_move16(0, 0, false, true); }},
    {"move_pair", [] { return check_move_pair(0, 0); }},
    {"move_pair/misaligned_load", [] { return check_move_pair(1, 0); }},
    {"move_pair/misaligned_store", [] { return check_move_pair(0, 1); }},
};

}  // namespace

}  // namespace checks
