// The Gram matrix of bfloat16 features on AMX tiles, and its gradient: see gram_matrix.cpp for the
// division of work.
//
// A tile product takes 16 channels x 32 pixels and 16 pixel pairs x 16 channels. With two pixels of
// a channel as one 32-bit word, the second is the transpose of the first: so each 16 x 32 block of
// x is packed as it lies and transposed (contiguous), or interleaved and transposed
// (channels_last). Four sums of 16 x 16 stay in tiles while a stretch of pixels passes. Packing and
// adding up take vectors as long as the products take tiles: a piece of each comes after every few
// products, for the channels that are next and for the sums that were last.
//
// The gradient's sums run over channels. contiguous: rows of S times pairs of channels of 16
// pixels; channels_last: rows of pixels, where they lie if nothing is to be filled up, times pairs
// of rows of S. What a block lacks of pixels is never stored, and may be anything.
#pragma once

#include "../../gram_matrix.h"
#include "../vector/matrix.h"
#include "../vector/tiles.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kTilePixels = 32;  // of one tile
constexpr int64_t kTilePanel = 32;   // channels of a pair of tiles
constexpr int64_t kTileWords = kTileRows * kTileBytes / 4;
constexpr int64_t kTileDepth = 512;  // pixels packed at a time
constexpr int64_t kTileSteps = kTileDepth / kTilePixels;

// Scratch of one worker, in floats: see TilePacker.
inline int64_t tile_panel_elements(int64_t width) {
  return (width + 3 * kTilePanel) * kTileDepth / 2;
}

#if VECTOR_BYTES == 64
inline VecF load_words(const BFloat16* p) {
  VecF words;
  std::memcpy(&words, p, sizeof(words));
  return words;
}

// 16 values of each of two rows, in turn.
inline VecF pair_rows(const BFloat16* even, const BFloat16* odd) {
  const Bits half = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)even));
  return (VecF)interleaved(_mm512_inserti64x4(half, _mm256_loadu_si256((const __m256i*)odd), 1));
}
#endif

// 16 x 16 words, the rows `pitch` values apart.
inline void transpose_words(const BFloat16* from, int64_t pitch, BFloat16* to) {
#if VECTOR_BYTES == 64
  VecF rows[kTileRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) rows[i] = load_words(from + i * pitch);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) std::memcpy(to + i * kTilePixels, &rows[i], sizeof(VecF));
#else
  uint32_t columns[16][16];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) std::memcpy(&columns[j][i], from + i * pitch + 2 * j, 4);
  std::memcpy(to, columns, sizeof(columns));
#endif
}

// 16 pairs of up to 32 rows of up to 16 values, `pitch` apart, with zeros beyond.
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

// 16 pairs of 32 rows of 16 values, and their transpose. It doesn't read what was just stored: that
// takes long, and tiles would wait as well.
inline void pack_both(const BFloat16* x, int64_t pitch, BFloat16* pairs, BFloat16* transposed) {
#if VECTOR_BYTES == 64
  VecF words[kTileRows];
#pragma GCC unroll 16
  for (int k = 0; k < kTileRows; ++k) {
    words[k] = pair_rows(x + 2 * k * pitch, x + (2 * k + 1) * pitch);
    std::memcpy(pairs + k * kTilePixels, &words[k], sizeof(VecF));
  }
  transpose(words);
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
    std::memcpy(transposed + i * kTilePixels, &words[i], sizeof(VecF));
#else
  pack_pairs(x, pitch, 32, 16, reinterpret_cast<uint32_t*>(pairs));
  transpose_words(pairs, kTilePixels, transposed);
#endif
}

// Up to 16 rows of up to 32 values, `pitch` apart, with zeros beyond.
inline void pack_rows(const BFloat16* x, int64_t pitch, int64_t rows, int64_t columns,
                      BFloat16* packed, int64_t packed_pitch) {
  for (int64_t i = 0; i < kTileRows; ++i) {
    const int64_t count = i < rows ? columns < kTilePixels ? columns : kTilePixels : 0;
    BFloat16* row = packed + i * packed_pitch;
    if (count < kTilePixels) std::memset(row, 0, kTileBytes);
    if (count > 0) std::memcpy(row, x + i * pitch, count * sizeof(BFloat16));
  }
}

// Leaves the products of 32 rows with 32 columns in `part`: four tiles, of the first 16 rows first.
// From one of the `steps` to the next it is row_step values in `first` and `second`, and a tile in
// the columns. Calls between() after each of them.
template <class Between>
inline void multiply_tiles(const BFloat16* first, const BFloat16* second, int64_t row_pitch,
                           int64_t row_step, const BFloat16* left, const BFloat16* right,
                           int64_t steps, float (&part)[4][kTileWords], const Between& between) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t step = 0; step < steps; ++step) {
    tile_load<4>(first + step * row_step, row_pitch * sizeof(BFloat16));
    tile_load<6>(left + step * 2 * kTileWords);
    tile_multiply<0, 4, 6>();
    tile_load<7>(right + step * 2 * kTileWords);
    tile_multiply<1, 4, 7>();
    tile_load<5>(second + step * row_step, row_pitch * sizeof(BFloat16));
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
    between();
  }
  tile_store<0>(part[0]), tile_store<1>(part[1]);
  tile_store<2>(part[2]), tile_store<3>(part[3]);
}

