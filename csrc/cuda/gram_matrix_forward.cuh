// Gram matrices and Gram losses of a list of layers, in one launch.
//
// First, products. The lower triangle of each Gram matrix is divided into tiles, and the pixels
// into steps. A block loads the channels of a tile's rows and columns in a pipeline of stages; on
// the diagonal they are the same panel. Sums of a step are scaled before they are added to those of
// others, so that they do not overflow. Each block stores the sums of its part of each tile.
// Second, after a barrier of the grid, sums: all blocks add up the parts of tiles in their order,
// in float64, and write both triangles; or, with targets, the gradient of the loss, whose squares
// the last block adds up.
//
// Bytes: features are read once for up to 128 channels (64 in float32 and float64), and once for
// each row and column of tiles above that, mostly from L2. Operations: C (C + 16) / 2 multiply-adds
// a pixel, in blocks of 16 x 16 channels; C (C + 32) / 2 in tiles of 64 channels, whose warps have
// 32 x 32. A block of 256 threads has up to 241 registers a thread and four stages of 36 KB: one on
// a multiprocessor.
//
// Predicted for an H200, not measured (4.25 TB/s, 132 multiprocessors at 1.75 GHz, 1,300 bfloat16
// multiply-adds a cycle by mma.sync): a step of 128 pixels and 64 channels takes 890 cycles of
// bandwidth, some 620 to issue its instructions, 384 of shared memory, and 400 of its busiest
// tensor core; one of 64 pixels and 128 channels 890, 1,000, 576 and 504. Added to that are 2 us
// for the launch, 1.3 for the barrier and 2 for the sums.
//   4 x 64 x 256 x 256 in bfloat16: floor 7.9 us, predicted 13
//   4 x 128 x 128 x 128: floor 4.0, predicted 11
//   4 x 256 x 64 x 64: floor 2.0, predicted 9; 4 x 512 x 32 x 32: floor 1.4, predicted 9
#pragma once

#include "gram_matrix_products.cuh"

namespace stylekernels::device {

// Adds up the parts of tiles, and writes Gram matrices or the gradients of losses.
template <class W>
class GramSums {
 public:
  __device__ explicit GramSums(const GramArguments& arguments) : a_(arguments) {}

  // Takes each of the grid's turns that is this block's.
  __device__ void run() {
    int layer = 0;
    double squares = 0;
    for (int64_t turn = block_index(); turn < a_.turns; turn += grid_blocks()) {
      while (turn >= end_of(layer)) {
        store_squares(layer++, squares);
        squares = 0;
      }
      const GramLayer& l = a_.layers[layer];
      const int own = int(turn - l.first_turn);
      const int unit = own % l.turns * (kGramWarps / l.ways) + warp_index() / l.ways;
      squares += finish(l, own / l.turns, unit);
    }
    for (; layer < a_.count; ++layer, squares = 0) store_squares(layer, squares);
  }

 private:
  __device__ int64_t end_of(int layer) const {
    const GramLayer& l = a_.layers[layer];
    return l.first_turn + int64_t(l.turns) * l.tiles();
  }

  __device__ double* exchange() const {
    return reinterpret_cast<double*>(shared_memory() + a_.stages * a_.stage_bytes);
  }

  // Adds up a unit over all parts of a tile, by `ways` warps; the first of them writes the results.
  // Returns the sum of squared differences from the target.
  __device__ double finish(const GramLayer& l, int number, int unit) {
    const GramTile tile(l, number);
    const int across = l.side / kUnitColumns, size = l.wide ? 128 : 64;
    const int row = unit / across * kUnitRows + unit_row();
    const int column = unit % across * kUnitColumns + unit_column();
    const int i = tile.row * size + row, j = tile.column * size + column;
    const bool wanted = row < l.side && i < l.c && j <= i;
    const int way = warp_index() % l.ways;
    double sums[kEach] = {};
    if (wanted) add_parts(l, number, row * l.side + column, way, sums);
    if (l.ways > 1) {
      block_barrier();  // the sums before have been read
      double* at = exchange() + thread_index();
#pragma unroll
      for (int k = 0; k < kEach; ++k) at[k * kGramThreads] = sums[k];
      block_barrier();
      if (way > 0) return 0;
      for (int other = 1; other < l.ways; ++other)
#pragma unroll
        for (int k = 0; k < kEach; ++k) sums[k] += at[k * kGramThreads + other * kWarp];
    }
    double squares = 0;
    if (wanted)
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (j + k <= i) squares += write(l, tile.image, i, j + k, sums[k]);
    return squares;
  }

