// Gram matrix on the CPU, and its gradient: matrix products with one triangle, or a symmetric
// factor.
//
// Reads x once, N C P elements, and does N C^2 P / 2 multiply-adds (a library's product does twice
// that): from C = 32 on it is bound by arithmetic. A task owns a slice of an image's pixels and a
// full set of sums: see gram_rows.h (AVX-512), gram_panels.h (narrower vectors) and gram_tiles.h
// (bfloat16 on AMX, unless features are centred). The slices' sums are added in order: results do
// not depend on timing.
//
// The gradient is x times S = scale (grad + grad^T), N C^2 P multiply-adds. A task owns a block
// of pixels. channels_last: pixels are the rows and S the panels; contiguous: channels are the
// rows, S's, and pixels the panels. Either way nothing is transposed. With AVX512-BF16 S is rounded
// to bfloat16 for bfloat16 features, as PyTorch's is (gram_pairs.h); elsewhere it stays in float32.

#include "../gram_matrix.h"

#include "../parallel.h"
#include "gram_features.h"
#include "gram_pairs.h"
#include "gram_panels.h"
#include "gram_rows.h"
#include "gram_tiles.h"
#include "matrix.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockPixels = 96;  // pixels of one task of the backward pass

template <class T>
constexpr int64_t padded(int64_t c) {
  constexpr int64_t kUnit = HAS_TILES && std::is_same_v<T, BFloat16>
                                ? 32
                                : kPanel<Vec<T>>;  // tiles come in pairs of 16 channels
  return (c + kUnit - 1) / kUnit * kUnit;
}

// Adds up the slices of image n in the square of channels that has its corner at (row, column),
// row <= column, and mirrors it.
template <class T>
void finish_square(const GramMatrix& args, int64_t n, int64_t row, int64_t column) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c;
  const W* sums = static_cast<const W*>(args.sums) + n * args.slices * width * width;
  W* gram = static_cast<W*>(args.gram) + n * c * c;
  const int64_t rows = smaller<int64_t>(kLanes<V>, c - row);
  const int64_t columns = smaller<int64_t>(kLanes<V>, c - column);
  V square[kLanes<V>] = {};
  for (int64_t slice = 0; slice < args.slices; ++slice)
    for (int i = 0; i < kLanes<V>; ++i)
      square[i] += load<V>(sums + (slice * width + row + i) * width + column);
  const auto write = [&](int64_t i, int64_t j, int64_t height, int64_t length) {
    for (int64_t r = 0; r < height; ++r)
      std::memcpy(gram + (i + r) * c + j, &square[r], length * sizeof(W));
  };
  if (row == column) {
    for (int i = 0; i < kLanes<V>; ++i)
      for (int j = 0; j < i; ++j) square[i][j] = square[j][i];
    write(row, column, rows, columns);
    return;
  }
  write(row, column, rows, columns);
  transpose(square);
  write(column, row, columns, rows);
}

int64_t padded_channels(DType dtype, int64_t c) {
  return for_dtype(dtype, [&](auto element) { return padded<decltype(element)>(c); });
}

// Of bfloat16 with AMX: tiles, or rows of float32 where features are centred.
int64_t panel_elements(DType dtype, int64_t c) {
#if HAS_TILES && VECTOR_BYTES == 64
  static_assert(kRowPitch<float> >= kTileDepth, "rows take no less scratch than tiles");
#elif HAS_TILES
  if (dtype == DType::bfloat16) return tile_panel_elements(c);
#endif
  return for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
#if VECTOR_BYTES == 64
    return padded<T>(c) * kRowPitch<Wide<T>>;
#else
    return padded<T>(c) * kPanelDepth;
#endif
  });
}

int64_t backward_panel_elements(DType dtype, int64_t c) {
  return padded_channels(dtype, c) * kBlockPixels;
}

template <class T>
void forward_of(const GramMatrix& args) {
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c);
  parallel_tasks(
      args.n * args.slices, args.slice_pixels * args.c, [&](int64_t task, int64_t worker) {
        const int64_t n = task / args.slices, slice = task % args.slices;
        W* sums = static_cast<W*>(args.sums) + task * width * width;
        W* panels = static_cast<W*>(args.panels) + worker * panel_elements(args.dtype, args.c);
        if constexpr (std::is_same_v<T, BFloat16>) {
#if HAS_TILES
          if (args.mean == nullptr) return sum_slice_in_tiles(args, n, slice, sums, panels);
#elif HAS_PAIRS
          if (args.mean == nullptr)
            return sum_slice<T>(args, n, slice, width, sums, reinterpret_cast<BFloat16*>(panels));
#endif
        }
        sum_slice<T>(args, n, slice, width, sums, panels);
      });
  constexpr int64_t kSquare = kLanes<Vec<T>>;
  const int64_t squares = (args.c + kSquare - 1) / kSquare;
  parallel_tasks(args.n * squares, kSquare * args.c * args.slices, [&](int64_t task) {
    const int64_t n = task / squares, row = task % squares * kSquare;
    for (int64_t column = row; column < args.c; column += kSquare)
      finish_square<T>(args, n, row, column);
  });
}

// Whether the gradient is multiplied in pairs of bfloat16.
template <class T>
bool in_pairs(const GramMatrixBackward& args) {
  return HAS_PAIRS && std::is_same_v<T, BFloat16> && args.mean == nullptr;
}

