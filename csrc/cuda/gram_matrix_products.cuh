// Products of Gram matrices: tiles of the lower triangle, and the pipeline of a block.
#pragma once

#include "gram_matrix.cuh"

namespace stylekernels::device {

// A layer: features, their Gram matrix, and the division of its lower triangle into tiles.
struct GramLayer {
  const void* x;
  const void* mean;       // (2, N, C), none: not centred
  void* gram;             // (N, C, C), out: with a target, the gradient of the loss
  const void* target;     // (N, C, C) or (C, C), none: no loss
  int64_t target_stride;  // from image to image
  Layout layout;
  bool aligned;  // lines of features, to 16 bytes
  bool wide;     // tiles of 128 channels, else of 64
  int n, c;
  int rows;        // tiles of a side
  int side;        // rows and columns of a tile that are stored, a multiple of 16
  int steps;       // of a tile
  int first_tile;  // number of the layer's first tile among all
  int ways;        // warps that add up the same elements: a power of two
  int turns;       // of a tile: a block adds up all of it in so many
  int64_t first_turn;
  int64_t pixels;
  int64_t first_cost;
  double scale;
  double slope;  // of the loss: 2 / elements of the Gram matrices

  __host__ __device__ int diagonal() const { return n * rows; }
  __host__ __device__ int below() const { return n * (rows * (rows - 1) / 2); }
  __host__ __device__ int tiles() const { return diagonal() + below(); }

  // The cost of all steps before one. A tile on the diagonal loads one panel a step, others two.
  __host__ __device__ int64_t cost_before(int64_t step) const {
    const int64_t once = int64_t(diagonal()) * steps;
    return step < once ? step : 2 * step - once;
  }
  __host__ __device__ int64_t cost() const { return cost_before(int64_t(tiles()) * steps); }

  // The first step that begins at a cost or behind it.
  __device__ int step_at(int64_t cost) const {
    const int64_t once = int64_t(diagonal()) * steps;
    return int(cost < once ? cost : (cost + once + 1) / 2);
  }
};

struct GramArguments {
  GramLayer layers[kMostLayers];
  int count;
  int parts;      // of all costs, one for each of the first blocks
  int64_t cost;   // of all layers
  int64_t turns;  // of all tiles
  int stages;
  int stage_bytes;
  int slot;         // elements of a slot of partial sums: the largest tile
  void* partial;    // slots, as many as tiles and parts
  double* squares;  // (layers, blocks): sums of squared differences; none: no loss
  void* losses;     // (layers,)
  int* finished;    // number of blocks that have added up
};

// Row and column of a tile in its Gram matrix. Those on the diagonal come first, of all images.
struct GramTile {
  int image, row, column;

  __device__ GramTile(const GramLayer& layer, int tile) {
    if (tile < layer.diagonal()) {
      image = tile / layer.rows;
      row = column = tile % layer.rows;
      return;
    }
    const int each = layer.rows * (layer.rows - 1) / 2;
    image = (tile - layer.diagonal()) / each;
    column = (tile - layer.diagonal()) % each;
    for (row = 1; column >= row; ++row) column -= row;
  }

  __device__ bool is_diagonal() const { return row == column; }
};

// Groups of warps, which sum over different pixels. There are two in narrow tiles, but one in
// float64, whose sums take more registers.
template <class T>
__host__ __device__ constexpr int gram_groups(bool wide) {
  return wide || sizeof(T) == 8 ? 1 : 2;
}

// Extents of a tile of products, of its warps, and of its panels.
template <class T, Layout kLayout, bool kWide>
struct GramShape {
  static constexpr int kTile = kWide ? 128 : 64;
  static constexpr int kGroups = gram_groups<T>(kWide);
  static constexpr int kDepth = kStepDepth<T>;
  static constexpr int kPixels = kDepth * kGroups;  // of a step
  static constexpr int kLeft = kWide ? 4 : 2;       // blocks of a warp
  static constexpr int kRight = sizeof(T) == 8 ? 1 : 2;
  static constexpr int kColumns = kTile / kBlockRows / kRight;  // warps side by side
  static constexpr int kWarps = kGramWarps / kGroups;
  using P = Panel<T, kLayout == Layout::contiguous, kTile, kPixels>;
};

// Bytes of a stage: two panels, of any shape that layers may have.
template <class T>
constexpr int gram_stage_bytes() {
  int largest = 0;
  for (const int bytes : {GramShape<T, Layout::contiguous, false>::P::kBytes,
                          GramShape<T, Layout::channels_last, false>::P::kBytes,
                          GramShape<T, Layout::contiguous, sizeof(T) == 2>::P::kBytes,
                          GramShape<T, Layout::channels_last, sizeof(T) == 2>::P::kBytes})
    largest = bytes > largest ? bytes : largest;
  return 2 * largest;
}

// Bytes of shared memory in which warps exchange sums: those of a narrow tile in float32.
constexpr int kGramExchangeBytes = 64 * 64 * int(sizeof(float));

// Products of a block's part of a layer, tile by tile.
template <class T, bool kCentered, Layout kLayout, bool kWide>
class GramProducts {
  using O = Operand<T, kCentered>;
  using W = Wide<T>;
  using Shape = GramShape<T, kLayout, kWide>;
  using P = typename Shape::P;
  static constexpr int kLeft = Shape::kLeft, kRight = Shape::kRight;

