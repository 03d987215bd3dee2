// Gram matrix on the CPU, and its gradient: matrix products with one triangle, or a symmetric
// factor.
//
// Forward: reads x once, N C P elements, and does N C^2 P / 2 multiply-adds (a library's product
// does twice that): from C = 32 on it is bound by arithmetic. It is a split-K product: a task owns
// a chunk of an image's pixels and a full set of sums, and the chunks' sums are merged in order, so
// that results do not depend on timing. The inner loops are in gram_rows.h (AVX-512), gram_panels.h
// (narrower vectors, and bfloat16 with AVX512-BF16) and gram_tiles.h (bfloat16 on AMX). Features
// are centred while they are packed, as float32 or float64. bfloat16 that is not widened is not
// centred: its sums are, if centers_sums says so (gram_centering.h).
//
// Backward: grad_x = S x with S = scale (grad + grad^T), N C^2 P multiply-adds. A task owns a chunk
// of pixels. channels_last: rows are pixels and panels are of S; contiguous: rows are those of S
// and panels are of pixels. Either way nothing is transposed. With AVX512-BF16 or AMX S is rounded
// to bfloat16 for bfloat16 features, as PyTorch's is (gram_pairs.h, gram_tiles.h), and accumulators
// begin at -S mean; elsewhere it stays in float32, and features are centred.

#include "../../gram_matrix.h"

#include "../../parallel.h"
#include "../vector/matrix.h"
#include "gram_centering.h"
#include "gram_features.h"
#include "gram_pairs.h"
#include "gram_panels.h"
#include "gram_rows.h"
#include "gram_tiles.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

// Pixels of a chunk in the backward pass; twice as many if they stay in bfloat16.
constexpr int64_t kBackwardPixels = 96;

// Tells whether bfloat16 pairs are summed by rows. Panels need no sums over lanes, but compute half
// of each square on the diagonal twice: at C = 64 a quarter of all products. And if planes are a
// power of two in size, the same pixels of many channels compete for few sets of the caches.
inline bool sums_in_rows(const GramMatrix& args) {
  return args.c <= (args.layout == Layout::contiguous ? 128 : 64);
}

// Rounds C up to whole panels: of 32 channels on AMX.
template <class T>
constexpr int64_t padded(int64_t c) {
  constexpr int64_t kMultiple = HAS_TILES && std::is_same_v<T, BFloat16> ? 32 : kPanel<Vec<T>>;
  return ceil_divide(c, kMultiple) * kMultiple;
}

// Tells whether bfloat16 features are multiplied without widening.
template <class T>
bool sums_bfloat16(const GramMatrix& args) {
  return (HAS_TILES || HAS_PAIRS) && std::is_same_v<T, BFloat16> &&
         (args.mean == nullptr || args.centers_sums);
}

// Tells whether sums are computed, and stored, in AMX tiles: see sum_tile.
template <class T>
bool sums_in_tiles(const GramMatrix& args) {
  return HAS_TILES && sums_bfloat16<T>(args);
}

// Merges the sums of the chunks of image n in a square of kLanes x kLanes channels with its corner
// at (row, column), row <= column, and writes it and its mirror image.
template <class T>
void finish_square(const GramMatrix& args, const Wide<T>* sums, int64_t n, int64_t row,
                   int64_t column) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c;
  W* gram = static_cast<W*>(args.gram) + n * c * c;
  int64_t pitch = width, offset = row * width + column;
  bool below = false;
#if HAS_TILES
  if (sums_in_tiles<T>(args)) {
    below = args.layout == Layout::channels_last;
    const int64_t i = below ? column : row, j = below ? row : column;
    pitch = kTileRows, offset = sum_tile(width, i, j) + i % kTileRows * pitch + j % kTileRows;
  }
#endif
  V square[kLanes<V>] = {};
  const auto add_up = [&](const auto& centered) {
    for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
      const int64_t pixels = smaller(args.chunk_pixels, args.pixels - chunk * args.chunk_pixels);
      for (int i = 0; i < kLanes<V>; ++i)
        square[i] +=
            centered(load<V>(sums + chunk * width * width + offset + i * pitch), i, pixels);
    }
  };
  bool centers = false;
#if HAS_TILES || HAS_PAIRS
  if constexpr (std::is_same_v<T, BFloat16>) {
    centers = args.centers_sums;
    if (centers) add_up(SumCentering(args, n, below ? column : row, below ? row : column));
  }
#endif
  if (!centers) add_up([](V sum, int64_t, int64_t) { return sum; });
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
    if (dtype == DType::bfloat16) {  // features may be centred, and then are not summed in tiles
      const int64_t tiles = tile_panel_elements(padded<T>(c));
      return tiles < elements ? elements : tiles;
    }
#endif
    return elements;
  });
}

