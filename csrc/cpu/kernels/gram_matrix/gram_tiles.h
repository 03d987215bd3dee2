// Gram matrix of bfloat16 features on AMX tiles, and its gradient: see gram_matrix.cpp for the
// division of work.
//
// Register block: 32 x 32 channels, in four accumulators. A tile product takes 16 channels x 32
// pixels and 16 pixel pairs x 16 channels. With two pixels of a channel as one 32-bit word, the
// second operand is the transpose of the first. So each 16 x 32 tile of x is packed in its order
// and transposed (contiguous), or interleaved and transposed (channels_last).
//
// Software pipeline: the vectors' part, packing and adding up, takes as long as the tile products.
// So pieces of both run between the products: packing for the next panel, and adding up the last
// register block.
//
// The gradient's sums run over channels. contiguous: rows of S times pairs of channels of 16
// pixels; channels_last: rows of pixels, read from x itself if all are whole tiles, times pairs of
// rows of S. Pixels beyond a chunk's last may hold anything: their results are never stored.
#pragma once

#include "../../gram_matrix.h"
#include "../vector/matrix.h"
#include "../vector/pairs.h"
#include "../vector/tiles.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kTileWords = kTileRows * kTileBytes / 4;    // floats of an accumulator
constexpr int64_t kPackedPixels = 512;                        // pixels packed at a time
constexpr int64_t kPackedSteps = kPackedPixels / kTileDepth;  // K steps for them

// Returns the scratch of one worker, in floats: see TilePacker.
inline int64_t tile_panel_elements(int64_t width) {
  return (width + 3 * kTilePanel) * kPackedPixels / 2;
}

#if VECTOR_BYTES == 64
inline VecF load_words(const BFloat16* p) {
  VecF words;
  std::memcpy(&words, p, sizeof(words));
  return words;
}

// Interleaves 16 values of each of two rows.
inline VecF pair_rows(const BFloat16* even, const BFloat16* odd) {
  const Bits half = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)even));
  return (VecF)interleaved(_mm512_inserti64x4(half, _mm256_loadu_si256((const __m256i*)odd), 1));
}
#endif

// Transposes 16 x 16 words of 32 bits, from rows `pitch` values apart.
inline void transpose_words(const BFloat16* from, int64_t pitch, BFloat16* to) {
#if VECTOR_BYTES == 64
  VecF rows[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) rows[i] = load_words(from + i * pitch);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) std::memcpy(to + i * kTileDepth, &rows[i], sizeof(VecF));
#else
  uint32_t columns[16][16];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) std::memcpy(&columns[j][i], from + i * pitch + 2 * j, 4);
  std::memcpy(to, columns, sizeof(columns));
#endif
}

// Packs a tile of pairs: up to 32 rows of up to 16 values, `pitch` values apart, two rows to a row
// of pairs, with zeros beyond.
inline void pack_pairs(const BFloat16* x, int64_t pitch, int64_t rows, int64_t columns,
                       uint32_t* pairs) {
  for (int64_t k = 0; k < 16; ++k) {
    const BFloat16 *even = x + 2 * k * pitch, *odd = even + pitch;
    if (columns >= kTileRows && 2 * k + 1 < rows) {
#if VECTOR_BYTES == 64
      const VecF pair = pair_rows(even, odd);
      std::memcpy(pairs + k * 16, &pair, sizeof(pair));
#else
      for (int64_t i = 0; i < kTileRows; ++i)
        pairs[k * 16 + i] = uint32_t(even[i].bits) | uint32_t(odd[i].bits) << 16;
#endif
      continue;
    }
    for (int64_t i = 0; i < kTileRows; ++i) {
      const bool inside = i < columns;
      const uint32_t low = inside && 2 * k < rows ? even[i].bits : 0;
      const uint32_t high = inside && 2 * k + 1 < rows ? odd[i].bits : 0;
      pairs[k * 16 + i] = low | high << 16;
    }
  }
}

