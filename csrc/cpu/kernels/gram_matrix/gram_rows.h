// Sums of a Gram matrix in the 32 registers of AVX-512: see gram_matrix.cpp for the division of
// work. In 16 registers a register block of 3 x 3 waits for the L2 cache, and gram_panels.h is
// faster.
//
// kRowDepth pixels at a time are packed into a row per channel. The register block is kSide x kSide
// channels, a vector each, whose lanes are pixels: a step loads 2 kSide vectors for kSide^2
// products, and hardly more than a triangle of the square matrix is computed. The lanes are added
// up at the end. Packing transposes channels_last features.
//
// Rows hold float32 or float64. With AVX512-BF16 those of bfloat16 stay bfloat16, and a product
// takes two pixels in each lane.
#pragma once

#include "../vector/matrix.h"
#include "gram_features.h"

#if VECTOR_BYTES == 64
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kRowDepth = 512;  // pixels packed at a time
constexpr int kSide = 4;            // channels a side of a register block

// Elements from one row of values R to the next: an odd number of cache lines, so that rows use
// different sets of a cache.
template <class R>
constexpr int64_t kRowPitch = kRowDepth + 64 / sizeof(R);

// Subtracts the mean of each channel and its rounding error, if given.
template <class T>
struct Centering {
  using W = Wide<T>;
  const W *mean, *error;
  template <class U>
  U operator()(U value, int64_t channel) const {
    if (mean == nullptr) return value;
    if constexpr (kLanes<U> > 1)
      return value - splat<U>(mean[channel]) - splat<U>(error[channel]);
    else
      return value - mean[channel] - error[channel];
  }
};

template <class T>
void pack_rows_of_planes(const T* x, int64_t channel_stride, int64_t channels, int64_t pixels,
                         const Centering<T>& centered, Wide<T>* rows) {
  using V = Vec<T>;
  using W = Wide<T>;
  for (int64_t c = 0; c < channels; ++c) {
    const T* from = x + c * channel_stride;
    W* to = rows + c * kRowPitch<Wide<T>>;
    int64_t p = 0;
    for (; p + kLanes<V> <= pixels; p += kLanes<V>) store(to + p, centered(load<V>(from + p), c));
    for (; p < pixels; ++p) to[p] = centered(load<W>(from + p), c);
    for (; p % kLanes<V> != 0; ++p) to[p] = 0;
  }
}

template <class T>
void pack_rows_of_pixels(const T* x, int64_t channels, int64_t pixels, const Centering<T>& centered,
                         Wide<T>* rows) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kSquare = kLanes<V>;
  for (int64_t p = 0; p < pixels; p += kSquare) {
    for (int64_t c = 0; c < channels; c += kSquare) {
      const T* from = x + p * channels + c;
      W* to = rows + c * kRowPitch<Wide<T>> + p;
      if (p + kSquare <= pixels && c + kSquare <= channels) {
        V square[kSquare];
        for (int64_t i = 0; i < kSquare; ++i) square[i] = load<V>(from + i * channels);
        transpose(square);
        for (int64_t i = 0; i < kSquare; ++i)
          store(to + i * kRowPitch<Wide<T>>, centered(square[i], c + i));
        continue;
      }
      for (int64_t j = 0; j < smaller(kSquare, channels - c); ++j)
        for (int64_t i = 0; i < kSquare; ++i)
          to[j * kRowPitch<Wide<T>> + i] =
              p + i < pixels ? centered(load<W>(from + i * channels + j), c + j) : W(0);
    }
  }
}

#if HAS_PAIRS
// Packs a row of bfloat16 per channel. It centres nothing.
inline void pack_rows_of_planes(const BFloat16* x, int64_t channel_stride, int64_t channels,
                                int64_t pixels, const Centering<BFloat16>&, BFloat16* rows) {
  for (int64_t c = 0; c < channels; ++c) {
    const BFloat16* from = x + c * channel_stride;
    BFloat16* to = rows + c * kRowPitch<BFloat16>;
    for (int64_t p = 0; p < pixels; p += 32)
      _mm512_storeu_si512(to + p, _mm512_maskz_loadu_epi16(first_lanes(pixels - p), from + p));
  }
}

// Transposes 32 pixels x 16 channels at a time, two pixels of a channel as one element.
inline void pack_rows_of_pixels(const BFloat16* x, int64_t channels, int64_t pixels,
                                const Centering<BFloat16>&, BFloat16* rows) {
  for (int64_t p = 0; p < pixels; p += 32) {
    for (int64_t c = 0; c < channels; c += 16) {
      const __mmask16 mask = __mmask16(first_lanes(channels - c));
      const auto pixel = [&](int64_t i) {
        return i < pixels ? _mm256_maskz_loadu_epi16(mask, x + i * channels + c)
                          : _mm256_setzero_si256();
      };
      VecF pairs[16];
      for (int k = 0; k < 16; ++k)
        pairs[k] = (VecF)interleaved(
            _mm512_inserti64x4(_mm512_castsi256_si512(pixel(p + 2 * k)), pixel(p + 2 * k + 1), 1));
      transpose(pairs);
      for (int i = 0; i < 16; ++i)
        std::memcpy(rows + (c + i) * kRowPitch<BFloat16> + p, &pairs[i], sizeof(VecF));
    }
  }
}
#endif

