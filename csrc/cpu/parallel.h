// Parallel tasks over torch's own thread pool.
#pragma once

#include <cstdint>
#include <type_traits>

namespace stylekernels {

// Returns how many threads parallel_tasks uses for `count` tasks of so many elements each. No
// thread is woken for less than PyTorch's own grain.
int64_t parallel_workers(int64_t count, int64_t elements);

// Order in which a worker takes its tasks. A second pass over the same data goes backwards: the
// last tasks of the first are still in its cache.
enum class Order { forwards, backwards };

// Calls task(context, i, worker) once for every i in [0, count), with worker <
// parallel_workers(count, elements). Each worker has an equal part of consecutive tasks, so that it
// finds in its cache what it wrote in the call before, and what PyTorch's own ops wrote, which
// split alike. A worker that is done takes tasks from the parts of others: a fixed split takes
// twice as long when one of two cores is taken away.
void parallel_tasks(Order order, int64_t count, int64_t elements,
                    void (*task)(void* context, int64_t i, int64_t worker), void* context);

// Takes a lambda of (i) or (i, worker).
template <class F>
inline void parallel_tasks(Order order, int64_t count, int64_t elements, const F& f) {
  parallel_tasks(
      order, count, elements,
      [](void* context, int64_t i, int64_t worker) {
        const F& f = *static_cast<const F*>(context);
        if constexpr (std::is_invocable_v<F, int64_t, int64_t>)
          f(i, worker);
        else
          f(i);
      },
      const_cast<F*>(&f));
}

template <class F>
inline void parallel_tasks(int64_t count, int64_t elements, const F& f) {
  parallel_tasks(Order::forwards, count, elements, f);
}

// Calls f(i) for every i in [0, count), several calls a task. It is for calls of so few elements
// that handing them out one by one would cost as much as they do.
template <class F>
inline void parallel_small_tasks(int64_t count, int64_t elements, const F& f) {
  constexpr int64_t kElements = 8192;
  const int64_t per_task = elements >= kElements ? 1 : kElements / (elements > 0 ? elements : 1);
  parallel_tasks((count + per_task - 1) / per_task, elements * per_task, [&](int64_t task) {
    const int64_t end = (task + 1) * per_task < count ? (task + 1) * per_task : count;
    for (int64_t i = task * per_task; i < end; ++i) f(i);
  });
}

}  // namespace stylekernels
