// Gram matrix on the CPU, and its gradient: matrix products with one triangle, or a symmetric
// factor.
//
// Reads x once, N C P elements, and does N C^2 P / 2 multiply-adds (a library's product does twice
// that): from C = 32 on it is bound by arithmetic. A task owns a slice of an image's pixels and a
// full set of sums: see gram_rows.h (AVX-512), gram_panels.h (narrower vectors, and bfloat16 with
// AVX512-BF16) and gram_tiles.h (bfloat16 on AMX); centred features of bfloat16 are summed as
// float32 is. The slices' sums are added in order: results do not depend on timing.
//
// The gradient is x times S = scale (grad + grad^T), N C^2 P multiply-adds. A task owns a block
// of pixels. channels_last: pixels are the rows and S the panels; contiguous: channels are the
// rows, S's, and pixels the panels. Either way nothing is transposed. With AVX512-BF16 or AMX S is
// rounded to bfloat16 for bfloat16 features, as PyTorch's is (gram_pairs.h, gram_tiles.h), unless
// they are centred; elsewhere it stays in float32.

#include "../../gram_matrix.h"

#include "../../parallel.h"
#include "../vector/matrix.h"
#include "gram_features.h"
#include "gram_pairs.h"
#include "gram_panels.h"
#include "gram_rows.h"
#include "gram_tiles.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// Pixels of one task of the backward pass; twice as many where they stay in bfloat16.
constexpr int64_t kBlockPixels = 96;

// Whether bfloat16 in pairs is summed in rows. Panels add up no lanes, but do half of each square
// on the diagonal twice: at C = 64 a quarter of all products; and where planes are a power of two
// in size, the same pixels of many channels compete for a few places in the caches.
inline bool sums_in_rows(const GramMatrix& args) {
  return args.c <= (args.layout == Layout::contiguous ? 128 : 64);
}

template <class T>
constexpr int64_t padded(int64_t c) {
  constexpr int64_t kUnit = HAS_TILES && std::is_same_v<T, BFloat16>
                                ? 32
                                : kPanel<Vec<T>>;  // tiles come in pairs of 16 channels
  return (c + kUnit - 1) / kUnit * kUnit;
}

// Sums of bfloat16 features lie in tiles on AMX, unless they are centred: see sum_tile.
template <class T>
bool sums_in_tiles(const GramMatrix& args) {
  return HAS_TILES && std::is_same_v<T, BFloat16> && args.mean == nullptr;
}

// Adds up the slices of image n, whose sums these are, in the square of channels that has its
// corner at (row, column), row <= column, and mirrors it.
template <class T>
void finish_square(const GramMatrix& args, const Wide<T>* sums, int64_t n, int64_t row,
                   int64_t column) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c;
  W* gram = static_cast<W*>(args.gram) + n * c * c;
  int64_t pitch = width, place = row * width + column;
  bool below = false;
#if HAS_TILES
  if (sums_in_tiles<T>(args)) {
    below = args.layout == Layout::channels_last;
    const int64_t i = below ? column : row, j = below ? row : column;
    pitch = kTileRows, place = sum_tile(width, i, j) + i % kTileRows * pitch + j % kTileRows;
  }
#endif
  V square[kLanes<V>] = {};
  for (int64_t slice = 0; slice < args.slices; ++slice)
    for (int i = 0; i < kLanes<V>; ++i)
      square[i] += load<V>(sums + slice * width * width + place + i * pitch);
  if (row == column) {
    for (int i = 0; i < kLanes<V>; ++i)
      for (int j = 0; j < i; ++j) square[i][j] = square[j][i];
  } else if (below) {
    transpose(square);
  }
  const auto write = [&](int64_t i, int64_t j) {
    const int64_t rows = smaller<int64_t>(kLanes<V>, c - i);
    const int64_t columns = smaller<int64_t>(kLanes<V>, c - j);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(gram + (i + r) * c + j, &square[r], columns * sizeof(W));
  };
  write(row, column);
  if (row == column) return;
  transpose(square);
  write(column, row);
}

int64_t padded_channels(DType dtype, int64_t c) {
  return for_dtype(dtype, [&](auto element) { return padded<decltype(element)>(c); });
}

int64_t panel_elements(DType dtype, int64_t c) {
  return for_dtype(dtype, [&](auto element) {
    using T = decltype(element);
#if VECTOR_BYTES == 64
    const int64_t elements = padded<T>(c) * kRowPitch<Wide<T>>;
#else
    const int64_t elements = padded<T>(c) * kPanelDepth;
#endif
#if HAS_TILES
    if (dtype == DType::bfloat16) {  // centred features are not summed in tiles
      const int64_t tiles = tile_panel_elements(padded<T>(c));
      return tiles < elements ? elements : tiles;
    }
#endif
    return elements;
  });
}

int64_t backward_panel_elements(DType dtype, int64_t c) {
  return padded_channels(dtype, c) * kBlockPixels;
}

// The sums of one slice of image n.
template <class T>
void sum_slice(const GramMatrix& args, int64_t n, int64_t slice, Wide<T>* sums, Wide<T>* panels) {
  const int64_t width = padded<T>(args.c);
  if constexpr (std::is_same_v<T, BFloat16>) {
#if HAS_TILES
    if (sums_in_tiles<T>(args)) return sum_slice_in_tiles(args, n, slice, width, sums, panels);
#elif HAS_PAIRS
    BFloat16* values = reinterpret_cast<BFloat16*>(panels);
    if (args.mean == nullptr)
      return sums_in_rows(args) ? sum_slice_in_rows<T>(args, n, slice, width, sums, values)
                                : sum_slice_in_panels<T>(args, n, slice, width, sums, values);
#endif
  }
#if VECTOR_BYTES == 64
  sum_slice_in_rows<T>(args, n, slice, width, sums, panels);
#else
  sum_slice_in_panels<T>(args, n, slice, width, sums, panels);
#endif
}

