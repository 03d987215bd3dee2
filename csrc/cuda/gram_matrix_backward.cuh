// Gradient of Gram matrices with respect to the features of a list of layers, in one launch.
//
// First, S = scale (grad + grad^T), times the gradient of the layer's loss if there is one, is
// written in the type of the products, as PyTorch rounds the gradient of a bmm. In float16 each row
// is divided by a power of two, for float16 has a small range of exponents. Second, after a barrier
// of the grid, the product S x: blocks take tiles of channels and pixels, whose panels are loaded
// in a pipeline that goes on from tile to tile. Its rows are the dimension that is not dense in
// memory.
//
// Bytes: x is read once for up to 128 channels (64 in float32 and float64), and C / 128 times above
// that, mostly from L2; the gradient is written once. Operations: C^2 multiply-adds a pixel. A
// block of 256 threads has up to 197 registers a thread and four stages of 45 KB: one on a
// multiprocessor.
//
// Predicted for an H200, not measured (see gram_matrix_forward.cuh): a tile of 64 channels and 256
// pixels in bfloat16 moves 64 KB, 3,560 cycles; its products take 810, shared memory 1,000 with the
// results. 4 x 64 x 256 x 256 in bfloat16: floor 15.8 us, predicted 21 with the launch, S and the
// barrier.
#pragma once

#include "gram_matrix_symmetric.cuh"

namespace stylekernels::device {

// Image, first channel and first pixel of a tile.
struct GradientTile {
  int image, channel;
  int64_t pixel;
};

// Extents of a tile, of its warps and panels. The rows of the product are channels if contiguous,
// else pixels.
template <class T, bool kCentered, Layout kLayout, bool kWide>
struct GradientShape {
  using O = Operand<T, kCentered>;
  static constexpr bool kContiguous = kLayout == Layout::contiguous;
  static constexpr int kChannels = kWide ? 128 : 64;
  static constexpr int kPixels = sizeof(O) == 8 ? 64 : sizeof(O) == 4 || kWide ? 128 : 256;
  static constexpr int kDepth = kStepDepth<O>;
  static constexpr int kRows = kContiguous ? kChannels : kPixels;
  static constexpr int kLeft = sizeof(O) == 2 ? 4 : 2, kRight = sizeof(O) == 8 ? 1 : 2;
  static constexpr int kColumns = kChannels * kPixels / kRows / kBlockRows / kRight;  // warps
  static_assert(kRows / kBlockRows / kLeft * kColumns == kGramWarps);
  using S = Panel<O, true, kChannels, kDepth>;
  using X = Panel<T, !kContiguous, kPixels, kDepth>;
  static constexpr int kStageBytes = S::kBytes + X::kBytes;
  static constexpr int kResults = kRight * kBlockRows;  // of a warp, in a row
};

// Bytes of a stage, of any shape that layers may have.
template <class T, bool kCentered>
constexpr int gradient_stage_bytes() {
  constexpr bool kWide = sizeof(Operand<T, kCentered>) == 2;
  int largest = 0;
  for (const int bytes : {GradientShape<T, kCentered, Layout::contiguous, false>::kStageBytes,
                          GradientShape<T, kCentered, Layout::channels_last, false>::kStageBytes,
                          GradientShape<T, kCentered, Layout::contiguous, kWide>::kStageBytes,
                          GradientShape<T, kCentered, Layout::channels_last, kWide>::kStageBytes})
    largest = bytes > largest ? bytes : largest;
  return largest;
}

// Rows of results that a warp rounds at a time, and elements from row to row in shared memory: 16
// bytes more than a row has.
constexpr int kResultRows = kBlockRows / 2;
template <class T, int kResults>
constexpr int kResultStride = kResults + kVectorLanes<T>;

// Bytes of shared memory for results.
template <class T>
constexpr int kResultBytes =
    kGramWarps * kResultRows * kResultStride<T, 2 * kBlockRows> * int(sizeof(T));

// Gradients of some tiles of a layer.
template <class T, bool kCentered, Layout kLayout, bool kWide>
class GradientProducts {
  using O = Operand<T, kCentered>;
  using W = Wide<T>;
  using Shape = GradientShape<T, kCentered, kLayout, kWide>;
  using S = typename Shape::S;
  using X = typename Shape::X;
  static constexpr bool kContiguous = Shape::kContiguous;
  static constexpr int kLeft = Shape::kLeft, kRight = Shape::kRight;
  using Blocks = Block<W>[kLeft][kRight];

