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
// block of 256 threads has up to 240 registers a thread and four stages of 45 KB: one on a
// multiprocessor. Predicted for an H200 (see gram_matrix_forward.cuh; not measured): a tile of 64
// channels and 256 pixels in bfloat16 moves 64 KB, 3,170 cycles; its products take 810, shared
// memory 1,000 with the results. 4 x 64 x 256 x 256 in bfloat16: 67 MB, 15.6 us, and 3 us for S and
// the barrier.
#pragma once

#include "gram_matrix.cuh"

namespace stylekernels::device {

struct GradientLayer {
  const void* grad;  // (N, C, C)
  const void* x;
  const void* mean;  // (2, N, C), none: not centred
  void* product;     // (N, C, stride) scratch: S
  float* powers;     // (N, C) scratch: what the rows of S are to be multiplied by; none: by one
  void* grad_x;
  Layout layout;
  bool aligned;  // lines of x and grad_x, to 16 bytes
  bool wide;     // tiles of 128 channels, else of 64
  int n, c;
  int stride;   // from row to row of S, a multiple of 16 bytes
  int steps;    // of a tile
  int rows;     // tiles of all channels
  int columns;  // tiles of all pixels
  int64_t pixels;
  int64_t first_cost;  // a tile costs its steps, and one for its results
  double scale;

  __host__ __device__ int tiles() const { return n * rows * columns; }
  __host__ __device__ int64_t cost() const { return int64_t(tiles()) * (steps + 1); }
  __device__ int tile_at(int64_t cost) const { return int((cost + steps) / (steps + 1)); }
};

struct GradientArguments {
  GradientLayer layers[kMostLayers];
  int count;
  int64_t cost;  // of all layers
  int stages;
  int stage_bytes;
  const void* grad_losses;  // (layers,), none: 1
};

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

// Rows of results that a warp rounds at a time.
constexpr int kResultRows = kBlockRows / 2;

// Elements of a row of results in shared memory: 16 bytes more than it has.
template <class T>
constexpr int kResultStride = 2 * kBlockRows + kVectorLanes<T>;

template <class T>
constexpr int kResultBytes = kGramWarps * kResultRows * kResultStride<T> * int(sizeof(T));

// The power of two that a row of S is divided by: its largest finite number becomes 1 to 2.
__device__ inline float row_power(float largest) {
  uint32_t bits;
  __builtin_memcpy(&bits, &largest, sizeof(bits));
  bits &= 0x7F800000;  // the exponent
  const uint32_t low = 1u << 23, high = 253u << 23;
  bits = bits < low ? low : bits > high ? high : bits;
  float power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return power;
}

// Writes the rows of S of a layer: each warp takes one, and a block neighbouring ones, since they
// share the sectors of grad's columns.
template <class O>
__device__ inline void write_product(const GradientArguments& a, int layer) {
  using W = Wide<O>;
  const GradientLayer& l = a.layers[layer];
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  double factor = l.scale;
  if (a.grad_losses != nullptr) factor *= double(static_cast<const W*>(a.grad_losses)[layer]);
  const int64_t c = l.c;
  for (int64_t row = int64_t(block_index()) * kGramWarps + warp; row < l.n * c;
       row += int64_t(grid_blocks()) * kGramWarps) {
    const int64_t i = row % c;
    const W* grad = static_cast<const W*>(l.grad) + row / c * c * c;
    O* to = static_cast<O*>(l.product) + row * l.stride;
    const auto value = [&](int64_t k) { return (grad[i * c + k] + grad[k * c + i]) * W(factor); };
    W divisor = 1;
    if (l.powers != nullptr) {
      float largest = 0;
#pragma unroll 4
      for (int64_t k = lane; k < c; k += kWarp) {
        const float size = fabsf(float(value(k)));
        if (size - size == 0 && size > largest) largest = size;  // finite
      }
      for (int mask = 1; mask < kWarp; mask *= 2) {
        const float other = shuffle_xor(largest, mask);
        if (other > largest) largest = other;
      }
      const float power = row_power(largest);
      if (lane == 0) l.powers[row] = power;
      divisor = W(power);
    }
#pragma unroll 4
    for (int64_t k = lane; k < c; k += kWarp) {
      const W scaled = value(k) / divisor;
      round_to(scaled, to[k]);
    }
  }
}

// Gradients of some tiles of a layer.
template <class T, bool kCentered, Layout kLayout, bool kWide>
class GradientProducts {
  using O = Operand<T, kCentered>;
  using W = Wide<T>;
  using F = Fragment<O>;
  using Shape = GradientShape<T, kCentered, kLayout, kWide>;
  using S = typename Shape::S;
  using X = typename Shape::X;
  static constexpr bool kContiguous = Shape::kContiguous;
  static constexpr int kLeft = Shape::kLeft, kRight = Shape::kRight;