// Row i of S of image n: in rows of `width`, or in panels for channels_last. S is symmetric, so a
// panel's rows are S's own.
template <class T>
void symmetric_product(const GramMatrixBackward& args, int64_t n, int64_t i) {
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c, panel = kPanel<Vec<T>>;
  const W* grad = static_cast<const W*>(args.grad) + n * c * c;
  W* product = static_cast<W*>(args.product) + n * width * width;
  const bool panels = args.layout == Layout::channels_last;
  for (int64_t j = 0; j < width; ++j) {
    const W value = i < c && j < c ? W(args.scale) * (grad[i * c + j] + grad[j * c + i]) : W(0);
#if HAS_PAIRS
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (in_pairs<T>(args)) {
        store(reinterpret_cast<BFloat16*>(product) + place_in_pairs(panels, width, i, j), value);
        continue;
      }
    }
#endif
    product[panels ? j / panel * width * panel + i * panel + j % panel : i * width + j] = value;
  }
}

template <class T>
void backward_block(const GramMatrixBackward& args, int64_t n, int64_t first, int64_t count,
                    Wide<T>* block) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c;
  const Strides stride(args.layout, c, args.pixels);
  const int64_t offset = n * c * args.pixels + first * stride.pixel;
  const T* x = static_cast<const T*>(args.x) + offset;
  T* grad_x = static_cast<T*>(args.grad_x) + offset;
  const W* mean = args.mean ? static_cast<const W*>(args.mean) + n * c : nullptr;
  const W* mean_error = mean ? mean + args.n * c : nullptr;
  const W* product = static_cast<const W*>(args.product) + n * width * width;

  if (args.layout == Layout::contiguous) {
    for (int64_t p = 0; p < count; p += kPanel<V>) {
      const int64_t columns = smaller<int64_t>(kPanel<V>, count - p);
      for (int64_t k = 0; k < c; ++k) {  // one channel's pixels are one row of the panel
        const W center = mean ? mean[k] : W(0), error = mean ? mean_error[k] : W(0);
        const T* source = x + k * stride.channel + p;
        W* row = block + k * kPanel<V>;
        if (columns == kPanel<V>) {
          store(row, load<V>(source) - splat<V>(center) - splat<V>(error));
          store(row + kLanes<V>, load<V>(source + kLanes<V>) - splat<V>(center) - splat<V>(error));
        } else {
          for (int64_t j = 0; j < kPanel<V>; ++j)
            row[j] = j < columns ? load<W>(source + j) - center - error : W(0);
        }
      }
      for (int64_t i = 0; i < c; i += kRows) {
        const W* rows[kRows];
        for (int r = 0; r < kRows; ++r) rows[r] = product + smaller(i + r, c - 1) * width;
        V sums[kRows][2];
        clear(sums);
        multiply_panel(rows, 1, block, c, sums);
        for (int64_t r = 0; r < smaller<int64_t>(kRows, c - i); ++r)
          store_columns(grad_x + (i + r) * stride.channel + p, sums[r], columns);
      }
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p) {
    W* row = block + p * c;
    const T* source = x + p * c;
    int64_t k = 0;
    for (; k + kLanes<V> <= c; k += kLanes<V>)
      store(row + k, mean ? load<V>(source + k) - load<V>(mean + k) - load<V>(mean_error + k)
                          : load<V>(source + k));
    for (; k < c; ++k)
      row[k] = mean ? load<W>(source + k) - mean[k] - mean_error[k] : load<W>(source + k);
  }
  for (int64_t column = 0; column < c; column += kPanel<V>) {
    for (int64_t p = 0; p < count; p += kRows) {
      const W* rows[kRows];
      for (int r = 0; r < kRows; ++r) rows[r] = block + smaller(p + r, count - 1) * c;
      V sums[kRows][2];
      clear(sums);
      multiply_panel(rows, 1, product + column * width, c, sums);
      for (int64_t r = 0; r < smaller<int64_t>(kRows, count - p); ++r)
        store_columns(grad_x + (p + r) * c + column, sums[r], c - column);
    }
  }
}

template <class T>
void backward_of(const GramMatrixBackward& args) {
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c);
  parallel_tasks(args.n * width, width,
                 [&](int64_t task) { symmetric_product<T>(args, task / width, task % width); });
  const int64_t blocks = (args.pixels + kBlockPixels - 1) / kBlockPixels;
  parallel_tasks(args.n * blocks, kBlockPixels * args.c, [&](int64_t task, int64_t worker) {
    const int64_t n = task / blocks, first = task % blocks * kBlockPixels;
    const int64_t count = smaller(kBlockPixels, args.pixels - first);
    W* block = static_cast<W*>(args.panels) + worker * width * kBlockPixels;
#if HAS_PAIRS
    if constexpr (std::is_same_v<T, BFloat16>)
      if (in_pairs<T>(args)) return backward_block_of_pairs(args, n, first, count, width, block);
#endif
    backward_block<T>(args, n, first, count, block);
  });
}

void forward(const GramMatrix& args) {
  for_dtype(args.dtype, [&](auto element) { forward_of<decltype(element)>(args); });
}

void backward(const GramMatrixBackward& args) {
  for_dtype(args.dtype, [&](auto element) { backward_of<decltype(element)>(args); });
}

}  // namespace

const GramMatrixKernels gram_matrix_kernels = {padded_channels, panel_elements,
                                               backward_panel_elements, forward, backward};

}  // namespace stylekernels::CPU_CAPABILITY