// Packs a tile of pairs, as pack_pairs does, and its transpose. It doesn't read what was just
// stored: that takes long, and the tile products would wait as well.
inline void pack_both(const BFloat16* x, int64_t pitch, BFloat16* pairs, BFloat16* transposed) {
#if VECTOR_BYTES == 64
  VecF words[kTileRows];
#pragma GCC unroll 16
  for (int k = 0; k < kTileRows; ++k) {
    words[k] = pair_rows(x + 2 * k * pitch, x + (2 * k + 1) * pitch);
    std::memcpy(pairs + k * kTileDepth, &words[k], sizeof(VecF));
  }
  transpose(words);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
    std::memcpy(transposed + i * kTileDepth, &words[i], sizeof(VecF));
#else
  pack_pairs(x, pitch, 32, 16, reinterpret_cast<uint32_t*>(pairs));
  transpose_words(pairs, kTileDepth, transposed);
#endif
}

// Packs a tile in its order: up to 16 rows of up to 32 values, `pitch` values apart, with zeros
// beyond.
inline void pack_rows(const BFloat16* x, int64_t pitch, int64_t rows, int64_t columns,
                      BFloat16* packed, int64_t packed_pitch) {
  for (int64_t i = 0; i < kTileRows; ++i) {
    const int64_t count = i < rows ? columns < kTileDepth ? columns : kTileDepth : 0;
    BFloat16* row = packed + i * packed_pitch;
    if (count < kTileDepth) std::memset(row, 0, kTileBytes);
    if (count > 0) std::memcpy(row, x + i * pitch, count * sizeof(BFloat16));
  }
}

// Computes a register block of 32 rows x 32 columns and stores it to `part`: four tiles, those of
// the first 16 rows first. `first` and `second`: 16 rows each, row_pitch values apart, whose next K
// step is step_pitch values further on. `left` and `right`: packed tiles of 16 columns, one per K
// step. Pitches and steps are in values. `begin`: four tiles to which products are added, or null.
// Calls between() after each of the `steps` K steps.
template <class Between>
inline void multiply_tile_panels(const BFloat16* first, const BFloat16* second, int64_t row_pitch,
                                 int64_t step_pitch, const BFloat16* left, const BFloat16* right,
                                 int64_t steps, const float (*begin)[kTileWords],
                                 float (&part)[4][kTileWords], const Between& between) {
  if (begin == nullptr) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(begin[0]), tile_load<1>(begin[1]), tile_load<2>(begin[2]), tile_load<3>(begin[3]);
  }
  for (int64_t step = 0; step < steps; ++step) {
    tile_load<4>(first + step * step_pitch, row_pitch * sizeof(BFloat16));
    tile_load<6>(left + step * kTileElements);
    tile_multiply<0, 4, 6>();
    tile_load<7>(right + step * kTileElements);
    tile_multiply<1, 4, 7>();
    tile_load<5>(second + step * step_pitch, row_pitch * sizeof(BFloat16));
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
    between();
  }
  tile_store<0>(part[0]), tile_store<1>(part[1]);
  tile_store<2>(part[2]), tile_store<3>(part[3]);
}

// Packs the panels of a chunk: first all panels of kPackedPixels pixels, then all of the next
// kPackedPixels.
// It packs a tile of 16 channels x 32 pixels at a time, in two forms:
//
//   transposed   a ring of two panels, which stay in the nearest caches
//   plain        a ring of all panels and one more; not if tiles can be loaded from x itself
struct TilePacker {
  const GramMatrix& args;
  const BFloat16* x;  // the image
  int64_t end;        // end of the chunk's pixels
  int64_t panels;
  BFloat16* memory;
  // Panel at work: its number, counted from the chunk's first, its first pixel, its channels, and
  // the tile that is packed next (half: of the channels, step: of the pixels).
  int64_t number = 0, first;
  int64_t panel = 0, half = 0, step = 0;

  int64_t steps_of(int64_t from) const {
    const int64_t pixels = smaller(kPackedPixels, end - from);
    return ceil_divide(pixels, kTileDepth);
  }