 public:
  __device__ GradientProducts(const GradientArguments& arguments, const GradientLayer& layer)
      : a_(arguments),
        l_(layer),
        row_(warp() / Shape::kColumns * kLeft * kBlockRows),
        column_(warp() % Shape::kColumns * kRight * kBlockRows) {}

  __device__ void run(int first_tile, int last_tile) {
    const int ahead = a_.stages - 1, count = (last_tile - first_tile) * l_.steps;
    Cursor loaded{first_tile, 0}, multiplied{first_tile, 0};
    for (int i = 0; i < ahead; ++i, advance(loaded)) {
      if (i < count) load(loaded, i);
      commit_copies();
    }
    clear(sums_);
    int slot = 0;
    for (int i = 0; i < count; ++i, advance(loaded), advance(multiplied)) {
      const int next = slot == 0 ? ahead : slot - 1;  // the slot of the step before
      wait_for_stage(a_.stages);
      block_barrier();
      if (i + ahead < count) load(loaded, next);
      commit_copies();
      multiply_step(multiplied, slot);
      if (multiplied.step + 1 == l_.steps) {
        store(tile_of(multiplied.tile));
        clear(sums_);
      }
      slot = slot == ahead ? 0 : slot + 1;
    }
    block_barrier();  // before others use the stages
  }

 private:
  struct Cursor {
    int tile, step;
  };

  __device__ static int warp() { return thread_index() / kWarp; }

  __device__ void advance(Cursor& at) const {
    if (++at.step < l_.steps) return;
    at.step = 0;
    ++at.tile;
  }

  // Tiles of the same pixels follow each other: they read the same features.
  __device__ GradientTile tile_of(int tile) const {
    const int column = tile / l_.rows;
    return {column / l_.columns, tile % l_.rows * Shape::kChannels,
            int64_t(column % l_.columns) * Shape::kPixels};
  }

  __device__ O* s_panel(int slot) const {
    return reinterpret_cast<O*>(shared_memory() + slot * a_.stage_bytes);
  }
  __device__ T* x_panel(int slot) const {
    return reinterpret_cast<T*>(shared_memory() + slot * a_.stage_bytes + S::kBytes);
  }

  // Begins to load the panels of a step.
  __device__ void load(const Cursor& at, int slot) const {
    const GradientTile tile = tile_of(at.tile);
    const int depth = at.step * Shape::kDepth;
    const O* product = static_cast<const O*>(l_.product) +
                       (int64_t(tile.image) * l_.c + tile.channel) * l_.stride + depth;
    load_panel<S, kGramThreads>(
        s_panel(slot), Lines<O>{product, l_.stride, l_.c - tile.channel, l_.c - depth, true});
    load_panel<X, kGramThreads>(
        x_panel(slot),
        lines_of<T, kLayout>(l_.x, tile.image, l_.c, l_.pixels, l_.aligned, depth, tile.pixel));
  }

  using Blocks = Block<W>[kLeft][kRight];

  __device__ static void clear(Blocks& blocks) {
#pragma unroll
    for (auto& row : blocks)
#pragma unroll
      for (Block<W>& block : row) block.clear();
  }

  __device__ F x_fragment(int slot, int row, int depth, const Center<W> (&centers)[2]) const {
    if constexpr (kCentered)
      return X::template fragment<O>(x_panel(slot), row, depth,
                                     [&](W value, int, int j) { return centers[j](value); });
    else
      return X::fragment(x_panel(slot), row, depth);
  }

