// Kernels of Gram matrices: arguments, and how layers are divided among blocks.
//
// All layers of a call share one launch of a cooperative grid, with a block on each multiprocessor.
// The work of all layers is one line of costs, and each block takes an equal part of it, which may
// begin and end in the middle of a tile.
#pragma once

#include <type_traits>

#include "panel_loads.cuh"

namespace stylekernels::device {

constexpr int kGramThreads = 256, kGramWarps = kGramThreads / kWarp;

// Layers of a launch at most.
constexpr int kMostLayers = 16;

// Stages of the pipelines of panels at most: all but one are being loaded.
constexpr int kMostStages = 4;

// Depth of the products of a step, of one group of warps: pixels, or channels of the gradient.
template <class T>
constexpr int kStepDepth = sizeof(T) == 2   ? 64
                           : sizeof(T) == 4 ? 32
                                            : 16;

// Operands of products of features of type T. Those of 16 bits are centred in float32.
template <class T, bool kCentered>
using Operand = std::conditional_t<kCentered, Wide<T>, T>;

// A part of a line of costs.
struct Range {
  int64_t begin, end;
};

// The part of a block.
__device__ inline Range part_of(int block, int blocks, int64_t cost) {
  return {block * cost / blocks, (block + 1) * cost / blocks};
}

// The block whose part contains a unit of cost.
__device__ inline int block_with(int64_t unit, int blocks, int64_t cost) {
  return int(((unit + 1) * blocks - 1) / cost);
}

__device__ inline int64_t clamp64(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Waits for the panels of the oldest stage.
__device__ inline void wait_for_stage(int stages) {
  if (stages == 2)
    wait_for_copies<0>();
  else if (stages == 3)
    wait_for_copies<1>();
  else
    wait_for_copies<kMostStages - 2>();
}

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
  const T* data = static_cast<const T*>(x) + image * c * pixels;
  if (kLayout == Layout::contiguous)
    return {data + channel * pixels + pixel, pixels, c - channel, pixels - pixel, aligned};
  return {data + pixel * c + channel, c, pixels - pixel, c - channel, aligned};
}

}  // namespace stylekernels::device
