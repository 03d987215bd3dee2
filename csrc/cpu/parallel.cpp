#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace stylekernels {

int64_t parallel_workers(int64_t count, int64_t elements) {
  constexpr int64_t kGrain = 32768;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t useful = count * std::max<int64_t>(1, elements) / kGrain;
  return std::max<int64_t>(1, std::min({count, useful, threads}));
}

void parallel_tasks(int64_t count, int64_t elements,
                    void (*task)(void* context, int64_t i, int64_t worker), void* context) {
  const int64_t workers = parallel_workers(count, elements);
  if (workers == 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(context, i, worker);
  });
}

}  // namespace stylekernels