  BFloat16* tile(int64_t slot, int64_t of_half, int64_t of_step) const {
    return memory + ((slot * 2 + of_half) * kPackedSteps + of_step) * kTileElements;
  }
  BFloat16* transposed(int64_t of_number, int64_t of_half, int64_t of_step = 0) const {
    return tile(of_number % 2, of_half, of_step);
  }
  BFloat16* plain(int64_t of_number, int64_t of_half, int64_t of_step = 0) const {
    return tile(2 + of_number % (panels + 1), of_half, of_step);
  }
  bool is_loaded_from_x(int64_t of_panel, int64_t from) const {
    return args.layout == Layout::contiguous && (of_panel + 1) * kTilePanel <= args.c &&
           from + steps_of(from) * kTileDepth <= end;
  }

  // Packs a tile: a piece of the software pipeline. Not inlined: without it the loop over tiles is
  // short.
  [[gnu::noinline]] void advance() {
    if (first >= end) return;
    const bool contiguous = args.layout == Layout::contiguous;
    const int64_t channel = panel * kTilePanel + half * kTileRows;
    const int64_t pixel = first + step * kTileDepth;
    const int64_t channels = args.c - channel, pixels = end - pixel;
    BFloat16* to_transposed = transposed(number, half, step);
    BFloat16* to_plain = plain(number, half, step);
    if (contiguous) {
      const BFloat16* corner = x + channel * args.pixels + pixel;
      if (is_loaded_from_x(panel, first)) {
        transpose_words(corner, args.pixels, to_transposed);
      } else {
        pack_rows(corner, args.pixels, channels, pixels, to_plain, kTileDepth);
        transpose_words(to_plain, kTileDepth, to_transposed);
      }
    } else {
      const BFloat16* corner = x + pixel * args.c + channel;
      // Prefetches 16 cache lines of the next kPackedPixels pixels; all pieces together fetch each
      // once. A panel reads only some lines of a pixel, which the hardware prefetcher notices late.
      const int64_t piece = (panel * kPackedSteps + step) * 2 + half;
      const BFloat16* next = x + (first + kPackedPixels) * args.c + piece * kTileRows * kTileDepth;
      for (int64_t i = 0; i < kTileRows; ++i) __builtin_prefetch(next + i * kTileDepth, 0, 2);
      if (channels >= kTileRows && pixels >= kTileDepth) {
        pack_both(corner, args.c, to_plain, to_transposed);
      } else {
        pack_pairs(corner, args.c, pixels, channels, reinterpret_cast<uint32_t*>(to_plain));
        transpose_words(to_plain, kTileDepth, to_transposed);
      }
    }
    // Order of memory: contiguous channels one by one, pixels with all channels of a panel.
    const int64_t steps = steps_of(first);
    if (contiguous ? ++step < steps : ++half < 2) return;
    if (contiguous ? (step = 0, ++half < 2) : (half = 0, ++step < steps)) return;
    half = step = 0, ++number;
    if (++panel == panels) panel = 0, first += kPackedPixels;
  }
};

// Returns the offset of the tile with element (i, j) of the sums, which are stored tile by tile.
inline int64_t sum_tile(int64_t width, int64_t i, int64_t j) {
  return (i / kTileRows * (width / kTileRows) + j / kTileRows) * kTileWords;
}

// A register block that is added to the sums, a row of each tile at a time: the epilogue in pieces.
struct TileSum {
  float part[4][kTileWords];
  float* upper = nullptr;  // sums of the first two tiles, which are consecutive,
  float* lower = nullptr;  // and of the other two
  bool adds = false;
  int64_t at = kTileWords;

  void advance(VecF scale) {
    if (at == kTileWords) return;
    for (int v = 0; v < 16; v += kLanes<VecF>, at += kLanes<VecF>) {
      float* const to[] = {upper + at, upper + at + kTileWords, lower + at,
                           lower + at + kTileWords};
      VecF sums[4];
      for (int p = 0; p < 4; ++p) {
        sums[p] = scale * load<VecF>(part[p] + at);
        if (adds) sums[p] += load<VecF>(to[p]);
      }
      for (int p = 0; p < 4; ++p) store(to[p], sums[p]);
    }
  }
  void finish(VecF scale) {
    while (at < kTileWords) advance(scale);
  }
};