int64_t backward_panel_elements(DType dtype, int64_t c) {
  return padded_channels(dtype, c) * kBackwardPixels;
}

// Computes the sums of a chunk of image n.
template <class T>
void sum_chunk(const GramMatrix& args, int64_t n, int64_t chunk, Wide<T>* sums, Wide<T>* panels) {
  const int64_t width = padded<T>(args.c);
  if constexpr (std::is_same_v<T, BFloat16>) {
#if HAS_TILES
    if (sums_in_tiles<T>(args)) return sum_chunk_in_tiles(args, n, chunk, width, sums, panels);
#elif HAS_PAIRS
    BFloat16* values = reinterpret_cast<BFloat16*>(panels);
    if (sums_bfloat16<T>(args))
      return sums_in_rows(args) ? sum_chunk_in_rows<T>(args, n, chunk, width, sums, values)
                                : sum_chunk_in_panels<T>(args, n, chunk, width, sums, values);
#endif
  }
#if VECTOR_BYTES == 64
  sum_chunk_in_rows<T>(args, n, chunk, width, sums, panels);
#else
  sum_chunk_in_panels<T>(args, n, chunk, width, sums, panels);
#endif
}

template <class T>
void forward_of(const GramMatrix& args) {
  using W = Wide<T>;
  constexpr int64_t kSquare = kLanes<Vec<T>>;
  const int64_t squares = ceil_divide(args.c, kSquare);
  const int64_t width = padded<T>(args.c);
  const auto sums_of = [&](int64_t index) {
    return static_cast<W*>(args.sums) + index * width * width;
  };
  const auto finish_row = [&](const W* sums, int64_t n, int64_t row) {
    for (int64_t column = row * kSquare; column < args.c; column += kSquare)
      finish_square<T>(args, sums, n, row * kSquare, column);
  };
  const auto panels_of = [&](int64_t worker) {
    return static_cast<W*>(args.panels) + worker * panel_elements(args.dtype, args.c);
  };
  if (args.chunks == 1) {  // finished by the worker that summed them, in its caches
    parallel_tasks(args.n, args.chunk_pixels * args.c, [&](int64_t n, int64_t worker) {
      W* sums = sums_of(worker);
      sum_chunk<T>(args, n, 0, sums, panels_of(worker));
      for (int64_t row = 0; row < squares; ++row) finish_row(sums, n, row);
    });
    return;
  }
  parallel_tasks(args.n * args.chunks, args.chunk_pixels * args.c,
                 [&](int64_t task, int64_t worker) {
                   sum_chunk<T>(args, task / args.chunks, task % args.chunks, sums_of(task),
                                panels_of(worker));
                 });
  parallel_tasks(args.n * squares, kSquare * args.c * args.chunks, [&](int64_t task) {
    const int64_t n = task / squares;
    finish_row(sums_of(n * args.chunks), n, task % squares);
  });
}

// Tells whether S is rounded to bfloat16. It is not if each image has a single pixel, which is its
// mean: the gradient is then zero, and not the rounding errors of sums.
template <class T>
bool rounds_factor(const GramMatrixBackward& args) {
  return (HAS_TILES || HAS_PAIRS) && std::is_same_v<T, BFloat16> &&
         (args.mean == nullptr || args.pixels > 1);
}

// Returns the offset of an element of the rounded S.
inline int64_t offset_in_factor([[maybe_unused]] bool panels, int64_t width, int64_t i, int64_t j) {
#if HAS_TILES
  return offset_in_tiles(panels, width, i, j);
#elif HAS_PAIRS
  return offset_in_pairs(panels, width, i, j);
#else
  return i * width + j;
#endif
}

// Computes kLanes rows of S of image n, from `row` on: in rows of `width`, or for channels_last in
// panels. S is symmetric, so the rows of a panel are rows of S. Also computes the offsets of these
// rows if S is rounded and features are to be centred.
template <class T>
void symmetric_product(const GramMatrixBackward& args, int64_t n, int64_t row) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kSide = kLanes<V>;
  const int64_t width = padded<T>(args.c), c = args.c, panel = kPanel<V>;
  const W* grad = static_cast<const W*>(args.grad) + n * c * c;
  W* product = static_cast<W*>(args.product) + n * width * width;
  const bool panels = args.layout == Layout::channels_last;
  [[maybe_unused]] V offsets[kSide] = {};
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
#if HAS_TILES || HAS_PAIRS
      if constexpr (std::is_same_v<T, BFloat16>) {
        if (rounds_factor<T>(args)) {
          BFloat16 rounded[kSide], *factor = reinterpret_cast<BFloat16*>(product);
          store(rounded, load<V>(square[i]));
          for (int64_t j = 0; j < kSide; ++j)
            factor[offset_in_factor(panels, width, row + i, column + j)] = rounded[j];
          if (args.mean) subtract_mean(args, n, column, rounded, offsets[i]);
          continue;
        }
      }