  // Adds up some elements of a tile over the parts of one way.
  __device__ void add_parts(const GramLayer& l, int number, int at, int way,
                            double (&sums)[kEach]) const {
    constexpr int kAtOnce = 4;  // loads in flight
    const int64_t step = int64_t(number) * l.steps;
    const int first = part_of_step(l, step), last = part_of_step(l, step + l.steps - 1);
    const W* parts =
        static_cast<const W*>(a_.partial) + (int64_t(l.first_tile) + number) * a_.slot + at;
    for (int part = first + way; part <= last; part += kAtOnce * l.ways) {
      Vector<W, kEach> values[kAtOnce]{};
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        const int other = part + m * l.ways;
        if (other <= last) values[m] = vector_at<kEach>(parts + int64_t(other) * a_.slot);
      }
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m)
#pragma unroll
        for (int k = 0; k < kEach; ++k) sums[k] += double(values[m].get(k));
    }
  }

  __device__ int part_of_step(const GramLayer& l, int64_t step) const {
    return part_with(l.first_cost + l.cost_before(step), a_.parts, a_.cost);
  }

  // Writes an element of the lower triangle and its mirror image.
  __device__ static double write(const GramLayer& l, int image, int i, int j, double sum) {
    const int64_t c = l.c, here = i * c + j, there = j * c + i;
    W* gram = static_cast<W*>(l.gram) + image * c * c;
    if (l.target == nullptr) {
      gram[here] = gram[there] = W(sum);
      return 0;
    }
    const W* target = static_cast<const W*>(l.target) + image * l.target_stride;
    const double below = double(W(sum)) - double(target[here]);
    gram[here] = W(below * l.slope);
    if (i == j) return below * below;
    const double above = double(W(sum)) - double(target[there]);
    gram[there] = W(above * l.slope);
    return below * below + above * above;
  }

  // Stores the sum of a block's threads for a layer.
  __device__ void store_squares(int layer, double squares) const {
    if (a_.squares == nullptr) return;
    for (int mask = 1; mask < kWarp; mask *= 2) squares += shuffle_xor(squares, mask);
    block_barrier();  // what is there has been read
    if (lane_index() == 0) exchange()[warp_index()] = squares;
    block_barrier();
    if (thread_index() > 0) return;
    double sum = 0;
    for (int i = 0; i < kGramWarps; ++i) sum += exchange()[i];
    a_.squares[int64_t(layer) * grid_blocks() + block_index()] = sum;
  }

  const GramArguments& a_;
};

// Adds up the squares of all blocks, in the last one that has stored its own.
template <class W>
__device__ inline void store_losses(const GramArguments& a) {
  int* is_last = reinterpret_cast<int*>(shared_memory() + a.stages * a.stage_bytes);
  block_barrier();  // what is there has been read
  if (thread_index() == 0) *is_last = count_arrival(a.finished) == grid_blocks() - 1;
  block_barrier();
  if (!*is_last) return;
  for (int layer = warp_index(); layer < a.count; layer += kGramWarps) {
    const GramLayer& l = a.layers[layer];
    double sum = 0;
    for (int block = lane_index(); block < grid_blocks(); block += kWarp)
      sum += a.squares[int64_t(layer) * grid_blocks() + block];
    for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
    if (lane_index() == 0) static_cast<W*>(a.losses)[layer] = W(sum / (double(l.n) * l.c * l.c));
  }
}

// Computes the Gram matrices of all layers.
template <class T, bool kCentered>
__global__ void __launch_bounds__(kGramThreads, 1) gram_matrix_kernel(const GramArguments a) {
  if (a.finished != nullptr && block_index() == 0 && thread_index() == 0) *a.finished = 0;
  const Range part = part_of(block_index(), a.parts, a.cost);
  for (int i = 0; i < a.count; ++i) {
    const GramLayer& layer = a.layers[i];
    const int64_t cost = layer.cost();
    const int begin = layer.step_at(clamp64(part.begin - layer.first_cost, 0, cost));
    const int end = layer.step_at(clamp64(part.end - layer.first_cost, 0, cost));
    if (begin >= end) continue;
    if (layer.layout == Layout::contiguous)
      add_products<T, kCentered, Layout::contiguous>(a, layer, begin, end);
    else
      add_products<T, kCentered, Layout::channels_last>(a, layer, begin, end);
  }
  grid_barrier();
  GramSums<Wide<T>>(a).run();
  if (a.squares != nullptr) store_losses<Wide<T>>(a);
}

}  // namespace stylekernels::device
