// Gram matrix on the CPU, and its gradient: matrix products with one triangle, or a symmetric
// factor.
//
// Reads x once, N C P elements, and does N C^2 P / 2 multiply-adds (a library's product does twice
// that): from C = 32 on it is bound by arithmetic. A task owns a slice of an image's pixels and a
// full set of sums. It packs kDepth pixels at a time into panels of float32, which converts half
// precision and, for contiguous input, transposes; all panels stay in L2, the two at work in L1.
// The slices' sums are added in order: results do not depend on timing.
//
// The gradient is x times S = scale (grad + grad^T), N C^2 P multiply-adds. A task owns a block
// of pixels. channels_last: pixels are the rows and S the panels; contiguous: channels are the
// rows, S's, and pixels the panels. Either way nothing is transposed.

#include "../gram_matrix.h"

#include "../parallel.h"
#include "gram_tiles.h"
#include "matrix.h"

namespace stylekernels::CPU_CAPABILITY {
namespace {

constexpr int64_t kDepth = 128;       // pixels packed at a time
constexpr int64_t kBlockPixels = 96;  // pixels of one task of the backward pass

template <class T>
constexpr int64_t padded(int64_t c) {
  constexpr int64_t kUnit = HAS_TILES && std::is_same_v<T, BFloat16>
                                ? 32
                                : kPanel<Vec<T>>;  // tiles come in pairs of 16 channels
  return (c + kUnit - 1) / kUnit * kUnit;
}

// Distance in x from one channel to the next, and from one pixel to the next.
struct Strides {
  int64_t channel, pixel;
  Strides(Layout layout, int64_t c, int64_t pixels)
      : channel(layout == Layout::contiguous ? pixels : 1),
        pixel(layout == Layout::contiguous ? 1 : c) {}
};

// Brings the pixels that are packed next into the caches, a few lines at a time between products:
// otherwise memory waits while the products run, and they wait for memory (a third of the time at
// C = 64).
template <class T>
struct Prefetch {
  const T* p;
  int64_t run, step;  // elements that follow each other, and the distance between such runs
  int64_t runs, line = 0;

  Prefetch(const GramMatrix& args, const T* x, int64_t pixels)
      : p(x),
        run(args.layout == Layout::contiguous ? pixels : pixels * args.c),
        step(args.pixels),
        runs(pixels <= 0                         ? 0
             : args.layout == Layout::contiguous ? args.c
                                                 : 1) {}

  static int64_t lines(const GramMatrix& args) { return kDepth * args.c * sizeof(T) / 64; }