// Packs the panels of one stretch of a slice's pixels after another, a block of 16 channels x 32
// pixels at a time: transposed, for two panels in turn, which stay in the nearest caches; and
// plain, for all panels of a stretch and one of the next, unless rows of x can be taken as they
// lie.
struct TilePacker {
  const GramMatrix& args;
  const BFloat16* x;  // of the image
  int64_t end;        // of the slice's pixels
  int64_t panels;
  BFloat16* memory;
  // The panel that is being packed: its number, counted from the slice's first, and its pixels.
  int64_t number = 0, first;
  int64_t panel = 0, block = 0, step = 0;

  int64_t steps_of(int64_t from) const {
    const int64_t pixels = smaller(kTileDepth, end - from);
    return (pixels + kTilePixels - 1) / kTilePixels;
  }

  BFloat16* tile(int64_t slot, int64_t of_block, int64_t of_step) const {
    return memory + ((slot * 2 + of_block) * kTileSteps + of_step) * 2 * kTileWords;
  }
  BFloat16* transposed(int64_t of_number, int64_t of_block, int64_t of_step = 0) const {
    return tile(of_number % 2, of_block, of_step);
  }
  BFloat16* plain(int64_t of_number, int64_t of_block, int64_t of_step = 0) const {
    return tile(2 + of_number % (panels + 1), of_block, of_step);
  }
  bool as_it_lies(int64_t of_panel, int64_t from) const {
    return args.layout == Layout::contiguous && (of_panel + 1) * kTilePanel <= args.c &&
           from + steps_of(from) * kTilePixels <= end;
  }

  // The next piece. Not inlined: the loop over tiles is short without it.
  [[gnu::noinline]] void advance() {
    if (first >= end) return;
    const bool contiguous = args.layout == Layout::contiguous;
    const int64_t channel = panel * kTilePanel + block * kTileRows;
    const int64_t pixel = first + step * kTilePixels;
    const int64_t channels = args.c - channel, pixels = end - pixel;
    BFloat16* across = transposed(number, block, step);
    BFloat16* along = plain(number, block, step);
    if (contiguous) {
      const BFloat16* corner = x + channel * args.pixels + pixel;
      if (as_it_lies(panel, first)) {
        transpose_words(corner, args.pixels, across);
      } else {
        pack_rows(corner, args.pixels, channels, pixels, along, kTilePixels);
        transpose_words(along, kTilePixels, across);
      }
    } else {
      const BFloat16* corner = x + pixel * args.c + channel;
      // As many lines of the next stretch as there are pieces: of its own pixels a panel reads one
      // line in several, and the machine's prefetching follows late.
      const int64_t piece = (panel * kTileSteps + step) * 2 + block;
      const BFloat16* next = x + (first + kTileDepth) * args.c + piece * kTileRows * kTilePixels;
      for (int64_t i = 0; i < kTileRows; ++i) __builtin_prefetch(next + i * kTilePixels, 0, 2);
      if (channels >= kTileRows && pixels >= kTilePixels) {
        pack_both(corner, args.c, along, across);
      } else {
        pack_pairs(corner, args.c, pixels, channels, reinterpret_cast<uint32_t*>(along));
        transpose_words(along, kTilePixels, across);
      }
    }
    // Along the memory: contiguous channels one by one, pixels with all channels of a panel.
    const int64_t steps = steps_of(first);
    if (contiguous ? ++step < steps : ++block < 2) return;
    if (contiguous ? (step = 0, ++block < 2) : (block = 0, ++step < steps)) return;
    block = step = 0, ++number;
    if (++panel == panels) panel = 0, first += kTileDepth;
  }
};

// Offset of the tile with element (i, j) of the sums, which lie tile by tile.
inline int64_t sum_tile(int64_t width, int64_t i, int64_t j) {
  return (i / kTileRows * (width / kTileRows) + j / kTileRows) * kTileWords;
}