  // Tensor cores round sums towards zero. Products of tf32, which are to be exact to float32, are
  // therefore summed over one step only before they are added to others.
  __device__ void multiply_step(const Cursor& at, int slot) {
    if constexpr (sizeof(O) == 4) {
      Blocks products;
      clear(products);
      multiply_step(at, slot, products);
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
#pragma unroll
        for (int j = 0; j < kRight; ++j) sums_[i][j].add(products[i][j], 1);
    } else {
      multiply_step(at, slot, sums_);
    }
  }

  __device__ void multiply_step(const Cursor& at, int slot, Blocks& sums) const {
    const int image = tile_of(at.tile).image, channel = at.step * Shape::kDepth;
    for (int depth = 0; depth < Shape::kDepth; depth += F::kDepth) {
      Center<W> centers[2];  // of a lane's channels
      if constexpr (kCentered) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          centers[j] = Center<W>::of(l_.mean, l_.n, l_.c, image,
                                     channel + depth + thread_index() % kWarp % 4 + j * 4);
      }
      F rights[kRight];
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const int row = column_ + j * kBlockRows;
        rights[j] = kContiguous ? x_fragment(slot, row, depth, centers)
                                : S::fragment(s_panel(slot), row, depth);
      }
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        const int row = row_ + i * kBlockRows;
        const F left = kContiguous ? S::fragment(s_panel(slot), row, depth)
                                   : x_fragment(slot, row, depth, centers);
#pragma unroll
        for (int j = 0; j < kRight; ++j) multiply_add(sums[i][j], left, rights[j]);
      }
    }
  }

  // Rounds a warp's results, some rows at a time, and stores them in vectors along their rows.
  __device__ void store(const GradientTile& tile) {
    const int lane = thread_index() % kWarp;
    T* results = reinterpret_cast<T*>(shared_memory() + a_.stages * a_.stage_bytes) +
                 warp() * kResultRows * kResultStride<T>;
    constexpr int kLanes = kVectorLanes<T>, kVectors = Shape::kResults / kLanes;  // of a row
    T* image = static_cast<T*>(l_.grad_x) + int64_t(tile.image) * l_.c * l_.pixels;
    const int64_t rows = kContiguous ? l_.c : l_.pixels, stride = kContiguous ? l_.pixels : l_.c;
#pragma unroll
    for (int begin = 0; begin < kLeft * kBlockRows; begin += kResultRows) {
      warp_barrier();  // the results before have been read
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const int upper = begin / kBlockRows * kBlockRows;
        sums_[begin / kBlockRows][j].for_each_pair(
            begin != upper, [&](int row, int column, W first, W second) {
              row += upper;
              column += j * kBlockRows;
              T* to = results + (row - begin) * kResultStride<T> + column;
              round_to(W(first * power_of(tile, row, column)), to[0]);
              round_to(W(second * power_of(tile, row, column + 1)), to[1]);
            });
      }
      warp_barrier();
      for (int k = lane; k < kResultRows * kVectors; k += kWarp) {
        const int at = k % kVectors * kLanes, below = k / kVectors;
        const int64_t row = (kContiguous ? tile.channel : tile.pixel) + row_ + begin + below;
        const int64_t column = (kContiguous ? tile.pixel : tile.channel) + column_ + at;
        if (row >= rows || column >= stride) continue;
        store_vector(image + row * stride + column, results + below * kResultStride<T> + at,
                     stride - column);
      }
    }
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

  // The power of two of a result's channel.
  __device__ W power_of(const GradientTile& tile, int row, int column) const {
    if (l_.powers == nullptr) return 1;
    const int channel = tile.channel + (kContiguous ? row_ + row : column_ + column);
    return channel < l_.c ? W(l_.powers[int64_t(tile.image) * l_.c + channel]) : W(0);
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
  for (int i = 0; i < a.count; ++i) write_product<Operand<T, kCentered>>(a, i);
  grid_barrier();
  const Range part = part_of(block_index(), grid_blocks(), a.cost);
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
