// The Gram matrix of bfloat16 features on AMX tiles: see gram_matrix.cpp for the division of work.
//
// A tile product takes 16 channels x 32 pixels and 16 pixel pairs x 16 channels. With two pixels of
// a channel as one 32-bit word, the second is the transpose of the first: so each 16 x 32 block of
// x is packed as it lies and transposed (contiguous), or interleaved and transposed
// (channels_last). Four sums of 16 x 16 stay in tiles while kTileDepth pixels pass.
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

inline int64_t tile_padded(int64_t c) { return (c + kTilePanel - 1) / kTilePanel * kTilePanel; }

// Scratch of one worker, in floats: both forms of every block.
inline int64_t tile_panel_elements(int64_t c) { return 2 * tile_padded(c) * kTileDepth / 2; }

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

// Packs up to 16 channels x 32 pixels, zeros beyond: `rows` with a row per channel, `pairs` with
// a row per two pixels.
inline void pack_tile(const BFloat16* x, Layout layout, int64_t channel_stride,
                      int64_t pixel_stride, int64_t channels, int64_t pixels, uint32_t* rows,
                      uint32_t* pairs) {
  const auto bits = [&](int64_t channel, int64_t pixel) -> uint32_t {
    if (channel >= channels || pixel >= pixels) return 0;
    return x[channel * channel_stride + pixel * pixel_stride].bits;
  };
  if (layout == Layout::contiguous) {
    if (channels == kTileRows && pixels == kTilePixels) {
      for (int64_t i = 0; i < kTileRows; ++i)
        std::memcpy(rows + i * 16, x + i * channel_stride, kTileBytes);
    } else {
      for (int64_t i = 0; i < kTileRows; ++i)
        for (int64_t k = 0; k < 16; ++k)
          rows[i * 16 + k] = bits(i, 2 * k) | bits(i, 2 * k + 1) << 16;
    }
    transpose_words(rows, pairs);
    return;
  }
  for (int64_t k = 0; k < 16; ++k) {
    if (channels == kTileRows && 2 * k + 1 < pixels) {
      const BFloat16 *even = x + 2 * k * pixel_stride, *odd = even + pixel_stride;
      for (int64_t i = 0; i < kTileRows; ++i)
        pairs[k * 16 + i] = uint32_t(even[i].bits) | uint32_t(odd[i].bits) << 16;
    } else {
      for (int64_t i = 0; i < kTileRows; ++i)
        pairs[k * 16 + i] = bits(i, 2 * k) | bits(i, 2 * k + 1) << 16;
    }
  }
  transpose_words(pairs, rows);
}

// The sums of one slice of image n, down to the diagonal, into rows of tile_padded(C).
inline void sum_slice_in_tiles(const GramMatrix& args, int64_t n, int64_t slice, float* sums,
                               float* panels) {
  const int64_t width = tile_padded(args.c), blocks = width / kTileRows;
  const bool contiguous = args.layout == Layout::contiguous;
  const int64_t channel_stride = contiguous ? args.pixels : 1;
  const int64_t pixel_stride = contiguous ? 1 : args.c;
  const int64_t begin = slice * args.slice_pixels;
  const int64_t end =
      begin + args.slice_pixels < args.pixels ? begin + args.slice_pixels : args.pixels;
  uint32_t* rows = reinterpret_cast<uint32_t*>(panels);
  uint32_t* pairs = rows + width * kTileDepth / 2;
  const auto tile = [&](uint32_t* form, int64_t block, int64_t step) {
    return form + (block * (kTileDepth / kTilePixels) + step) * kTileWords;
  };
  for (int64_t i = 0; i < width * width; ++i) sums[i] = 0;
  [[maybe_unused]] const TileScope scope;
  for (int64_t first = begin; first < end; first += kTileDepth) {
    const int64_t depth = kTileDepth < end - first ? kTileDepth : end - first;
    const int64_t steps = (depth + kTilePixels - 1) / kTilePixels;
    const BFloat16* x = static_cast<const BFloat16*>(args.x) + n * args.c * args.pixels;
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t step = 0; step < steps; ++step)
        pack_tile(
            x + block * kTileRows * channel_stride + (first + step * kTilePixels) * pixel_stride,
            args.layout, channel_stride, pixel_stride,
            args.c - block * kTileRows < kTileRows ? args.c - block * kTileRows : kTileRows,
            depth - step * kTilePixels < kTilePixels ? depth - step * kTilePixels : kTilePixels,
            tile(rows, block, step), tile(pairs, block, step));
    for (int64_t column = 0; column < blocks; column += 2) {
      for (int64_t row = 0; row <= column; row += 2) {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
        for (int64_t step = 0; step < steps; ++step) {
          tile_load<4>(tile(rows, row, step));
          tile_load<5>(tile(rows, row + 1, step));
          tile_load<6>(tile(pairs, column, step));
          tile_load<7>(tile(pairs, column + 1, step));
          tile_multiply<0, 4, 6>();
          tile_multiply<1, 4, 7>();
          tile_multiply<2, 5, 6>();
          tile_multiply<3, 5, 7>();
        }
        alignas(64) float part[4][kTileWords];
        tile_store<0>(part[0]), tile_store<1>(part[1]);
        tile_store<2>(part[2]), tile_store<3>(part[3]);
        for (int64_t p = 0; p < 4; ++p)
          for (int64_t i = 0; i < kTileRows; ++i) {
            float* sum = sums + ((row + p / 2) * 16 + i) * width + (column + p % 2) * 16;
            for (int64_t j = 0; j < 16; ++j) sum[j] += float(args.scale) * part[p][i * 16 + j];
          }
      }
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