  void fetch(int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (; count > 0 && runs > 0; --count) {
      __builtin_prefetch(p + line * kLine);
      if (++line * kLine >= run) line = 0, p += step, --runs;
    }
  }
};

// Adds scale times the product of `kCount` rows of channels from `row` on with kVectors vectors of
// channels from `column` on, the last of column's panel.
template <int kCount, int kVectors, class V>
inline void add_product(const ElementOf<V>* panels, int64_t row, int64_t column, int64_t depth,
                        V scale, int64_t width, ElementOf<V>* sums) {
  const auto channel = [&](int64_t c) {
    return panels + (c - c % kPanel<V>)*kDepth + c % kPanel<V>;
  };
  const ElementOf<V>* a[kCount];
  for (int r = 0; r < kCount; ++r) a[r] = channel(row + r);
  V part[kCount][kVectors] = {};
  multiply_panel(a, kPanel<V>, channel(column), depth, part);
  for (int r = 0; r < kCount; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      ElementOf<V>* sum = sums + (row + r) * width + column + v * kLanes<V>;
      store(sum, multiply_add(part[r][v], scale, load<V>(sum)));
    }
  }
}

template <class T>
void sum_slice(const GramMatrix& args, int64_t n, int64_t slice, Wide<T>* sums, Wide<T>* panels) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int kLeft = 4;  // rows at a time of what kRows don't divide
  const int64_t width = padded<T>(args.c);
  const Strides stride(args.layout, args.c, args.pixels);
  const W* mean = args.mean ? static_cast<const W*>(args.mean) + n * args.c : nullptr;
  const W* mean_error = mean ? mean + args.n * args.c : nullptr;
  const V scale = splat<V>(W(args.scale));
  for (int64_t i = 0; i < width * width; ++i) sums[i] = 0;
  const int64_t products = width / kPanel<V> * (width + kPanel<V>) / 2 / kRows;  // or a few more
  const int64_t lines_per_product = Prefetch<T>::lines(args) / (products + 1) + 1;
  const int64_t begin = slice * args.slice_pixels;
  const int64_t end = smaller(begin + args.slice_pixels, args.pixels);
  for (int64_t first = begin; first < end; first += kDepth) {
    const int64_t depth = smaller(kDepth, end - first);
    const T* x = static_cast<const T*>(args.x) + n * args.c * args.pixels + first * stride.pixel;
    // channels_last: a few pixels at a time, all panels of them, so that x is read as it lies.
    const int64_t run = args.layout == Layout::contiguous ? kDepth : 8;
    for (int64_t k = 0; k < depth; k += run) {
      for (int64_t c = 0; c < width; c += kPanel<V>)
        pack_panel<V>(x + c * stride.channel + k * stride.pixel, stride.pixel, stride.channel,
                      smaller<int64_t>(kPanel<V>, args.c - c), smaller(run, depth - k),
                      mean ? mean + c : nullptr, mean ? mean_error + c : nullptr,
                      panels + c * kDepth + k * kPanel<V>);
    }
    Prefetch<T> next(args, x + kDepth * stride.pixel, smaller(kDepth, end - first - depth));
    for (int64_t column = 0; column < width; column += kPanel<V>) {
      int64_t row = 0;
      for (; (column - row) % kRows != 0; row += kLeft) {
        next.fetch(lines_per_product);
        add_product<kLeft, 2>(panels, row, column, depth, scale, width, sums);
      }
      for (; row < column; row += kRows) {
        next.fetch(lines_per_product);
        add_product<kRows, 2>(panels, row, column, depth, scale, width, sums);
      }
      // On the diagonal the lower half of the rows meets the right half of the columns only.
      constexpr int kHalf = kLanes<V>, kUpper = kHalf < kRows ? kHalf : kHalf / 2;
      next.fetch(lines_per_product);
      for (; row < column + kHalf; row += kUpper)
        add_product<kUpper, 2>(panels, row, column, depth, scale, width, sums);
      add_product<kHalf, 1>(panels, row, column + kHalf, depth, scale, width, sums);
    }
  }
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

int64_t panel_elements(DType dtype, int64_t c) {
#if HAS_TILES
  if (dtype == DType::bfloat16) return tile_panel_elements(c);
#endif
  return padded_channels(dtype, c) * kDepth;
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
#if HAS_TILES
        if constexpr (std::is_same_v<T, BFloat16>)
          if (args.mean == nullptr) return sum_slice_in_tiles(args, n, slice, sums, panels);
#endif
        sum_slice<T>(args, n, slice, sums, panels);
      });
  constexpr int64_t kSquare = kLanes<Vec<T>>;
  const int64_t squares = (args.c + kSquare - 1) / kSquare;
  parallel_tasks(args.n * squares, kSquare * args.c * args.slices, [&](int64_t task) {
    const int64_t n = task / squares, row = task % squares * kSquare;
    for (int64_t column = row; column < args.c; column += kSquare)
      finish_square<T>(args, n, row, column);
  });
}

// S of image n: rows of `width`, or panels for channels_last. S is symmetric, so a panel's rows
// are S's own.
template <class T>
void symmetric_product(const GramMatrixBackward& args, int64_t n, int64_t i) {
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c, panel = kPanel<Vec<T>>;
  const W* grad = static_cast<const W*>(args.grad) + n * c * c;
  W* product = static_cast<W*>(args.product) + n * width * width;
  const bool panels = args.layout == Layout::channels_last;
  for (int64_t j = 0; j < width; ++j) {
    const W value = i < c && j < c ? W(args.scale) * (grad[i * c + j] + grad[j * c + i]) : W(0);
    product[panels ? j / panel * width * panel + i * panel + j % panel : i * width + j] = value;
  }
}

template <class V, class T>
inline void store_columns(T* p, const V (&row)[2], int64_t columns) {
  if (columns >= kPanel<V>) {
    store(p, row[0]);
    store(p + kLanes<V>, row[1]);
    return;
  }
  ElementOf<V> values[kPanel<V>];
  store(values, row[0]);
  store(values + kLanes<V>, row[1]);
  for (int64_t j = 0; j < columns; ++j) store(p + j, values[j]);
}

template <class T>
void backward_block(const GramMatrixBackward& args, int64_t n, int64_t first, Wide<T>* block) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t width = padded<T>(args.c), c = args.c;
  const int64_t count = smaller(kBlockPixels, args.pixels - first);
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
        V sums[kRows][2] = {};
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
      V sums[kRows][2] = {};
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
    backward_block<T>(args, task / blocks, task % blocks * kBlockPixels,
                      static_cast<W*>(args.panels) + worker * width * kBlockPixels);
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