#endif
      W* to =
          product + (panels ? column / panel * width * panel + (row + i) * panel + column % panel
                            : (row + i) * width + column);
      store(to, load<V>(square[i]));
    }
  }
  if (!rounds_factor<T>(args) || !args.mean) return;
  W* to = static_cast<W*>(args.offsets) + n * width + row;
  for (int64_t i = 0; i < kSide; ++i) {
    to[i] = 0;
    for (int64_t lane = 0; lane < kSide; ++lane) to[i] += offsets[i][lane];
  }
}

// Computes grad_x of `count` pixels from `first` on. `packed` has room for all their channels.
template <class T>
void backward_chunk(const GramMatrixBackward& args, int64_t n, int64_t first, int64_t count,
                    Wide<T>* packed) {
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
      for (int64_t k = 0; k < c; ++k) {  // a row of the panel: pixels of one channel
        const W center = mean ? mean[k] : W(0), error = mean ? mean_error[k] : W(0);
        const T* source = x + k * stride.channel + p;
        W* row = packed + k * kPanel<V>;
        if (columns == kPanel<V>) {
          store(row, load<V>(source) - splat<V>(center) - splat<V>(error));
          store(row + kLanes<V>, load<V>(source + kLanes<V>) - splat<V>(center) - splat<V>(error));
        } else {
          for (int64_t j = 0; j < kPanel<V>; ++j)
            row[j] = j < columns ? load<W>(source + j) - center - error : W(0);
        }
      }
      for (int64_t i = 0; i < c; i += kBlockRows) {
        const W* rows[kBlockRows];
        for (int r = 0; r < kBlockRows; ++r) rows[r] = product + smaller(i + r, c - 1) * width;
        V sums[kBlockRows][2];
        clear(sums);
        multiply_panel(rows, 1, packed, c, sums);
        for (int64_t r = 0; r < smaller<int64_t>(kBlockRows, c - i); ++r)
          store_columns(grad_x + (i + r) * stride.channel + p, sums[r], columns);
      }
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p) {
    W* row = packed + p * c;
    const T* source = x + p * c;
    int64_t k = 0;
    for (; k + kLanes<V> <= c; k += kLanes<V>)
      store(row + k, mean ? load<V>(source + k) - load<V>(mean + k) - load<V>(mean_error + k)
                          : load<V>(source + k));
    for (; k < c; ++k)
      row[k] = mean ? load<W>(source + k) - mean[k] - mean_error[k] : load<W>(source + k);
  }
  for (int64_t column = 0; column < c; column += kPanel<V>) {
    for (int64_t p = 0; p < count; p += kBlockRows) {
      const W* rows[kBlockRows];
      for (int r = 0; r < kBlockRows; ++r) rows[r] = packed + smaller(p + r, count - 1) * c;
      V sums[kBlockRows][2];
      clear(sums);
      multiply_panel(rows, 1, product + column * width, c, sums);
      for (int64_t r = 0; r < smaller<int64_t>(kBlockRows, count - p); ++r)
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
  // Two bfloat16 values take the scratch of one float.
  const int64_t pixels = rounds_factor<T>(args) ? 2 * kBackwardPixels : kBackwardPixels;
  const int64_t chunks = ceil_divide(args.pixels, pixels);
  parallel_tasks(args.n * chunks, pixels * args.c, [&](int64_t task, int64_t worker) {
    const int64_t n = task / chunks, first = task % chunks * pixels;
    const int64_t count = smaller(pixels, args.pixels - first);
    W* packed = static_cast<W*>(args.panels) + worker * width * kBackwardPixels;
    if constexpr (std::is_same_v<T, BFloat16>) {
      [[maybe_unused]] BFloat16* values = reinterpret_cast<BFloat16*>(packed);
#if HAS_TILES
      if (rounds_factor<T>(args))
        return backward_chunk_in_tiles(args, n, first, count, width, values);
#elif HAS_PAIRS
      if (rounds_factor<T>(args))
        return backward_chunk_of_pairs(args, n, first, count, width, values);
#endif
    }
    backward_chunk<T>(args, n, first, count, packed);
  });
}

void forward(const GramMatrix& args) {
  for_dtype(args.dtype, [&](auto element) { forward_of<decltype(element)>(args); });
}

void backward(const GramMatrixBackward& args) {
  for_dtype(args.dtype, [&](auto element) { backward_of<decltype(element)>(args); });
}

}  // namespace

const GramMatrixKernels gram_matrix_kernels = {
    HAS_TILES || HAS_PAIRS,  padded_channels, panel_elements,
    backward_panel_elements, forward,         backward};

}  // namespace stylekernels::CPU_CAPABILITY