 public:
  __device__ GradientProducts(const GradientArguments& arguments, const GradientLayer& layer)
      : a_(arguments),
        l_(layer),
        row_(warp_index() / Shape::kColumns * kLeft * kBlockRows),
        column_(warp_index() % Shape::kColumns * kRight * kBlockRows) {}

  __device__ void run(int first_tile, int last_tile) {
    int loaded_tile = first_tile, loaded_step = 0;
    GradientTile loaded = tile_of(loaded_tile);
    const auto load = [&](int stage) {
      if (loaded_tile == last_tile) return;
      load_step(loaded, loaded_step * Shape::kDepth, stage);
      if (++loaded_step < l_.steps) return;
      loaded_step = 0;
      loaded = tile_of(++loaded_tile);
    };
    Pipeline pipeline(a_.stages, load);
    for (int number = first_tile; number < last_tile; ++number) {
      const GradientTile tile = tile_of(number);
      clear(sums_);
      for (int step = 0; step < l_.steps; ++step)
        multiply_step(tile.image, step * Shape::kDepth, pipeline.next(load));
      store(tile);
    }
    block_barrier();  // before others use the stages
  }

 private:
  static constexpr int kStride = kResultStride<T, Shape::kResults>;

  // Tiles of the same pixels follow each other: they read the same features.
  __device__ GradientTile tile_of(int tile) const {
    const int column = tile / l_.rows;
    return {column / l_.columns, tile % l_.rows * Shape::kChannels,
            int64_t(column % l_.columns) * Shape::kPixels};
  }

  __device__ O* s_panel(int stage) const {
    return reinterpret_cast<O*>(shared_memory() + stage * a_.stage_bytes);
  }
  __device__ T* x_panel(int stage) const {
    return reinterpret_cast<T*>(shared_memory() + stage * a_.stage_bytes + S::kBytes);
  }

  // Begins to load S and features from a channel on.
  __device__ void load_step(const GradientTile& tile, int depth, int stage) const {
    const O* product = static_cast<const O*>(l_.product) +
                       (int64_t(tile.image) * l_.c + tile.channel) * l_.stride + depth;
    load_panel<S, kGramThreads>(
        s_panel(stage), Lines<O>{product, l_.stride, l_.c - tile.channel, l_.stride - depth, true});
    load_panel<X, kGramThreads>(
        x_panel(stage),
        lines_of<T, kLayout>(l_.x, tile.image, l_.c, l_.pixels, l_.aligned, depth, tile.pixel));
  }

  __device__ static void clear(Blocks& blocks) {
#pragma unroll
    for (auto& row : blocks)
#pragma unroll
      for (Block<W>& block : row) block.clear();
  }

  // Reads a centred fragment F of features.
  template <class F>
  __device__ static F centered(const T* panel, int row, int depth, const Center<W> (&centers)[2]) {
    return X::template widened<F>(panel, row, depth,
                                  [&](W value, int, int j) { return centers[j](value); });
  }

  // Multiplies the channels of a step. Tensor cores round sums towards zero: products of tf32,
  // which are to be exact to float32, are summed over one step only before they are added to
  // others.
  __device__ void multiply_step(int image, int channel, int stage) {
    if constexpr (sizeof(O) == 4) {
      Blocks products;
      clear(products);
      multiply_step(image, channel, stage, products);
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
#pragma unroll
        for (int j = 0; j < kRight; ++j) sums_[i][j].add(products[i][j], 1);
    } else {
      multiply_step(image, channel, stage, sums_);
    }
  }