template <class T>
void forward_of(const GramMatrix& args) {
  using W = Wide<T>;
  constexpr int64_t kSquare = kLanes<Vec<T>>;
  const int64_t squares = (args.c + kSquare - 1) / kSquare;
  const int64_t width = padded<T>(args.c);
  const auto sums_of = [&](int64_t place) {
    return static_cast<W*>(args.sums) + place * width * width;
  };
  const auto finish_row = [&](const W* sums, int64_t n, int64_t row) {
    for (int64_t column = row * kSquare; column < args.c; column += kSquare)
      finish_square<T>(args, sums, n, row * kSquare, column);
  };
  const auto panels_of = [&](int64_t worker) {
    return static_cast<W*>(args.panels) + worker * panel_elements(args.dtype, args.c);
  };
  if (args.slices == 1) {  // finished where they were summed: in the nearest caches
    parallel_tasks(args.n, args.slice_pixels * args.c, [&](int64_t n, int64_t worker) {
      W* sums = sums_of(worker);
      sum_slice<T>(args, n, 0, sums, panels_of(worker));
      for (int64_t row = 0; row < squares; ++row) finish_row(sums, n, row);
    });
    return;
  }
  parallel_tasks(args.n * args.slices, args.slice_pixels * args.c,
                 [&](int64_t task, int64_t worker) {
                   sum_slice<T>(args, task / args.slices, task % args.slices, sums_of(task),
                                panels_of(worker));
                 });
  parallel_tasks(args.n * squares, kSquare * args.c * args.slices, [&](int64_t task) {
    const int64_t n = task / squares;
    finish_row(sums_of(n * args.slices), n, task % squares);
  });
}

// Whether S is rounded to bfloat16.
template <class T>
bool rounds_factor(const GramMatrixBackward& args) {
  return (HAS_TILES || HAS_PAIRS) && std::is_same_v<T, BFloat16> && args.mean == nullptr;
}

// Where an element of S lies then.
inline int64_t place_in_factor([[maybe_unused]] bool panels, int64_t width, int64_t i, int64_t j) {
#if HAS_TILES
  return place_in_tiles(panels, width, i, j);
#elif HAS_PAIRS
  return place_in_pairs(panels, width, i, j);
#else
  return i * width + j;
#endif
}

// kLanes rows of S of image n, from `row` on: in rows of `width`, or in panels for channels_last. S
// is symmetric, so a panel's rows are S's own.
template <class T>
void symmetric_product(const GramMatrixBackward& args, int64_t n, int64_t row) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kSide = kLanes<V>;
  const int64_t width = padded<T>(args.c), c = args.c, panel = kPanel<V>;
  const W* grad = static_cast<const W*>(args.grad) + n * c * c;
  W* product = static_cast<W*>(args.product) + n * width * width;
  const bool panels = args.layout == Layout::channels_last;
  for (int64_t column = 0; column < width; column += kSide) {
    W square[kSide][kSide] = {};
    if (smaller(c - row, c - column) >= kSide) {
      V across[kSide];
      for (int64_t j = 0; j < kSide; ++j) across[j] = load<V>(grad + (column + j) * c + row);
      transpose(across);
      for (int64_t i = 0; i < kSide; ++i)
        store(square[i],
              splat<V>(W(args.scale)) * (load<V>(grad + (row + i) * c + column) + across[i]));
    } else {
      for (int64_t i = row; i < smaller(row + kSide, c); ++i)
        for (int64_t j = column; j < smaller(column + kSide, c); ++j)
          square[i - row][j - column] = W(args.scale) * (grad[i * c + j] + grad[j * c + i]);
    }
    for (int64_t i = 0; i < kSide; ++i) {
      if (rounds_factor<T>(args)) {
        BFloat16* factor = reinterpret_cast<BFloat16*>(product);
        for (int64_t j = 0; j < kSide; ++j)
          store(factor + place_in_factor(panels, width, row + i, column + j), float(square[i][j]));
        continue;
      }
      W* to =
          product + (panels ? column / panel * width * panel + (row + i) * panel + column % panel
                            : (row + i) * width + column);
      store(to, load<V>(square[i]));
    }
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
  constexpr int64_t kSide = kLanes<Vec<T>>;
  const int64_t squares = width / kSide;
  parallel_tasks(args.n * squares, kSide * width, [&](int64_t task) {
    symmetric_product<T>(args, task / squares, task % squares * kSide);
  });
  // Two bfloat16 values take the scratch of a float.
  const int64_t pixels = rounds_factor<T>(args) ? 2 * kBlockPixels : kBlockPixels;
  const int64_t blocks = (args.pixels + pixels - 1) / pixels;
  parallel_tasks(args.n * blocks, pixels * args.c, [&](int64_t task, int64_t worker) {
    const int64_t n = task / blocks, first = task % blocks * pixels;
    const int64_t count = smaller(pixels, args.pixels - first);
    W* block = static_cast<W*>(args.panels) + worker * width * kBlockPixels;
    if constexpr (std::is_same_v<T, BFloat16>) {
      [[maybe_unused]] BFloat16* values = reinterpret_cast<BFloat16*>(block);
#if HAS_TILES
      if (rounds_factor<T>(args))
        return backward_block_in_tiles(args, n, first, count, width, values);
#elif HAS_PAIRS
      if (rounds_factor<T>(args))
        return backward_block_of_pairs(args, n, first, count, width, values);
#endif
    }
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
