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
  int steps;       // of a tile
  int first_tile;  // number of the layer's first tile among all
  int64_t pixels;
  int64_t first_cost;
  double scale;

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
  int64_t cost;  // of all layers
  int stages;
  int stage_bytes;
  int slot;         // elements of a slot of partial sums: the largest tile
  void* partial;    // slots, as many as tiles and blocks
  double* squares;  // (layers, blocks): sums of squared differences; none: no loss
  void* losses;     // (layers,)
  int* finished;    // number of blocks that have added up
};

// Row and column of a tile in its Gram matrix. Those on the diagonal come first, of all images.
struct GramTile {
  int image, row, column;

  __device__ GramTile(const GramLayer& layer, int tile) {
    if (tile >= layer.tiles()) {
      image = row = column = 0;  // none
      return;
    }
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
};

// A place in a layer's line of steps.
class GramCursor {
 public:
  __device__ GramCursor(const GramLayer& layer, int step)
      : layer_(layer),
        number_(step / layer.steps),
        step_(step % layer.steps),
        tile_(layer, number_) {}

  __device__ int number() const { return number_; }
  __device__ int step() const { return step_; }  // of the tile
  __device__ const GramTile& tile() const { return tile_; }
  __device__ bool is_last() const { return step_ + 1 == layer_.steps; }
  __device__ bool is_diagonal() const { return tile_.row == tile_.column; }

  __device__ void advance() {
    if (++step_ < layer_.steps) return;
    step_ = 0;
    tile_ = GramTile(layer_, ++number_);
  }

 private:
  const GramLayer& layer_;
  int number_, step_;
  GramTile tile_;
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
        group_(warp() / Shape::kWarps),
        row_(warp() % Shape::kWarps / Shape::kColumns * kLeft * kBlockRows),
        column_(warp_column() * kRight * kBlockRows) {}

  // Adds up the products of some steps, and stores the sums of each tile.
  __device__ void run(int begin, int end) {
    const int ahead = a_.stages - 1;
    GramCursor loaded(l_, begin), multiplied(l_, begin);
    for (int i = 0; i < ahead; ++i, loaded.advance()) {
      if (begin + i < end) load(loaded, i);
      commit_copies();
    }
    begin_tile(multiplied.tile());
    int slot = 0;
    for (int step = begin; step < end; ++step, loaded.advance()) {
      const int next = slot == 0 ? ahead : slot - 1;  // the slot of the step before
      wait_for_stage(a_.stages);
      block_barrier();
      if (step + ahead < end) load(loaded, next);
      commit_copies();
      multiply_step(multiplied, slot);
      const bool is_last = multiplied.is_last();
      if (is_last || step + 1 == end) store(multiplied);
      multiplied.advance();
      if (is_last && step + 1 < end) begin_tile(multiplied.tile());
      slot = slot == ahead ? 0 : slot + 1;
    }
    block_barrier();  // before others use the stages
  }

 private:
  __device__ static int warp() { return thread_index() / kWarp; }

  // The columns of a warp's blocks. In wide tiles the upper warps take them in another order than
  // the lower ones, so that each quarter of a multiprocessor has about the same number of blocks
  // below the diagonal: warps w and w + 4 share one.
  __device__ static int warp_column() {
    const int column = warp() % Shape::kColumns;
    if (!kWide || warp() >= Shape::kColumns) return column;
    return column < 2 ? column + 2 : 3 - column;
  }

  __device__ T* panel(int slot, int which) const {
    return reinterpret_cast<T*>(shared_memory() + slot * a_.stage_bytes + which * P::kBytes);
  }

  // Begins to load the panels of a step.
  __device__ void load(const GramCursor& at, int slot) const {
    const GramTile& tile = at.tile();
    load_channels(at, tile.row, panel(slot, 0));
    if (!at.is_diagonal()) load_channels(at, tile.column, panel(slot, 1));
  }

  __device__ void load_channels(const GramCursor& at, int tiles, T* panel) const {
    load_panel<P, kGramThreads>(
        panel, lines_of<T, kLayout>(l_.x, at.tile().image, l_.c, l_.pixels, l_.aligned,
                                    tiles * Shape::kTile, int64_t(at.step()) * Shape::kPixels));
  }

  // Whether a block has products that are wanted: below the diagonal or on it, of channels of x.
  __device__ bool wanted(const GramTile& tile, int i, int j) const {
    const int row = row_ + i * kBlockRows, column = column_ + j * kBlockRows;
    return tile.row * Shape::kTile + row < l_.c && tile.column * Shape::kTile + column < l_.c &&
           (tile.row != tile.column || column <= row);
  }

