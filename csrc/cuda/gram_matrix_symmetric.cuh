// The symmetric matrices S = scale (grad + grad^T) of the gradient of Gram matrices.
#pragma once

#include <cmath>

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
  int parts;                // of all costs, one for each of the first blocks
};

// Columns of S that a warp writes of eight rows.
constexpr int kSymmetricColumns = 128;

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

// Eight rows of S of an image, of which a lane computes elements of one.
template <class O>
class SymmetricRows {
  using W = Wide<O>;

 public:
  __device__ SymmetricRows(const GradientLayer& layer, int64_t image, int first, double factor)
      : l_(layer),
        image_(image),
        row_(first + unit_row()),
        factor_(W(factor)),
        grad_(static_cast<const W*>(layer.grad) + image * layer.c * layer.c) {}

  // Writes some columns, and zeros behind the last one, up to the stride.
  __device__ void write(int begin, int end) const {
    W inverse = 1;
    if constexpr (std::is_same_v<O, Float16>) inverse = store_power();
    if (end > l_.stride) end = l_.stride;
    O* to = static_cast<O*>(l_.product) + (image_ * l_.c + row_) * l_.stride;
    for (int column = begin + unit_column(); column < end; column += kUnitColumns) {
      W values[kEach];
      read(column, values);
      if (row_ >= l_.c) continue;
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (column + k < end) {
          O element;
          round_to(values[k] * inverse, element);
          to[column + k] = element;
        }
    }
  }

 private:
  // Elements of a row, zeros outside of S.
  __device__ void read(int column, W (&values)[kEach]) const {
    const int64_t c = l_.c;
    W along[kEach], across[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const bool inside = row_ < c && column + k < c;
      along[k] = inside ? grad_[row_ * c + column + k] : W(0);
      across[k] = inside ? grad_[(column + k) * c + row_] : W(0);
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) values[k] = (along[k] + across[k]) * factor_;
  }

  // Stores the power of two that the row's results are to be multiplied by, and returns its
  // inverse.
  __device__ float store_power() const {
    float largest = 0;
    for (int column = unit_column(); column < whole_columns(); column += kUnitColumns) {
      W values[kEach];
      read(column, values);
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const float size = fabsf(values[k]);
        if (size - size == 0 && size > largest) largest = size;  // finite
      }
    }
    for (int mask = 1; mask < 4; mask *= 2) {  // the lanes of a row
      const float other = shuffle_xor(largest, mask);
      if (other > largest) largest = other;
    }
    const float power = row_power(largest);
    if (row_ < l_.c && unit_column() == 0) l_.powers[image_ * l_.c + row_] = power;
    return 1 / power;
  }

  // All columns, up to whole units, so that all lanes of a warp take as many turns.
  __device__ int whole_columns() const {
    return (l_.c + kUnitColumns - 1) / kUnitColumns * kUnitColumns;
  }

  const GradientLayer& l_;
  const int64_t image_;
  const int row_;
  const W factor_;
  const W* grad_;
};

// Writes S of a layer. Each warp takes eight rows and some columns at a time.
template <class O>
__device__ inline void write_symmetric(const GradientArguments& a, int layer) {
  using W = Wide<O>;
  const GradientLayer& l = a.layers[layer];
  double factor = l.scale;
  if (a.grad_losses != nullptr) factor *= double(static_cast<const W*>(a.grad_losses)[layer]);
  const int down = (l.c + kUnitRows - 1) / kUnitRows;
  const int across = (l.stride + kSymmetricColumns - 1) / kSymmetricColumns;
  const int64_t units = int64_t(l.n) * down * across;
  for (int64_t unit = int64_t(block_index()) * kGramWarps + warp_index(); unit < units;
       unit += int64_t(grid_blocks()) * kGramWarps) {
    const int begin = int(unit % across) * kSymmetricColumns;
    const int64_t rows = unit / across;
    SymmetricRows<O>(l, rows / down, int(rows % down) * kUnitRows, factor)
        .write(begin, begin + kSymmetricColumns);
  }
}

}  // namespace stylekernels::device