// Computes the sums of a chunk of image n: those above the diagonal (contiguous) or below. `width`
// is C rounded up to kTilePanel.
inline void sum_chunk_in_tiles(const GramMatrix& args, int64_t n, int64_t chunk, int64_t width,
                               float* sums, float* memory) {
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t panels = width / kTilePanel;
  const int64_t begin = chunk * args.chunk_pixels;
  const int64_t end = smaller(begin + args.chunk_pixels, args.pixels);
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + n * args.c * args.pixels;
  const VecF scale = splat<VecF>(float(args.scale));
  [[maybe_unused]] const TileScope scope;
  TilePacker packer{args, x, end, panels, reinterpret_cast<BFloat16*>(memory), 0, begin};
  alignas(64) TileSum parts[2];  // one is added to the sums while the other is computed
  int64_t turn = 0;
  while (packer.number == 0) packer.advance();
  for (int64_t first = begin, number = 0; first < end; first += kPackedPixels, number += panels) {
    const int64_t steps = packer.steps_of(first), rows = ceil_divide(kTileRows, steps);
    for (int64_t last = 0; last < panels; ++last) {
      const int64_t packed = number + last;
      while (packer.number == packed && packer.first < end) packer.advance();
      // Schedule: the next panel has at most `pieces` tiles, to be packed within `turns` K steps.
      const int64_t turns = (last + 1) * steps, pieces = 2 * steps;
      int64_t due = 0;
      for (int64_t panel = 0; panel <= last; ++panel) {
        TileSum &before = parts[turn], &sum = parts[turn ^= 1];
        const auto between = [&] {
          for (int64_t i = 0; i < rows; ++i) before.advance(scale);
          for (due += pieces; due >= turns; due -= turns)
            if (packer.number <= packed + 1) packer.advance();
        };
        const BFloat16* transposed[] = {packer.transposed(packed, 0), packer.transposed(packed, 1)};
        const BFloat16* plain[] = {packer.plain(number + panel, 0),
                                   packer.plain(number + panel, 1)};
        if (packer.is_loaded_from_x(panel, first)) {
          plain[0] = x + panel * kTilePanel * args.pixels + first;
          multiply_tile_panels(plain[0], plain[0] + kTileRows * args.pixels, args.pixels,
                               kTileDepth, transposed[0], transposed[1], steps, nullptr, sum.part,
                               between);
        } else {
          const BFloat16** left = contiguous ? plain : transposed;
          const BFloat16** right = contiguous ? transposed : plain;
          multiply_tile_panels(left[0], left[1], kTileDepth, kTileElements, right[0], right[1],
                               steps, nullptr, sum.part, between);
        }
        before.finish(scale);
        const int64_t row = (contiguous ? panel : last) * kTilePanel;
        const int64_t column = (contiguous ? last : panel) * kTilePanel;
        sum.upper = sums + sum_tile(width, row, column);
        sum.lower = sums + sum_tile(width, row + kTileRows, column);
        sum.adds = first != begin, sum.at = 0;
      }
    }
  }
  parts[turn].finish(scale);
}

// Returns the offset of element (i, j) of the symmetric factor S: in tiles of 16 of its rows, or
// for channels_last in tiles of pairs of its rows.
inline int64_t offset_in_tiles(bool pairs, int64_t width, int64_t i, int64_t j) {
  const int64_t steps = width / kTileDepth;
  if (!pairs)
    return (i / 16 * steps + j / 32) * kTileElements + i % 16 * kTileDepth + j % kTileDepth;
  return (j / 16 * steps + i / 32) * kTileElements + i % 32 / 2 * kTileDepth + j % 16 * 2 + i % 2;
}

