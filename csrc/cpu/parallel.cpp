#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

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

// Tasks that workers take one by one, from their own part first.
class Tasks {
 public:
  Tasks(int64_t count, int64_t workers, void (*task)(void* context, int64_t i, int64_t worker),
        void* context, Order order)
      : parts_(workers), task_(task), context_(context), order_(order) {
    for (int64_t w = 0; w < workers; ++w) {
      parts_[w].first = count * w / workers;
      parts_[w].count = count * (w + 1) / workers - parts_[w].first;
    }
  }

  const void* start() const { return &task_; }
  const void* end() const { return &context_; }

  // Runs tasks as one worker. Tasks share no results, so that their order is relaxed.
  void operator()(int64_t worker, int64_t) const {
    happens_after(start());
    for (size_t k = 0; k < parts_.size(); ++k) {
      const Part& part = parts_[(worker + k) % parts_.size()];
      for (;;) {
        const int64_t i = part.taken.fetch_add(1, std::memory_order_relaxed);
        if (i >= part.count) break;
        const int64_t place = order_ == Order::forwards ? i : part.count - 1 - i;
        task_(context_, part.first + place, worker);
      }
    }
    happens_before(end());
  }

 private:
  struct alignas(64) Part {  // a cache line of its own
    int64_t first, count;
    mutable std::atomic<int64_t> taken{0};
  };
  std::vector<Part> parts_;
  void (*task_)(void* context, int64_t i, int64_t worker);
  void* context_;
  Order order_;
};

}  // namespace

int64_t parallel_workers(int64_t count, int64_t elements) {
  constexpr int64_t kGrain = 32768;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t useful = count * std::max<int64_t>(1, elements) / kGrain;
  return std::max<int64_t>(1, std::min({count, useful, threads}));
}

void parallel_tasks(Order order, int64_t count, int64_t elements,
                    void (*task)(void* context, int64_t i, int64_t worker), void* context) {
  const int64_t workers = parallel_workers(count, elements);
  if (workers == 1) {
    for (int64_t i = 0; i < count; ++i)
      task(context, order == Order::forwards ? i : count - 1 - i, 0);
    return;
  }
  const Tasks tasks(count, workers, task, context, order);
  happens_before(tasks.start());
  torch::stable::parallel_for(0, workers, 1, tasks);
  happens_after(tasks.end());
}

}  // namespace stylekernels
