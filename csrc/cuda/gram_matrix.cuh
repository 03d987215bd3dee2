// Kernels of Gram matrices: what products and their gradient share.
//
// All layers of a call share one launch of a cooperative grid, with a block on each multiprocessor.
// The work of all layers is one line of costs. Each block takes an equal part of it, which may
// begin and end in the middle of a tile.
#pragma once

#include <type_traits>

#include "pipeline.cuh"

namespace stylekernels::device {

constexpr int kGramThreads = 256, kGramWarps = kGramThreads / kWarp;

// Layers of a launch at most.
constexpr int kMostLayers = 16;

// Pixels, or channels in the gradient, that a group of warps multiplies in a step.
template <class T>
constexpr int kStepDepth = sizeof(T) == 2   ? 64
                           : sizeof(T) == 4 ? 32
                                            : 16;

// Depths of a step that are unrolled, so that fragments are loaded ahead of products. Those of wide
// operands would take more registers than there are.
template <class O>
constexpr int kUnrolled = sizeof(O) == 2 ? 4 : 1;

// Operands of products of features of type T. Those of 16 bits are centred in float32.
template <class T, bool kCentered>
using Operand = std::conditional_t<kCentered, Wide<T>, T>;

// A part of a line of costs.
struct Range {
  int64_t begin, end;
};

// One of several equal parts; empty behind the last one.
__device__ inline Range part_of(int part, int parts, int64_t cost) {
  if (part >= parts) return {cost, cost};
  return {part * cost / parts, (part + 1) * cost / parts};
}

// The part that contains a unit of cost.
__device__ inline int part_with(int64_t unit, int parts, int64_t cost) {
  return int(((unit + 1) * parts - 1) / cost);
}

__device__ inline int64_t clamp64(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

__device__ inline int warp_index() { return thread_index() / kWarp; }
__device__ inline int lane_index() { return thread_index() % kWarp; }

// Rows and columns that a warp takes of a matrix in memory, whose transposed one it reads or writes
// as well: eight rows are a sector of 32 bytes there. A lane has some columns of one row.
constexpr int kUnitRows = 8, kUnitColumns = 16, kEach = 4;
__device__ inline int unit_row() { return lane_index() / 4; }
__device__ inline int unit_column() { return lane_index() % 4 * kEach; }

// The mean of a channel, and its rounding error. Behind the last channel they are zeros.
template <class W>
struct Center {
  W mean = 0, error = 0;

  // means: (2, N, C), of all images.
  __device__ static Center of(const void* means, int n, int c, int image, int channel) {
    if (channel >= c) return {};
    const W* mean = static_cast<const W*>(means) + int64_t(image) * c + channel;
    return {*mean, mean[int64_t(n) * c]};
  }

  __device__ W operator()(W value) const { return (value - mean) - error; }
};

// Features from a channel and a pixel on, as the lines of a panel.
template <class T, Layout kLayout>
__device__ inline Lines<T> lines_of(const void* x, int image, int c, int64_t pixels, bool aligned,
                                    int channel, int64_t pixel) {
  const T* data = static_cast<const T*>(x) + int64_t(image) * c * pixels;
  if (kLayout == Layout::contiguous)
    return {data + channel * pixels + pixel, pixels, c - channel, pixels - pixel, aligned};
  return {data + pixel * c + channel, c, pixels - pixel, c - channel, aligned};
}

}  // namespace stylekernels::device