  // Reads a fragment of a panel, of which `pixels` are inside of the image.
  __device__ Fragment<O> fragment(const T* panel, int row, int depth, int pixels,
                                  const Center<W> (&centers)[2]) const {
    if constexpr (kCentered) {
      const int first = depth + thread_index() % kWarp % 4;
      return P::template fragment<O>(panel, row, depth, [&](W value, int i, int j) {
        return first + 4 * j < pixels ? centers[i](value) : W(0);
      });
    } else {
      return P::fragment(panel, row, depth);
    }
  }

  __device__ void multiply_step(const GramCursor& at, int slot) {
    using F = Fragment<O>;
    const GramTile& tile = at.tile();
    const T* left = panel(slot, 0);
    const T* right = panel(slot, at.is_diagonal() ? 0 : 1);
    bool any = false;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) any |= wanted(tile, i, 0);
    if (!any) return;
    const int64_t behind = l_.pixels - int64_t(at.step()) * Shape::kPixels;
    const int pixels = behind < Shape::kPixels ? int(behind) : Shape::kPixels;
    Block<W> products[kLeft][kRight];
#pragma unroll
    for (auto& row : products)
#pragma unroll
      for (Block<W>& block : row) block.clear();
    for (int depth = 0; depth < Shape::kDepth; depth += F::kDepth) {
      const int from = group_ * Shape::kDepth + depth;
      F rights[kRight];
#pragma unroll
      for (int j = 0; j < kRight; ++j)
        rights[j] = fragment(right, column_ + j * kBlockRows, from, pixels, column_centers_[j]);
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        const F own = fragment(left, row_ + i * kBlockRows, from, pixels, row_centers_[i]);
#pragma unroll
        for (int j = 0; j < kRight; ++j)
          if (wanted(tile, i, j)) multiply_add(products[i][j], own, rights[j]);
      }
    }
    const W scale = W(l_.scale);
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
#pragma unroll
      for (int j = 0; j < kRight; ++j) sums_[i][j].add(products[i][j], scale);
  }

  // Stores the sums of a tile's part to its slot, rows one after the other.
  __device__ void store(const GramCursor& at_end) {
    const GramTile& tile = at_end.tile();
    W* exchange = reinterpret_cast<W*>(shared_memory() + a_.stages * a_.stage_bytes);
    W* slot = static_cast<W*>(a_.partial) +
              (int64_t(l_.first_tile) + at_end.number() + block_index()) * a_.slot;
    if (Shape::kGroups == 2) {
      if (group_ == 1)
        for_each_pair(tile, [&](int row, int column, W first, W second) {
          exchange[row * Shape::kTile + column] = first;
          exchange[row * Shape::kTile + column + 1] = second;
        });
      block_barrier();
    }
    if (group_ == 0)
      for_each_pair(tile, [&](int row, int column, W first, W second) {
        const int at = row * Shape::kTile + column;
        if (Shape::kGroups == 2) {
          first += exchange[at];
          second += exchange[at + 1];
        }
        Vector<W, 2> pair;
        pair.set(0, first);
        pair.set(1, second);
        *reinterpret_cast<Vector<W, 2>*>(slot + at) = pair;
      });
  }

  template <class F>
  __device__ void for_each_pair(const GramTile& tile, const F& f) const {
#pragma unroll
    for (int i = 0; i < kLeft; ++i)
#pragma unroll
      for (int j = 0; j < kRight; ++j)
#pragma unroll
        for (const bool lower : {false, true})
          if (wanted(tile, i, j))
            sums_[i][j].for_each_pair(lower, [&](int row, int column, W first, W second) {
              f(row_ + i * kBlockRows + row, column_ + j * kBlockRows + column, first, second);
            });
  }

  // Reads the means of a lane's two rows of a block.
  __device__ void read_centers(int image, int tiles, int row, Center<W> (&centers)[2]) const {
    const int channel = tiles * Shape::kTile + row + thread_index() % kWarp / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      centers[i] = Center<W>::of(l_.mean, l_.n, l_.c, image, channel + i * 8);
  }

  // Sets the sums of a tile to zero, and reads the means of its channels.
  __device__ void begin_tile(const GramTile& tile) {
#pragma unroll
    for (auto& row : sums_)
#pragma unroll
      for (Block<W>& block : row) block.clear();
    if constexpr (kCentered) {
#pragma unroll
      for (int i = 0; i < kLeft; ++i)
        read_centers(tile.image, tile.row, row_ + i * kBlockRows, row_centers_[i]);
#pragma unroll
      for (int j = 0; j < kRight; ++j)
        read_centers(tile.image, tile.column, column_ + j * kBlockRows, column_centers_[j]);
    }
  }

  const GramArguments& a_;
  const GramLayer& l_;
  const int group_, row_, column_;
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
