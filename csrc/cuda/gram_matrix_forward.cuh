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
// a pixel, in blocks of 16 x 16 channels. A block of 256 threads has up to 242 registers a thread
// and four stages of 36 KB: one on a multiprocessor. Predicted for an H200 (4.3 TB/s, 132
// multiprocessors at 1.75 GHz, 1,300 bfloat16 multiply-adds a cycle by mma.sync, not measured): a
// step of 128 pixels and 64 channels takes 790 cycles of bandwidth, 384 of shared memory, 400 of
// its busiest tensor core; of 64 pixels and 128 channels 790, 576 and 504. 4 x 64 x 256 x 256 in
// bfloat16: 33.6 MB, 7.8 us; partial sums 2.2 MB written and read, 1 us; the barrier 1.3 us: 10 us.
#pragma once

#include "gram_matrix_products.cuh"

namespace stylekernels::device {

// Sums of a layer's tiles over their parts, and what becomes of them.
template <class W>
class GramSums {
 public:
  __device__ GramSums(const GramArguments& arguments, int layer)
      : a_(arguments), l_(arguments.layers[layer]), layer_(layer) {}

  __device__ void run() {
    const int size = l_.wide ? 128 : 64;
    const int units = size * size / kUnit;
    double squares = 0;
    int tile = 0, ways = 1, turns = 0;  // a block takes the units of a tile in turns
    int64_t before = 0;                 // turns of earlier tiles
    for (int64_t turn = block_index();; turn += grid_blocks()) {
      while (tile < l_.tiles()) {
        ways = last_block(tile) - first_block(tile) >= kGramWarps ? kGramWarps : 1;
        turns = units * ways / kGramWarps;
        if (turn < before + turns) break;
        before += turns;
        ++tile;
      }
      if (tile == l_.tiles()) break;
      const int unit = int(turn - before) * (kGramWarps / ways) + warp() / ways;
      squares += finish(tile, size, unit, ways);
    }
    if (a_.squares != nullptr) store_squares(squares);
  }

 private:
  // Elements of a tile that a warp adds up at once.
  static constexpr int kEach = 4, kUnit = kWarp * kEach;

  __device__ static int warp() { return thread_index() / kWarp; }

  __device__ int block_of(int64_t step) const {
    return block_with(l_.first_cost + l_.cost_before(step), grid_blocks(), a_.cost);
  }
  __device__ int first_block(int tile) const { return block_of(int64_t(tile) * l_.steps); }
  __device__ int last_block(int tile) const { return block_of(int64_t(tile + 1) * l_.steps - 1); }

  // Adds up some elements over all parts of a tile, by `ways` warps; the first of them writes the
  // results. Returns the sum of squared differences from the target.
  __device__ double finish(int number, int size, int unit, int ways) {
    const GramTile tile(l_, number);
    const int lane = thread_index() % kWarp;
    const int at = unit * kUnit + lane * kEach;
    const int i = tile.row * size + at / size, j = tile.column * size + at % size;
    const bool wanted = i < l_.c && j <= i;
    double sums[kEach] = {};
    if (wanted) {
      const int first = first_block(number), last = last_block(number);
      const W* parts =
          static_cast<const W*>(a_.partial) + (int64_t(l_.first_tile) + number) * a_.slot + at;
#pragma unroll 4
      for (int block = first + warp() % ways; block <= last; block += ways) {
        const W* part = parts + int64_t(block) * a_.slot;
        const Vector<W, kEach> values = *reinterpret_cast<const Vector<W, kEach>*>(part);
#pragma unroll
        for (int k = 0; k < kEach; ++k) sums[k] += double(values.get(k));
      }
    }
    if (ways > 1) {
      double* exchange = reinterpret_cast<double*>(shared_memory() + a_.stages * a_.stage_bytes);
      block_barrier();  // the sums before have been read
#pragma unroll
      for (int k = 0; k < kEach; ++k) exchange[(warp() * kEach + k) * kWarp + lane] = sums[k];
      block_barrier();
      if (warp() > 0) return 0;
      for (int other = 1; other < kGramWarps; ++other)
#pragma unroll
        for (int k = 0; k < kEach; ++k) sums[k] += exchange[(other * kEach + k) * kWarp + lane];
    }
    double squares = 0;
    if (wanted)
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (j + k <= i) squares += write(tile.image, i, j + k, sums[k]);
    return squares;
  }

  // Writes an element of the lower triangle and its mirror image.
  __device__ double write(int image, int i, int j, double sum) {
    const int64_t c = l_.c, here = i * c + j, there = j * c + i;
    W* gram = static_cast<W*>(l_.gram) + image * c * c;
    if (l_.target == nullptr) {
      gram[here] = gram[there] = W(sum);
      return 0;
    }
    const W* target = static_cast<const W*>(l_.target) + image * l_.target_stride;
    const double slope = 2 / (double(l_.n) * c * c);
    const double below = double(W(sum)) - double(target[here]);
    gram[here] = W(below * slope);
    if (i == j) return below * below;
    const double above = double(W(sum)) - double(target[there]);
    gram[there] = W(above * slope);
    return below * below + above * above;
  }

  // Stores the sum of a block's threads.
  __device__ void store_squares(double squares) {
    for (int mask = 1; mask < kWarp; mask *= 2) squares += shuffle_xor(squares, mask);
    double* exchange = reinterpret_cast<double*>(shared_memory() + a_.stages * a_.stage_bytes);
    block_barrier();
    if (thread_index() % kWarp == 0) exchange[warp()] = squares;
    block_barrier();
    if (thread_index() > 0) return;
    double sum = 0;
    for (int i = 0; i < kGramWarps; ++i) sum += exchange[i];
    a_.squares[int64_t(layer_) * grid_blocks() + block_index()] = sum;
  }

  const GramArguments& a_;
  const GramLayer& l_;
  const int layer_;
};

// Adds up the squares of all blocks, in the last one that has stored its own.
template <class W>
__device__ inline void store_losses(const GramArguments& a) {
  int* is_last = reinterpret_cast<int*>(shared_memory() + a.stages * a.stage_bytes);
  block_barrier();
  if (thread_index() == 0) *is_last = count_arrival(a.finished) == grid_blocks() - 1;
  block_barrier();
  if (!*is_last) return;
  for (int layer = thread_index() / kWarp; layer < a.count; layer += kGramWarps) {
    const GramLayer& l = a.layers[layer];
    double sum = 0;
    for (int block = thread_index() % kWarp; block < grid_blocks(); block += kWarp)
      sum += a.squares[int64_t(layer) * grid_blocks() + block];
    for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
    if (thread_index() % kWarp == 0)
      static_cast<W*>(a.losses)[layer] = W(sum / (double(l.n) * l.c * l.c));
  }
}

// Computes the Gram matrices of all layers.
template <class T, bool kCentered>
__global__ void __launch_bounds__(kGramThreads, 1) gram_matrix_kernel(const GramArguments a) {
  if (a.finished != nullptr && block_index() == 0 && thread_index() == 0) *a.finished = 0;
  const Range part = part_of(block_index(), grid_blocks(), a.cost);
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
  for (int i = 0; i < a.count; ++i) GramSums<Wide<T>>(a, i).run();
  if (a.squares != nullptr) store_losses<Wide<T>>(a);
}

}  // namespace stylekernels::device
