// The Gram matrix of bfloat16 features on AMX tiles, and its gradient: see gram_matrix.cpp for the
// division of work.
//
// A tile product takes 16 channels x 32 pixels and 16 pixel pairs x 16 channels. With two pixels of
// a channel as one 32-bit word, the second is the transpose of the first: so each 16 x 32 block of
// x is packed as it lies and transposed (contiguous), or interleaved and transposed
// (channels_last). Four sums of 16 x 16 stay in tiles while kTileDepth pixels pass.
//
// The gradient's sums run over channels. contiguous: rows of S times pairs of channels of 16
// pixels; channels_last: rows of pixels, where they lie if nothing is to be filled up, times pairs
// of rows of S. What a block lacks of pixels is never stored, and may be anything.
#pragma once

#include "../gram_matrix.h"
#include "matrix.h"
#include "tiles.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kTilePixels = 32;  // of one tile
constexpr int64_t kTileDepth = 512;  // pixels packed at a time
constexpr int64_t kTilePanel = 32;   // channels of a pair of tiles
constexpr int64_t kTileWords = kTileRows * kTileBytes / 4;

// Scratch of one worker, in floats: both forms of every block of `width` channels.
inline int64_t tile_panel_elements(int64_t width) { return 2 * width * kTileDepth / 2; }

inline void transpose_words(const uint32_t* from, uint32_t* to) {
  if constexpr (kLanes<VecF> == 16) {
    VecF rows[kLanes<VecF>];
    for (int i = 0; i < kLanes<VecF>; ++i) std::memcpy(&rows[i], from + i * 16, sizeof(VecF));
    transpose(rows);
    for (int i = 0; i < kLanes<VecF>; ++i) std::memcpy(to + i * 16, &rows[i], sizeof(VecF));
  } else {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) to[j * 16 + i] = from[i * 16 + j];
  }
}

// 16 pairs of up to 32 rows of up to 16 values, `pitch` apart, with zeros beyond.
inline void pack_pairs(const BFloat16* x, int64_t pitch, int64_t rows, int64_t columns,
                       uint32_t* pairs) {
  for (int64_t k = 0; k < 16; ++k) {
    const BFloat16 *even = x + 2 * k * pitch, *odd = even + pitch;
    if (columns >= kTileRows && 2 * k + 1 < rows) {
      for (int64_t i = 0; i < kTileRows; ++i)
        pairs[k * 16 + i] = uint32_t(even[i].bits) | uint32_t(odd[i].bits) << 16;
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
// the columns.
inline void multiply_tiles(const BFloat16* first, const BFloat16* second, int64_t row_pitch,
                           int64_t row_step, const BFloat16* left, const BFloat16* right,
                           int64_t steps, float (&part)[4][kTileWords]) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t step = 0; step < steps; ++step) {
    tile_load<4>(first + step * row_step, row_pitch * sizeof(BFloat16));
    tile_load<5>(second + step * row_step, row_pitch * sizeof(BFloat16));
    tile_load<6>(left + step * 2 * kTileWords);
    tile_load<7>(right + step * 2 * kTileWords);
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    tile_multiply<2, 5, 6>();
    tile_multiply<3, 5, 7>();
  }
  tile_store<0>(part[0]), tile_store<1>(part[1]);
  tile_store<2>(part[2]), tile_store<3>(part[3]);
}

// The sums of one slice of image n, down to the diagonal, into rows of `width`, C rounded up to
// kTilePanel.
inline void sum_slice_in_tiles(const GramMatrix& args, int64_t n, int64_t slice, int64_t width,
                               float* sums, float* panels) {
  const int64_t blocks = width / kTileRows;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t channel_stride = contiguous ? args.pixels : 1;
  const int64_t pixel_stride = contiguous ? 1 : args.c;
  const int64_t begin = slice * args.slice_pixels;
  const int64_t end =
      begin + args.slice_pixels < args.pixels ? begin + args.slice_pixels : args.pixels;
  BFloat16* rows = reinterpret_cast<BFloat16*>(panels);
  BFloat16* pairs = rows + width * kTileDepth;
  const auto tile = [&](BFloat16* form, int64_t block, int64_t step) {
    return form + (block * (kTileDepth / kTilePixels) + step) * 2 * kTileWords;
  };
  const BFloat16* x = static_cast<const BFloat16*>(args.x) + n * args.c * args.pixels;
  [[maybe_unused]] const TileScope scope;
  for (int64_t first = begin; first < end; first += kTileDepth) {
    const int64_t depth = kTileDepth < end - first ? kTileDepth : end - first;
    const int64_t steps = (depth + kTilePixels - 1) / kTilePixels;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t channel = block * kTileRows, pixel = step * kTilePixels;
        const BFloat16* corner = x + channel * channel_stride + (first + pixel) * pixel_stride;
        BFloat16 *row_tile = tile(rows, block, step), *pair_tile = tile(pairs, block, step);
        uint32_t* words = reinterpret_cast<uint32_t*>(pair_tile);
        if (contiguous) {
          pack_rows(corner, channel_stride, args.c - channel, depth - pixel, row_tile, kTilePixels);
          transpose_words(reinterpret_cast<const uint32_t*>(row_tile), words);
        } else {
          pack_pairs(corner, pixel_stride, depth - pixel, args.c - channel, words);
          transpose_words(words, reinterpret_cast<uint32_t*>(row_tile));
        }
      }
    }
    for (int64_t column = 0; column < blocks; column += 2) {
      for (int64_t row = 0; row <= column; row += 2) {
        alignas(64) float part[4][kTileWords];
        multiply_tiles(tile(rows, row, 0), tile(rows, row + 1, 0), kTilePixels, 2 * kTileWords,
                       tile(pairs, column, 0), tile(pairs, column + 1, 0), steps, part);
        for (int64_t p = 0; p < 4; ++p) {
          for (int64_t i = 0; i < kTileRows; ++i) {
            float* sum = sums + ((row + p / 2) * 16 + i) * width + (column + p % 2) * 16;
            for (int64_t j = 0; j < 16; ++j)
              sum[j] = (first == begin ? 0 : sum[j]) + float(args.scale) * part[p][i * 16 + j];
          }
        }
      }
    }
  }
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
                       tile(block, p), tile(block, p + 16), steps, part);
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
                     tile(product, column), tile(product, column + 16), steps, part);
      store_tiles(part, count - p, c - column, c, grad_x + p * c + column);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
