#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace stylekernels {
namespace {

// Tell ThreadSanitizer that all before happens_before(x) happens before all after happens_after(x).
// It cannot see that parallel_for starts threads and waits for them: OpenMP is not compiled for it.
#if defined(__SANITIZE_THREAD__)
inline void happens_before(const void* x) { __tsan_release(const_cast<void*>(x)); }
inline void happens_after(const void* x) { __tsan_acquire(const_cast<void*>(x)); }
#else
inline void happens_before(const void*) {}
inline void happens_after(const void*) {}
#endif

// Tasks that workers take one by one.
struct Tasks {
  int64_t count;
  void (*task)(void* context, int64_t i, int64_t worker);
  void* context;
  mutable std::atomic<int64_t> next{0};

  const void* start() const { return &count; }
  const void* end() const { return &context; }

  // Runs tasks as one worker. Tasks share no results, so that their order is relaxed.
  void operator()(int64_t worker, int64_t) const {
    happens_after(start());
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) break;
      task(context, i, worker);
    }
    happens_before(end());
  }
};

}  // namespace

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
  const Tasks tasks{count, task, context};
  happens_before(tasks.start());
  torch::stable::parallel_for(0, workers, 1, tasks);
  happens_after(tasks.end());
}

}  // namespace stylekernels