// Products of 32 x 32 channels on their way to the sums, a row of each tile at a time.
struct TileSum {
  float part[4][kTileWords];
  float* upper = nullptr;  // the sums of the first two tiles, which lie side by side,
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

// The sums of one slice of image n: those above the diagonal (contiguous) or below. `width` is C
// rounded up to kTilePanel.
inline void sum_slice_in_tiles(const GramMatrix& args, int64_t n, int64_t slice, int64_t width,
                               float* sums, float* memory) {
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t panels = width / kTilePanel;
  const int64_t begin = slice * args.slice_pixels;
  const int64_t end = smaller(begin + args.slice_pixels, args.pixels);
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + n * args.c * args.pixels;
  const VecF scale = splat<VecF>(float(args.scale));
  [[maybe_unused]] const TileScope scope;
  TilePacker packer{args, x, end, panels, reinterpret_cast<BFloat16*>(memory), 0, begin};
  alignas(64) TileSum parts[2];  // one is added while the other is filled
  int64_t turn = 0;
  while (packer.number == 0) packer.advance();
  for (int64_t first = begin, number = 0; first < end; first += kTileDepth, number += panels) {
    const int64_t steps = packer.steps_of(first), rows = (kTileRows + steps - 1) / steps;
    for (int64_t last = 0; last < panels; ++last) {
      const int64_t packed = number + last;
      while (packer.number == packed && packer.first < end) packer.advance();
      // The next panel has no more blocks than this one, and these are the turns to pack them.
      const int64_t turns = (last + 1) * steps, blocks = 2 * steps;
      int64_t due = 0;
      for (int64_t panel = 0; panel <= last; ++panel) {
        TileSum &before = parts[turn], &sum = parts[turn ^= 1];
        const auto between = [&] {
          for (int64_t i = 0; i < rows; ++i) before.advance(scale);
          for (due += blocks; due >= turns; due -= turns)
            if (packer.number <= packed + 1) packer.advance();
        };
        const BFloat16* across[] = {packer.transposed(packed, 0), packer.transposed(packed, 1)};
        const BFloat16* along[] = {packer.plain(number + panel, 0),
                                   packer.plain(number + panel, 1)};
        if (packer.as_it_lies(panel, first)) {
          along[0] = x + panel * kTilePanel * args.pixels + first;
          multiply_tiles(along[0], along[0] + kTileRows * args.pixels, args.pixels, kTilePixels,
                         across[0], across[1], steps, sum.part, between);
        } else {
          const BFloat16** left = contiguous ? along : across;
          const BFloat16** right = contiguous ? across : along;
          multiply_tiles(left[0], left[1], kTilePixels, 2 * kTileWords, right[0], right[1], steps,
                         sum.part, between);
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

// Where element (i, j) of the symmetric factor S lies, in tiles of 16 of its rows, or for
// channels_last of pairs of its rows.
inline int64_t place_in_tiles(bool pairs, int64_t width, int64_t i, int64_t j) {
  const int64_t steps = width / kTilePixels;
  if (!pairs)
    return (i / 16 * steps + j / 32) * 2 * kTileWords + i % 16 * kTilePixels + j % kTilePixels;
  return (j / 16 * steps + i / 32) * 2 * kTileWords + i % 32 / 2 * kTilePixels + j % 16 * 2 + i % 2;
}

// Writes up to 32 x 32 products to rows of y, `pitch` apart.
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

// grad_x of `count` pixels from `first` on. `block` has room for all channels of them, rounded up
// to 32.
inline void backward_block_in_tiles(const GramMatrixBackward& args, int64_t n, int64_t first,
                                    int64_t count, int64_t width, BFloat16* block) {
  const int64_t c = args.c, steps = width / kTilePixels;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t offset = n * c * args.pixels + first * (contiguous ? 1 : c);
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + offset;
  BFloat16* grad_x = static_cast<BFloat16*>(args.grad_x) + offset;
  const BFloat16* product = reinterpret_cast<const BFloat16*>(
      static_cast<const float*>(args.product) + n * width * width);
  const auto tile = [&](auto* tiles, int64_t index) {
    return tiles + index / kTileRows * steps * 2 * kTileWords;
  };
  alignas(64) float part[4][kTileWords];
  [[maybe_unused]] const TileScope scope;
  if (contiguous) {  // rows of S, and pairs of channels
    for (int64_t p = 0; p < count; p += kTileRows)
      for (int64_t k = 0; k < width; k += kTilePixels)
        pack_pairs(x + k * args.pixels + p, args.pixels, c - k, count - p,
                   reinterpret_cast<uint32_t*>(tile(block, p) + k / kTilePixels * 2 * kTileWords));
    for (int64_t i = 0; i < c; i += kTilePanel) {
      for (int64_t p = 0; p < count; p += kTilePanel) {
        multiply_tiles(tile(product, i), tile(product, i + 16), kTilePixels, 2 * kTileWords,
                       tile(block, p), tile(block, p + 16), steps, part, [] {});
        store_tiles(part, c - i, count - p, args.pixels, grad_x + i * args.pixels + p);
      }
    }
    return;
  }
  // Pixels are rows as they are, if there is nothing to fill up.
  const bool whole = c == width && count % kTilePanel == 0;
  const BFloat16* pixels = whole ? x : block;
  if (!whole)
    for (int64_t p = 0; p < count; p += kTileRows)
      for (int64_t k = 0; k < width; k += kTilePixels)
        pack_rows(x + p * c + k, c, count - p, c - k, block + p * width + k, width);
  for (int64_t column = 0; column < c; column += kTilePanel) {
    for (int64_t p = 0; p < count; p += kTilePanel) {
      multiply_tiles(pixels + p * width, pixels + (p + 16) * width, width, kTilePixels,
                     tile(product, column), tile(product, column + 16), steps, part, [] {});
      store_tiles(part, count - p, c - column, c, grad_x + p * c + column);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
