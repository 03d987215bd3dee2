// A pipeline of stages in shared memory: while one is multiplied, the others are loaded.
#pragma once

#include "fragments.cuh"

namespace stylekernels::device {

// Stages at most.
constexpr int kMostStages = 4;

// Stages in turn. load(stage) begins to load what comes next, if there is more.
class Pipeline {
 public:
  template <class F>
  __device__ Pipeline(int stages, const F& load) : last_(stages - 1) {
    for (int stage = 0; stage < last_; ++stage) {
      load(stage);
      commit_copies();
    }
  }

  // Waits for the next stage and returns it. The one before it, which all threads have used, is
  // loaded again.
  template <class F>
  __device__ int next(const F& load) {
    const int stage = stage_;
    if (last_ == 1)
      wait_for_copies<0>();
    else if (last_ == 2)
      wait_for_copies<1>();
    else
      wait_for_copies<kMostStages - 2>();
    block_barrier();
    load(stage == 0 ? last_ : stage - 1);
    commit_copies();
    stage_ = stage == last_ ? 0 : stage + 1;
    return stage;
  }

 private:
  const int last_;
  int stage_ = 0;
};

// Lines of a tensor, from the first element of a panel on: `lines` of them, each with `length`
// elements, are inside of the tensor. Both may be negative, or more than a panel has.
template <class T>
struct Lines {
  const T* data;
  int64_t stride;  // from line to line
  int64_t lines;
  int64_t length;
  bool aligned;  // every line, to 16 bytes
};

__device__ inline int clamp_to(int64_t value, int highest) {
  return value < 0 ? 0 : value > highest ? highest : int(value);
}

// Begins to load a panel P, by kThreads threads. Elements outside of the tensor become zeros.
// Aligned lines, which are whole vectors, take asynchronous copies; others are there when it
// returns.
template <class P, int kThreads, class T>
__device__ inline void load_panel(T* panel, const Lines<T>& from) {
  constexpr int kLanes = kVectorLanes<T>, kLineVectors = P::kLength / kLanes;
  constexpr int kLines = kThreads / kLineVectors;  // at a time
  static_assert(kThreads % kLineVectors == 0 && P::kLines % kLines == 0);
  const int own = thread_index() / kLineVectors, first = thread_index() % kLineVectors * kLanes;
  const int elements = clamp_to(from.length - first, kLanes);
  const int lines = clamp_to(from.lines, P::kLines);
  const T* data = from.data + own * from.stride + first;
  T* to = panel + own * P::kStride + first;
  if (from.aligned) {
#pragma unroll
    for (int line = 0; line < P::kLines; line += kLines) {
      copy16_async(to + line * P::kStride, data, own + line < lines && elements > 0 ? 16 : 0);
      data += kLines * from.stride;
    }
    return;
  }
#pragma unroll
  for (int line = 0; line < P::kLines; line += kLines) {
    Vector<T, kLanes> values{};
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (own + line < lines && lane < elements) values.set(lane, data[lane]);
    vector_at<kLanes>(to + line * P::kStride) = values;
    data += kLines * from.stride;
  }
}

}  // namespace stylekernels::device
