// Loads of panels from global to shared memory, by all threads of a block.
#pragma once

#include "fragments.cuh"

namespace stylekernels::device {

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

// Begins to load a panel P, by kThreads threads. Elements outside of the tensor become zeros.
// Aligned lines take asynchronous copies; others are there when it returns.
template <class P, int kThreads, class T>
__device__ inline void load_panel(T* panel, const Lines<T>& from) {
  constexpr int kLanes = kVectorLanes<T>, kLineVectors = P::kLength / kLanes;
  constexpr int kVectors = P::kLines * kLineVectors / kThreads;  // of a thread
  static_assert(kVectors * kThreads == P::kLines * kLineVectors);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int vector = thread_index() + i * kThreads;
    const int line = vector / kLineVectors, first = vector % kLineVectors * kLanes;
    const int64_t left = line < from.lines ? from.length - first : 0;
    const int elements = left < 0 ? 0 : left > kLanes ? kLanes : int(left);
    const T* data = elements > 0 ? from.data + line * from.stride + first : from.data;
    T* to = panel + line * P::kStride + first;
    if (from.aligned) {
      copy16_async(to, data, elements * int(sizeof(T)));
      continue;
    }
    Vector<T, kLanes> values{};
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < elements) values.set(lane, data[lane]);
    *reinterpret_cast<Vector<T, kLanes>*>(to) = values;
  }
}

}  // namespace stylekernels::device