  __device__ void multiply_step(int image, int channel, int stage, Blocks& sums) const {
    const O* s = s_panel(stage);
    const T* x = x_panel(stage);
#pragma unroll(kUnrolled<O>)
    for (int depth = 0; depth < Shape::kDepth; depth += kFragmentDepth<O>) {
      Center<W> centers[2];  // of a lane's channels
      if constexpr (kCentered) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          centers[j] =
              Center<W>::of(l_.mean, l_.n, l_.c, image, channel + depth + lane_index() % 4 + j * 4);
      }
      Left<O> lefts[kLeft];
      Right<O> rights[kRight];
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const int row = column_ + j * kBlockRows;
        if constexpr (!kContiguous)
          rights[j] = S::right(s, row, depth);
        else if constexpr (kCentered)
          rights[j] = centered<Right<O>>(x, row, depth, centers);
        else
          rights[j] = X::right(x, row, depth);
      }
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        const int row = row_ + i * kBlockRows;
        if constexpr (kContiguous)
          lefts[i] = S::left(s, row, depth);
        else if constexpr (kCentered)
          lefts[i] = centered<Left<O>>(x, row, depth, centers);
        else
          lefts[i] = X::left(x, row, depth);
      }
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
#pragma unroll
        for (int j = 0; j < kRight; ++j) multiply_add(sums[i][j], lefts[i], rights[j]);
    }
  }

  // Rounds a warp's results, some rows at a time, and stores them in vectors along their rows.
  __device__ void store(const GradientTile& tile) {
    T* results = reinterpret_cast<T*>(shared_memory() + a_.stages * a_.stage_bytes) +
                 warp_index() * kResultRows * kStride;
    constexpr int kLanes = kVectorLanes<T>, kVectors = Shape::kResults / kLanes;  // of a row
    T* image = static_cast<T*>(l_.grad_x) + int64_t(tile.image) * l_.c * l_.pixels;
    const int64_t rows = kContiguous ? l_.c : l_.pixels, stride = kContiguous ? l_.pixels : l_.c;
#pragma unroll
    for (int begin = 0; begin < kLeft * kBlockRows; begin += kResultRows) {
      warp_barrier();  // the results before have been read
      const int upper = begin / kBlockRows * kBlockRows;
#pragma unroll
      for (int j = 0; j < kRight; ++j)
        sums_[begin / kBlockRows][j].for_each_pair(
            begin != upper, [&](int row, int column, W first, W second) {
              row += upper;
              column += j * kBlockRows;
              Vector<T, 2> pair;
              pair.set(0, rounded(tile, row, column, first));
              pair.set(1, rounded(tile, row, column + 1, second));
              vector_at<2>(results + (row - begin) * kStride + column) = pair;
            });
      warp_barrier();
      for (int k = lane_index(); k < kResultRows * kVectors; k += kWarp) {
        const int at = k % kVectors * kLanes, below = k / kVectors;
        const int64_t row = (kContiguous ? tile.channel : tile.pixel) + row_ + begin + below;
        const int64_t column = (kContiguous ? tile.pixel : tile.channel) + column_ + at;
        if (row >= rows || column >= stride) continue;
        store_vector(image + row * stride + column, results + below * kStride + at,
                     stride - column);
      }
    }
  }

  // Rounds a result. In float16 it is multiplied by the power of two of its channel's row of S.
  __device__ T rounded(const GradientTile& tile, int row, int column, W value) const {
    if constexpr (std::is_same_v<O, Float16>) {
      const int channel = tile.channel + (kContiguous ? row_ + row : column_ + column);
      value *= channel < l_.c ? l_.powers[int64_t(tile.image) * l_.c + channel] : 0;
    }
    T result;
    round_to(value, result);
    return result;
  }

  // Stores a vector of which `left` elements are inside of the tensor.
  __device__ void store_vector(T* to, const T* results, int64_t left) const {
    constexpr int kLanes = kVectorLanes<T>;
    if (l_.aligned && left >= kLanes) {
      store16(to, *reinterpret_cast<const Vector16*>(results));
      return;
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane)
      if (lane < left) to[lane] = results[lane];
  }

  const GradientArguments& a_;
  const GradientLayer& l_;
  const int row_, column_;
  Blocks sums_;
};

template <class T, bool kCentered, Layout kLayout>
__device__ inline void add_gradients(const GradientArguments& a, const GradientLayer& layer,
                                     int begin, int end) {
  if constexpr (sizeof(Operand<T, kCentered>) == 2) {
    if (layer.wide) return GradientProducts<T, kCentered, kLayout, true>(a, layer).run(begin, end);
  }
  GradientProducts<T, kCentered, kLayout, false>(a, layer).run(begin, end);
}

// Computes the gradients of all layers.
template <class T, bool kCentered>
__global__ void __launch_bounds__(kGramThreads, 1)
    gram_matrix_backward_kernel(const GradientArguments a) {
  for (int i = 0; i < a.count; ++i) write_symmetric<Operand<T, kCentered>>(a, i);
  grid_barrier();
  const Range part = part_of(block_index(), a.parts, a.cost);
  for (int i = 0; i < a.count; ++i) {
    const GradientLayer& layer = a.layers[i];
    const int64_t cost = layer.cost();
    const int begin = layer.tile_at(clamp64(part.begin - layer.first_cost, 0, cost));
    const int end = layer.tile_at(clamp64(part.end - layer.first_cost, 0, cost));
    if (begin >= end) continue;
    if (layer.layout == Layout::contiguous)
      add_gradients<T, kCentered, Layout::contiguous>(a, layer, begin, end);
    else
      add_gradients<T, kCentered, Layout::channels_last>(a, layer, begin, end);
  }
}

}  // namespace stylekernels::device
