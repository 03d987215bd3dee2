// Work sharing over torch's own thread pool.
#pragma once

#include <cstdint>
#include <type_traits>

namespace stylekernels {

// How many threads parallel_tasks uses for `count` tasks of so many elements each: none is woken
// for less than PyTorch's own grain.
int64_t parallel_workers(int64_t count, int64_t elements);

// Calls task(context, i, worker) once for every i in [0, count), with
// worker < parallel_workers(count, elements). Threads take the next i as they become free: a static
// split takes twice as long when one of two cores is taken away.
void parallel_tasks(int64_t count, int64_t elements,
                    void (*task)(void* context, int64_t i, int64_t worker), void* context);

// The same for a lambda of (i) or (i, worker).
template <class F>
inline void parallel_tasks(int64_t count, int64_t elements, const F& f) {
  parallel_tasks(
      count, elements,
      [](void* context, int64_t i, int64_t worker) {
        const F& f = *static_cast<const F*>(context);
        if constexpr (std::is_invocable_v<F, int64_t, int64_t>)
          f(i, worker);
        else
          f(i);
      },
      const_cast<F*>(&f));
}

// Calls f(i) for every i in [0, count): the same for tasks of so few elements that handing them out
// one by one would cost as much as they do.
template <class F>
inline void parallel_runs(int64_t count, int64_t elements, const F& f) {
  constexpr int64_t kElements = 8192;
  const int64_t run = elements >= kElements ? 1 : kElements / (elements > 0 ? elements : 1);
  parallel_tasks((count + run - 1) / run, elements * run, [&](int64_t task) {
    const int64_t end = (task + 1) * run < count ? (task + 1) * run : count;
    for (int64_t i = task * run; i < end; ++i) f(i);
  });
}

}  // namespace stylekernels
