// Asynchronous copies, and accesses of 16 bytes.

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
    copy16_async(to, from);
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

__global__ void move16(const float* from, float* to, bool into_shared, bool out_of_shared) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  store16(into_shared ? shared : to, load16(out_of_shared ? shared : from));
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
    {"move16", [] { return check_move16(0, 0, false, false); }},
    {"move16/misaligned_load", [] { return check_move16(1, 0, false, false); }},
    {"move16/misaligned_store", [] { return check_move16(0, 1, false, false); }},
    {"move16/store_into_shared", [] { return check_move16(0, 0, true, false); }},
    {"move16/load_out_of_shared", [] { return check_move16(0, 0, false, true); }},
};

}  // namespace

}  // namespace checks