 public:
  __device__ GramProducts(const GramArguments& arguments, const GramLayer& layer)
      : a_(arguments),
        l_(layer),
        group_(warp_index() / Shape::kWarps),
        row_(warp_index() % Shape::kWarps / Shape::kColumns * kLeft * kBlockRows),
        column_(warp_column() * kRight * kBlockRows),
        scale_(W(layer.scale)) {}

  // Adds up the products of some steps, and stores the sums of each tile.
  __device__ void run(int begin, int end) {
    int loaded_tile = begin / l_.steps, loaded_step = begin % l_.steps, unloaded = end - begin;
    GramTile loaded(l_, loaded_tile);
    const auto load = [&](int stage) {
      if (unloaded == 0) return;
      const int64_t pixel = int64_t(loaded_step) * Shape::kPixels;
      load_channels(loaded.image, loaded.row, pixel, panel(stage, 0));
      if (!loaded.is_diagonal()) load_channels(loaded.image, loaded.column, pixel, panel(stage, 1));
      --unloaded;
      if (++loaded_step < l_.steps || unloaded == 0) return;
      loaded_step = 0;
      loaded = GramTile(l_, ++loaded_tile);
    };
    Pipeline pipeline(a_.stages, load);
    int step = begin % l_.steps, left = end - begin;
    for (int number = begin / l_.steps; left > 0; ++number, step = 0) {
      const GramTile tile(l_, number);
      const int last = step + left < l_.steps ? step + left : l_.steps;
      left -= last - step;
      begin_tile(tile);
      for (; step < last; ++step) {
        const int stage = pipeline.next(load);
        if (blocks_ != 0) multiply_step(tile, step, stage);
      }
      store(number);
    }
    block_barrier();  // before others use the stages
  }

 private:
  // The columns of a warp's blocks. In wide tiles the upper warps take them in another order than
  // the lower ones, so that each quarter of a multiprocessor has about the same number of blocks
  // below the diagonal: warps w and w + 4 share one.
  __device__ static int warp_column() {
    const int column = warp_index() % Shape::kColumns;
    if (!kWide || warp_index() >= Shape::kColumns) return column;
    return column < 2 ? column + 2 : 3 - column;
  }

  __device__ T* panel(int stage, int which) const {
    return reinterpret_cast<T*>(shared_memory() + stage * a_.stage_bytes + which * P::kBytes);
  }

  __device__ W* exchange() const {
    return reinterpret_cast<W*>(shared_memory() + a_.stages * a_.stage_bytes);
  }

  __device__ void load_channels(int image, int tiles, int64_t pixel, T* panel) const {
    load_panel<P, kGramThreads>(
        panel, lines_of<T, kLayout>(l_.x, image, l_.c, l_.pixels, l_.aligned, tiles * Shape::kTile,
                                    pixel));
  }

  // Sets the sums of a tile to zero, finds the blocks that are wanted, below the diagonal or on it
  // and of channels of x, and reads the means of their channels.
  __device__ void begin_tile(const GramTile& tile) {
    blocks_ = 0;
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        sums_[i][j].clear();
        const int row = row_ + i * kBlockRows, column = column_ + j * kBlockRows;
        if (tile.row * Shape::kTile + row < l_.c && tile.column * Shape::kTile + column < l_.c &&
            (!tile.is_diagonal() || column <= row))
          blocks_ |= 1u << (i * kRight + j);
      }
    if constexpr (kCentered) {
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
        read_centers(tile.image, tile.row, row_ + i * kBlockRows, row_centers_[i]);
#pragma unroll
      for (int j = 0; j < kRight; ++j)
        read_centers(tile.image, tile.column, column_ + j * kBlockRows, column_centers_[j]);
    }
  }

  // Reads the means of a lane's two rows of a block.
  __device__ void read_centers(int image, int tiles, int row, Center<W> (&centers)[2]) const {
    const int channel = tiles * Shape::kTile + row + lane_index() / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      centers[i] = Center<W>::of(l_.mean, l_.n, l_.c, image, channel + i * 8);
  }

