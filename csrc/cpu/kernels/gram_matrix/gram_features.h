// Features of a Gram matrix: strides, prefetching, and packing in bfloat16 pairs.
#pragma once

#include "../../gram_matrix.h"
#include "../vector/matrix.h"
#include "../vector/pairs.h"

namespace stylekernels::CPU_CAPABILITY {

// Strides of x in elements, from one channel to the next, and from one pixel to the next.
struct Strides {
  int64_t channel, pixel;
  Strides(Layout layout, int64_t c, int64_t pixels)
      : channel(layout == Layout::contiguous ? pixels : 1),
        pixel(layout == Layout::contiguous ? 1 : c) {}
};

// Prefetches the pixels that are packed next, a few lines at a time between products. Otherwise
// memory waits while the products run, and they wait for memory (a third of the time at C = 64).
template <class T>
struct Prefetch {
  const T* p;
  int64_t run, pitch;  // elements of a run, and from the beginning of a run to the next
  int64_t runs, line = 0;

  Prefetch(const GramMatrix& args, const T* x, int64_t pixels)
      : p(x),
        run(args.layout == Layout::contiguous ? pixels : pixels * args.c),
        pitch(args.pixels),
        runs(pixels <= 0                         ? 0
             : args.layout == Layout::contiguous ? args.c
                                                 : 1) {}

  // Returns the lines to fetch at a time, with `products` products between two packings of `depth`
  // pixels.
  static int64_t lines(const GramMatrix& args, int64_t depth, int64_t products) {
    return depth * args.c * int64_t(sizeof(T)) / 64 / (products + 1) + 1;
  }

  void fetch(int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (; count > 0 && runs > 0; --count) {
      __builtin_prefetch(p + line * kLine);
      if (++line * kLine >= run) line = 0, p += pitch, --runs;
    }
  }
};

#if HAS_PAIRS
inline __mmask32 first_lanes(int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

// Packs two channels of kPanel pixels as pairs.
inline void pack_pairs_of_planes(const BFloat16* even, const BFloat16* odd, int64_t pixels,
                                 BFloat16* pairs) {
  const __mmask32 mask = first_lanes(pixels);
  const Bits a = _mm512_maskz_loadu_epi16(mask, even);
  const Bits b = odd == nullptr ? Bits{} : _mm512_maskz_loadu_epi16(mask, odd);
  _mm512_storeu_si512(pairs, interleaved(_mm512_shuffle_i64x2(a, b, 0x44)));
  _mm512_storeu_si512(pairs + 32, interleaved(_mm512_shuffle_i64x2(a, b, 0xee)));
}
#endif

}  // namespace stylekernels::CPU_CAPABILITY
