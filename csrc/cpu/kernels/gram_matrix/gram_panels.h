// Sums of a Gram matrix by panels of channels: see gram_matrix.cpp for the division of work.
//
// kPanelDepth pixels at a time are packed into panels of kPanel channels. Packing converts half
// precision and, for contiguous features, transposes. All panels stay in L2, the two at work in L1.
// With AVX512-BF16 bfloat16 stays bfloat16, and a row of a panel is a pair of pixels. float32 is
// faster by gram_rows.h there.
#pragma once

#include "../vector/matrix.h"
#include "gram_features.h"

#if VECTOR_BYTES < 64 || HAS_PAIRS
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kPanelDepth = 128;  // pixels packed at a time, and summed before they are scaled

// Adds to the sums scale times a register block: the product of `kCount` rows of channels from
// `row` on with kVectors vectors of channels from `column` on, the last of column's panel.
// `begins`: stores instead of adding.
template <int kCount, int kVectors, class V, class R>
inline void add_product(const R* panels, int64_t row, int64_t column, int64_t depth, V scale,
                        bool begins, int64_t width, ElementOf<V>* sums) {
  const auto channel = [&](int64_t c) {
    return panels + (c - c % kPanel<V>)*kPanelDepth + c % kPanel<V> * kTermsPerLane<R>;
  };
  const R* a[kCount];
  for (int r = 0; r < kCount; ++r) a[r] = channel(row + r);
  V part[kCount][kVectors];
  clear(part);
  multiply_panel(a, kPanel<V> * kTermsPerLane<R>, channel(column),
                 ceil_divide(depth, kTermsPerLane<R>), part);
  for (int r = 0; r < kCount; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      ElementOf<V>* sum = sums + (row + r) * width + column + v * kLanes<V>;
      store(sum, multiply_add(part[r][v], scale, begins ? V{} : load<V>(sum)));
    }
  }
}

// Packs a panel: channels from `channel` on, `depth` pixels of x from `first` on.
template <class T>
void pack_channels(const GramMatrix& args, int64_t n, const T* x, int64_t channel, int64_t first,
                   int64_t depth, Wide<T>* panel) {
  using V = Vec<T>;
  using W = Wide<T>;
  const Strides stride(args.layout, args.c, args.pixels);
  const W* mean = args.mean ? static_cast<const W*>(args.mean) + n * args.c : nullptr;
  pack_panel<V>(x + channel * stride.channel + first * stride.pixel, stride.pixel, stride.channel,
                smaller<int64_t>(kPanel<V>, args.c - channel), depth,
                mean ? mean + channel : nullptr, mean ? mean + args.n * args.c + channel : nullptr,
                panel + first * kPanel<V>);
}

#if HAS_PAIRS
// Packs a panel of pairs of pixels. It centres nothing.
inline void pack_channels(const GramMatrix& args, int64_t, const BFloat16* x, int64_t channel,
                          int64_t first, int64_t depth, BFloat16* panel) {
  constexpr int64_t kColumns = kPanel<VecF>;
  const int64_t channels = smaller(kColumns, args.c - channel);
  if (args.layout == Layout::channels_last) {
    for (int64_t p = first; p < first + depth; p += 2) {
      const BFloat16* even = x + p * args.c + channel;
      pack_pairs_of_planes(even, p + 1 < first + depth ? even + args.c : nullptr, channels,
                           panel + p * kColumns);
    }
    return;
  }
  // Transposes 16 channels x 32 pixels at a time, two pixels of a channel as one element.
  for (int64_t p = first; p < first + depth; p += 32) {
    const __mmask32 mask = first_lanes(first + depth - p);
    for (int64_t half = 0; half < 2; ++half) {
      VecF rows[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t c = half * 16 + i;
        rows[i] = c < channels
                      ? (VecF)_mm512_maskz_loadu_epi16(mask, x + (channel + c) * args.pixels + p)
                      : VecF{};
      }
      transpose(rows);
      for (int64_t i = 0; i < 16; ++i)
        std::memcpy(panel + p * kColumns + i * 2 * kColumns + half * kColumns, &rows[i],
                    sizeof(VecF));
    }
  }
}
#endif

// Computes the sums of a chunk of image n, down to the diagonal, by panels of values R. They are
// stored in rows of `width`, a multiple of kPanel with at least C.
template <class T, class R>
void sum_chunk_in_panels(const GramMatrix& args, int64_t n, int64_t chunk, int64_t width,
                         Wide<T>* sums, R* panels) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int kLeft = 4;  // rows at a time of the remainder by kBlockRows
  const Strides stride(args.layout, args.c, args.pixels);
  const V scale = splat<V>(W(args.scale));
  const int64_t products = width / kPanel<V> * ((width - kPanel<V>) / 2 / kBlockRows + 1);
  const int64_t lines = Prefetch<T>::lines(args, kPanelDepth, products);
  const int64_t begin = chunk * args.chunk_pixels;
  const int64_t end = smaller(begin + args.chunk_pixels, args.pixels);
  for (int64_t first = begin; first < end; first += kPanelDepth) {
    const int64_t depth = smaller(kPanelDepth, end - first);
    const T* x = static_cast<const T*>(args.x) + n * args.c * args.pixels + first * stride.pixel;
    // Packs a few pixels at a time for channels_last, all panels of them: that reads x in order of
    // memory.
    const int64_t pixels = args.layout == Layout::contiguous ? kPanelDepth : 8;
    for (int64_t k = 0; k < depth; k += pixels)
      for (int64_t c = 0; c < width; c += kPanel<V>)
        pack_channels(args, n, x, c, k, smaller(pixels, depth - k), panels + c * kPanelDepth);
    Prefetch<T> next(args, x + kPanelDepth * stride.pixel,
                     smaller(kPanelDepth, end - first - depth));
    const bool begins = first == begin;
    for (int64_t column = 0; column < width; column += kPanel<V>) {
      int64_t row = 0;
      for (; (column - row) % kBlockRows != 0; row += kLeft) {
        next.fetch(lines);
        add_product<kLeft, 2>(panels, row, column, depth, scale, begins, width, sums);
      }
      for (; row < column; row += kBlockRows) {
        next.fetch(lines);
        add_product<kBlockRows, 2>(panels, row, column, depth, scale, begins, width, sums);
      }
      // On the diagonal the lower half of the rows needs the right half of the columns only.
      constexpr int kHalf = kLanes<V>, kUpper = kHalf < kBlockRows ? kHalf : kHalf / 2;
      next.fetch(lines);
      for (; row < column + kHalf; row += kUpper)
        add_product<kUpper, 2>(panels, row, column, depth, scale, begins, width, sums);
      add_product<kHalf, 1>(panels, row, column + kHalf, depth, scale, begins, width, sums);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