  // Reads a centred fragment F of a panel, of which `pixels` are inside of the image.
  template <class F>
  __device__ static F centered(const T* panel, int row, int depth, int pixels,
                               const Center<W> (&centers)[2]) {
    const int first = depth + lane_index() % 4;
    return P::template widened<F>(panel, row, depth, [&](W value, int i, int j) {
      return first + 4 * j < pixels ? centers[i](value) : W(0);
    });
  }

  __device__ void multiply_step(const GramTile& tile, int step, int stage) {
    const T* left = panel(stage, 0);
    const T* right = panel(stage, tile.is_diagonal() ? 0 : 1);
    const int pixels = clamp_to(l_.pixels - int64_t(step) * Shape::kPixels, Shape::kPixels);
    Block<W> products[kLeft][kRight];
#pragma unroll
    for (auto& row : products)
#pragma unroll
      for (Block<W>& block : row) block.clear();
#pragma unroll(kUnrolled<O>)
    for (int depth = 0; depth < Shape::kDepth; depth += kFragmentDepth<O>) {
      const int from = group_ * Shape::kDepth + depth;
      Left<O> lefts[kLeft];
      Right<O> rights[kRight];
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const int row = column_ + j * kBlockRows;
        if constexpr (kCentered)
          rights[j] = centered<Right<O>>(right, row, from, pixels, column_centers_[j]);
        else
          rights[j] = P::right(right, row, from);
      }
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        const int row = row_ + i * kBlockRows;
        if constexpr (kCentered)
          lefts[i] = centered<Left<O>>(left, row, from, pixels, row_centers_[i]);
        else
          lefts[i] = P::left(left, row, from);
      }
      // The busiest warps of a narrow tile have all their blocks, so that skipping saves nothing.
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
#pragma unroll
        for (int j = 0; j < kRight; ++j)
          if (!kWide || (blocks_ >> (i * kRight + j) & 1))
            multiply_add(products[i][j], lefts[i], rights[j]);
    }
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
#pragma unroll
      for (int j = 0; j < kRight; ++j) sums_[i][j].add(products[i][j], scale_);
  }

  // Stores the sums of a tile's part to its slot, rows one after the other.
  __device__ void store(int number) {
    if constexpr (Shape::kGroups == 2) {
      add_groups();
      if (group_ == 1) return;
    }
    W* slot =
        static_cast<W*>(a_.partial) + (int64_t(l_.first_tile) + number + block_index()) * a_.slot;
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
#pragma unroll
      for (int j = 0; j < kRight; ++j) {
        const int first = row_ + i * kBlockRows, column = column_ + j * kBlockRows;
        if (blocks_ == 0 || first >= l_.side || column >= l_.side) continue;
#pragma unroll
        for (const bool lower : {false, true})
          sums_[i][j].for_each_pair(lower, [&](int row, int behind, W sum, W next) {
            Vector<W, 2> pair;
            pair.set(0, sum);
            pair.set(1, next);
            vector_at<2>(slot + (first + row) * l_.side + column + behind) = pair;
          });
      }
  }

  // Adds the sums of the second group to those of the first, whose threads have the same places.
  __device__ void add_groups() {
    constexpr int kThreads = kGramThreads / 2;
    W* at = exchange() + thread_index() % kThreads;
    if (group_ == 1)
#pragma unroll
      for (int i = 0; i < kLeft * kRight * 8; ++i) at[i * kThreads] = sum(i);
    block_barrier();
    if (group_ == 0)
#pragma unroll
      for (int i = 0; i < kLeft * kRight * 8; ++i) sum(i) += at[i * kThreads];
  }

  __device__ W& sum(int i) { return sums_[i / 8 / kRight][i / 8 % kRight].sums[i / 4 % 2][i % 4]; }

  const GramArguments& a_;
  const GramLayer& l_;
  const int group_, row_, column_;
  const W scale_;
  uint32_t blocks_ = 0;  // a bit for each block that is wanted
  Block<W> sums_[kLeft][kRight];
  Center<W> row_centers_[kLeft][2], column_centers_[kRight][2];  // of a lane's channels
};

template <class T, bool kCentered, Layout kLayout>
__device__ inline void add_products(const GramArguments& a, const GramLayer& layer, int begin,
                                    int end) {
  if constexpr (sizeof(Operand<T, kCentered>) == 2) {
    if (layer.wide) return GramProducts<T, kCentered, kLayout, true>(a, layer).run(begin, end);
  }
  GramProducts<T, kCentered, kLayout, false>(a, layer).run(begin, end);
}

}  // namespace stylekernels::device