// Adds scale times the sums over the lanes of a register block. `begins`: stores instead of adding.
inline void add_lanes(const VecF (&part)[kSide][kSide], float scale, bool begins, int64_t width,
                      float* sums) {
  typedef float Four __attribute__((vector_size(16)));
  VecF columns[kSide];  // 128 bits for each row
  for (int c = 0; c < kSide; ++c) {
    const auto halves = [&](const VecF& a, const VecF& b) {
      return (VecF)_mm512_shuffle_f32x4(a, b, 0x44) + (VecF)_mm512_shuffle_f32x4(a, b, 0xee);
    };
    const VecF low = halves(part[0][c], part[1][c]), high = halves(part[2][c], part[3][c]);
    // Scaling happens at a quarter of the products: before their sum can overflow.
    columns[c] = ((VecF)_mm512_shuffle_f32x4(low, high, 0x88) +
                  (VecF)_mm512_shuffle_f32x4(low, high, 0xdd)) *
                 splat<VecF>(scale);
  }
  const auto neighbours = [](const VecF& a, const VecF& b) {
    return (VecF)_mm512_unpacklo_ps(a, b) + (VecF)_mm512_unpackhi_ps(a, b);
  };
  const VecF left = neighbours(columns[0], columns[1]), right = neighbours(columns[2], columns[3]);
  const VecF total =
      (VecF)_mm512_shuffle_ps(left, right, 0x44) + (VecF)_mm512_shuffle_ps(left, right, 0xee);
  Four added[kSide];
  std::memcpy(added, &total, sizeof(added));
  for (int r = 0; r < kSide; ++r) {
    Four sum{};
    if (!begins) std::memcpy(&sum, sums + r * width, sizeof(sum));
    sum += added[r];
    std::memcpy(sums + r * width, &sum, sizeof(sum));
  }
}

inline void add_lanes(const VecD (&part)[kSide][kSide], double scale, bool begins, int64_t width,
                      double* sums) {
  for (int r = 0; r < kSide; ++r)
    for (int c = 0; c < kSide; ++c) {
      double total = 0;
      for (int lane = 0; lane < kLanes<VecD>; ++lane) total += part[r][c][lane];
      sums[r * width + c] = (begins ? 0 : sums[r * width + c]) + scale * total;
    }
}

// Adds scale times the products of kSide rows with kSide others, over `pixels` > 0 pixels.
// `begins`: stores instead of adding.
template <class R>
inline void add_block(const R* a, const R* b, int64_t pixels, Wide<R> scale, bool begins,
                      int64_t width, Wide<R>* sums) {
  using V = Vec<R>;
  V part[kSide][kSide];
  clear(part);
  int64_t p = 0;
  do {
    V columns[kSide];
#pragma GCC unroll 4
    for (int c = 0; c < kSide; ++c) std::memcpy(&columns[c], b + c * kRowPitch<R> + p, sizeof(V));
#pragma GCC unroll 4
    for (int r = 0; r < kSide; ++r) {
      V row;
      std::memcpy(&row, a + r * kRowPitch<R> + p, sizeof(V));
#pragma GCC unroll 4
      for (int c = 0; c < kSide; ++c) part[r][c] = add_products<R>(row, columns[c], part[r][c]);
    }
    p += kLanes<V> * kTermsPerLane<R>;
  } while (p < pixels);
  add_lanes(part, scale, begins, width, sums);
}

// Computes the sums of a chunk of image n, down to the diagonal, by rows of values R. They are
// stored in rows of `width`. Both have room for a multiple of kPanel channels, C or more.
template <class T, class R>
void sum_chunk_in_rows(const GramMatrix& args, int64_t n, int64_t chunk, int64_t width,
                       Wide<T>* sums, R* rows) {
  using W = Wide<T>;
  constexpr int64_t kPitch = kRowPitch<R>;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t c = args.c, pixel_stride = contiguous ? 1 : c;
  const int64_t begin = chunk * args.chunk_pixels;
  const int64_t end = smaller(begin + args.chunk_pixels, args.pixels);
  const int64_t blocks = ceil_divide(c, kSide);
  const int64_t lines = Prefetch<T>::lines(args, kRowDepth, blocks * (blocks + 1) / 2);
  const W* mean = args.mean ? static_cast<const W*>(args.mean) + n * c : nullptr;
  const Centering<T> centered{mean, mean ? mean + args.n * c : nullptr};
  for (int64_t channel = c; channel < blocks * kSide; ++channel)
    std::memset(rows + channel * kPitch, 0, kPitch * sizeof(R));
  for (int64_t first = begin; first < end; first += kRowDepth) {
    const int64_t depth = smaller(kRowDepth, end - first);
    const T* x = static_cast<const T*>(args.x) + n * c * args.pixels + first * pixel_stride;
    if (contiguous)
      pack_rows_of_planes(x, args.pixels, c, depth, centered, rows);
    else
      pack_rows_of_pixels(x, c, depth, centered, rows);
    Prefetch<T> next(args, x + kRowDepth * pixel_stride, smaller(kRowDepth, end - first - depth));
    for (int64_t column = 0; column < c; column += kSide) {
      for (int64_t row = 0; row <= column; row += kSide) {
        next.fetch(lines);
        add_block(rows + row * kPitch, rows + column * kPitch, depth, W(args.scale), first == begin,
                  width, sums + row * width + column);
      }
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