// Writes up to 32 x 32 products to rows of y, `pitch` values apart.
inline void store_tiles(const float (&part)[4][kTileWords], int64_t rows, int64_t columns,
                        int64_t pitch, BFloat16* y) {
  for (int64_t p = 0; p < 4; ++p) {
    const int64_t first = p / 2 * 16, column = p % 2 * 16;
    for (int64_t i = 0; i < 16 && first + i < rows; ++i) {
      const float* from = part[p] + i * 16;
      BFloat16* to = y + (first + i) * pitch + column;
      if (column + 16 <= columns)
        for (int64_t j = 0; j < 16; j += kLanes<VecF>) store(to + j, load<VecF>(from + j));
      else
        for (int64_t j = 0; column + j < columns; ++j) store(to + j, from[j]);
    }
  }
}

// Fills four tiles, a register block, with the offsets of 32 channels, its rows or its columns.
inline void fill_tiles(const float* offsets, bool rows, float (&tiles)[4][kTileWords]) {
  for (int64_t p = 0; p < 4; ++p)
    for (int64_t i = 0; i < 16; ++i)
      for (int64_t j = 0; j < 16; ++j)
        tiles[p][i * 16 + j] = offsets[rows ? p / 2 * 16 + i : p % 2 * 16 + j];
}

// Computes grad_x of `count` pixels from `first` on. `packed` has room for all their channels,
// rounded up to 32.
inline void backward_chunk_in_tiles(const GramMatrixBackward& args, int64_t n, int64_t first,
                                    int64_t count, int64_t width, BFloat16* packed) {
  const int64_t c = args.c, steps = width / kTileDepth;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t offset = n * c * args.pixels + first * (contiguous ? 1 : c);
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + offset;
  BFloat16* grad_x = static_cast<BFloat16*>(args.grad_x) + offset;
  const BFloat16* product = reinterpret_cast<const BFloat16*>(
      static_cast<const float*>(args.product) + n * width * width);
  const auto tile = [&](auto* tiles, int64_t index) {
    return tiles + index / kTileRows * steps * kTileElements;
  };
  const float* offsets = static_cast<const float*>(args.offsets) + n * width;
  alignas(64) float part[4][kTileWords], offset_tiles[4][kTileWords];
  const auto begin = args.mean ? offset_tiles : nullptr;
  [[maybe_unused]] const TileScope scope;
  if (contiguous) {  // rows of S times pairs of channels
    for (int64_t p = 0; p < count; p += kTileRows)
      for (int64_t k = 0; k < width; k += kTileDepth)
        pack_pairs(x + k * args.pixels + p, args.pixels, c - k, count - p,
                   reinterpret_cast<uint32_t*>(tile(packed, p) + k / kTileDepth * kTileElements));
    for (int64_t i = 0; i < c; i += kTilePanel) {
      if (args.mean) fill_tiles(offsets + i, true, offset_tiles);
      for (int64_t p = 0; p < count; p += kTilePanel) {
        multiply_tile_panels(tile(product, i), tile(product, i + 16), kTileDepth, kTileElements,
                             tile(packed, p), tile(packed, p + 16), steps, begin, part, [] {});
        store_tiles(part, c - i, count - p, args.pixels, grad_x + i * args.pixels + p);
      }
    }
    return;
  }
  // Rows of pixels are loaded from x itself if all tiles are whole.
  const bool whole = c == width && count % kTilePanel == 0;
  const BFloat16* pixels = whole ? x : packed;
  if (!whole)
    for (int64_t p = 0; p < count; p += kTileRows)
      for (int64_t k = 0; k < width; k += kTileDepth)
        pack_rows(x + p * c + k, c, count - p, c - k, packed + p * width + k, width);
  for (int64_t column = 0; column < c; column += kTilePanel) {
    if (args.mean) fill_tiles(offsets + column, false, offset_tiles);
    for (int64_t p = 0; p < count; p += kTilePanel) {
      multiply_tile_panels(pixels + p * width, pixels + (p + 16) * width, width, kTileDepth,
                           tile(product, column), tile(product, column + 16), steps, begin, part,
                           [] {});
      store_tiles(part, count - p, c - column, c, grad_x + p * c + column);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
