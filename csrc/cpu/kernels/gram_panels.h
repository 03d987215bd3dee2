// The sums of a Gram matrix in 16 registers: see gram_matrix.cpp for the division of work.
//
// Pixels are packed kPanelDepth at a time into panels of kPanel channels, which converts half
// precision and, for contiguous features, transposes. All panels stay in L2, the two at work in L1.
#pragma once

#include "gram_features.h"
#include "matrix.h"

#if VECTOR_BYTES < 64
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kPanelDepth = 128;

// Adds scale times the product of `kCount` rows of channels from `row` on with kVectors vectors of
// channels from `column` on, the last of column's panel.
template <int kCount, int kVectors, class V>
inline void add_product(const ElementOf<V>* panels, int64_t row, int64_t column, int64_t depth,
                        V scale, int64_t width, ElementOf<V>* sums) {
  const auto channel = [&](int64_t c) {
    return panels + (c - c % kPanel<V>)*kPanelDepth + c % kPanel<V>;
  };
  const ElementOf<V>* a[kCount];
  for (int r = 0; r < kCount; ++r) a[r] = channel(row + r);
  V part[kCount][kVectors];
  clear(part);
  multiply_panel(a, kPanel<V>, channel(column), depth, part);
  for (int r = 0; r < kCount; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      ElementOf<V>* sum = sums + (row + r) * width + column + v * kLanes<V>;
      store(sum, multiply_add(part[r][v], scale, load<V>(sum)));
    }
  }
}

// The sums of one slice of image n, down to the diagonal, into rows of `width`, a multiple of
// kPanel with at least C.
template <class T>
void sum_slice(const GramMatrix& args, int64_t n, int64_t slice, int64_t width, Wide<T>* sums,
               Wide<T>* panels) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int kLeft = 4;  // rows at a time of what kRows don't divide
  const Strides stride(args.layout, args.c, args.pixels);
  const W* mean = args.mean ? static_cast<const W*>(args.mean) + n * args.c : nullptr;
  const W* mean_error = mean ? mean + args.n * args.c : nullptr;
  const V scale = splat<V>(W(args.scale));
  for (int64_t i = 0; i < width * width; ++i) sums[i] = 0;
  const int64_t products = width / kPanel<V> * (width + kPanel<V>) / 2 / kRows;  // or a few more
  const int64_t lines = Prefetch<T>::lines(args, kPanelDepth, products);
  const int64_t begin = slice * args.slice_pixels;
  const int64_t end = smaller(begin + args.slice_pixels, args.pixels);
  for (int64_t first = begin; first < end; first += kPanelDepth) {
    const int64_t depth = smaller(kPanelDepth, end - first);
    const T* x = static_cast<const T*>(args.x) + n * args.c * args.pixels + first * stride.pixel;
    // channels_last: a few pixels at a time, all panels of them, so that x is read as it lies.
    const int64_t run = args.layout == Layout::contiguous ? kPanelDepth : 8;
    for (int64_t k = 0; k < depth; k += run) {
      for (int64_t c = 0; c < width; c += kPanel<V>)
        pack_panel<V>(x + c * stride.channel + k * stride.pixel, stride.pixel, stride.channel,
                      smaller<int64_t>(kPanel<V>, args.c - c), smaller(run, depth - k),
                      mean ? mean + c : nullptr, mean ? mean_error + c : nullptr,
                      panels + c * kPanelDepth + k * kPanel<V>);
    }
    Prefetch<T> next(args, x + kPanelDepth * stride.pixel,
                     smaller(kPanelDepth, end - first - depth));
    for (int64_t column = 0; column < width; column += kPanel<V>) {
      int64_t row = 0;
      for (; (column - row) % kRows != 0; row += kLeft) {
        next.fetch(lines);
        add_product<kLeft, 2>(panels, row, column, depth, scale, width, sums);
      }
      for (; row < column; row += kRows) {
        next.fetch(lines);
        add_product<kRows, 2>(panels, row, column, depth, scale, width, sums);
      }
      // On the diagonal the lower half of the rows meets the right half of the columns only.
      constexpr int kHalf = kLanes<V>, kUpper = kHalf < kRows ? kHalf : kHalf / 2;
      next.fetch(lines);
      for (; row < column + kHalf; row += kUpper)
        add_product<kUpper, 2>(panels, row, column, depth, scale, width, sums);
      add_product<kHalf, 1>(panels, row, column + kHalf, depth, scale, width, sums);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
