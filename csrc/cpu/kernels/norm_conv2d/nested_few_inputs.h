// Nested Winograd transforms for few input channels: see nested_winograd.h.
//
// A task keeps the transformed rows of tiles that a row of output tiles reads in a ring buffer,
// [point][tile][channel]: the values of neighbouring tiles are consecutive. They are multiplied
// with panels of the weights; the register block is kBlockRows tiles x kPanel output channels,
// summed over all kernel blocks. With 3 inputs and 32 outputs 7 in 8 operations are these products,
// at nine tenths of the machine's arithmetic; a sixth of the time goes into writing y, which is ten
// times as large as x.
#pragma once

#include "nested_winograd.h"

namespace stylekernels::CPU_CAPABILITY {

// Transforms a row of tiles to its points, from kNestedSide rows of pixels: down the columns as far
// as `elements`, to `half`, then along the rows. A vector that holds more than the channels of a
// tile writes into the next tile, which overwrites that.
template <class V>
[[gnu::noinline]] void transform_row_of_few(const ElementOf<V>* const (&rows)[kNestedSide],
                                            int64_t elements, int64_t cin, int64_t tiles,
                                            ElementOf<V>* half, int64_t half_pitch,
                                            ElementOf<V>* points, int64_t point_pitch) {
  V d[kNestedSide], t[kNestedSide];
  for (int64_t e = 0; e < elements; e += kLanes<V>) {
    for (int i = 0; i < kNestedSide; ++i) d[i] = load<V>(rows[i] + e);
    to_points(d, t);
    for (int i = 0; i < kNestedSide; ++i) store(half + i * half_pitch + e, t[i]);
  }
  for (int64_t i = 0; i < kNestedSide; ++i, half += half_pitch) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t c = 0; c < cin; c += kLanes<V>) {
        const ElementOf<V>* from = half + tile * kNestedOutputs * cin + c;
        for (int j = 0; j < kNestedSide; ++j) d[j] = load<V>(from + j * cin);
        to_points(d, t);
        ElementOf<V>* to = points + tile * cin + c;
        for (int j = 0; j < kNestedSide; ++j) store(to + (i * kNestedSide + j) * point_pitch, t[j]);
      }
    }
  }
}

// Multiplies `count` tiles, rounded up to kBlockRows, with a panel of the weights at one point.
// `rows`: the rows of tiles by row of kernel blocks.
template <class V>
[[gnu::noinline]] void multiply_few_inputs(const ElementOf<V>* const* rows, int64_t kernel_blocks,
                                           int64_t cin, int64_t count, const ElementOf<V>* panel,
                                           ElementOf<V>* products) {
  const int64_t depth = kernel_blocks * cin;
  for (int64_t t = 0; t < count; t += kBlockRows) {
    V sums[kBlockRows][2];
    clear(sums);
    for (int64_t block = 0; block < kernel_blocks; ++block) {
      const ElementOf<V>* tiles[kBlockRows];
      for (int r = 0; r < kBlockRows; ++r) tiles[r] = rows[block] + (t + r) * cin;
      multiply_panel(tiles, 1, panel + block * depth * kPanel<V>, depth, sums);
    }
    for (int r = 0; r < kBlockRows; ++r)
      for (int v = 0; v < 2; ++v) store(products + (t + r) * kPanel<V> + v * kLanes<V>, sums[r][v]);
  }
}

// Transforms the products of a tile back to `height` rows of `width` outputs, and rounds them as
// they will be stored.
template <class T, class V>
inline void finish_nested_tile(const ElementOf<V>* products, V bias, int64_t height, int64_t width,
                               ElementOf<V>* values, int64_t row_pitch) {
  V half[kNestedSide][kNestedOutputs];
  for (int i = 0; i < kNestedSide; ++i) {
    V sums[kNestedSide];
    for (int j = 0; j < kNestedSide; ++j)
      sums[j] = load<V>(products + (i * kNestedSide + j) * kNestedBatch * kPanel<V>);
    from_points(sums, half[i]);
  }
  for (int j = 0; j < width; ++j) {
    V column[kNestedSide], y[kNestedOutputs];
    for (int i = 0; i < kNestedSide; ++i) column[i] = half[i][j];
    from_points(column, y);
    for (int i = 0; i < height; ++i)
      store(values + i * row_pitch + j * kPanel<V>, rounded_to<T>(y[i] + bias));
  }
}

template <class T>
void run_band_of_few_inputs(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                            int64_t n, int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kPanelChannels = kPanel<V>;
  const int64_t pitch = g.nested_pitch(a), depth = g.kernel_blocks * g.kernel_blocks * a.cin;
  W* half = memory + (g.span + 1) * g.row_elements;
  W* points = half + kNestedSide * g.row_elements;
  W* products = points + g.kernel_blocks * kNestedPoints * pitch;
  W* values = products + kNestedPoints * kNestedBatch * kPanelChannels;
  Ring<T> ring{a, input, g, n, memory};
  BandStatistics statistics(a, n, band);
  const int64_t tiles = g.tiles(a);
  const int64_t begin = band * a.band, end = smaller(begin + a.band, a.rows);
  int64_t next = 0;  // row of tiles that is transformed next, counted from the band's first
  for (int64_t o = 0; begin + o * kNestedOutputs < end; ++o) {
    for (; next < o + g.kernel_blocks; ++next) {
      const int64_t row = begin + next * kNestedOutputs;
      ring.read(row + g.low);
      const W* rows[kNestedSide];
      for (int64_t i = 0; i < kNestedSide; ++i) rows[i] = ring.row(row + g.low + i);
      transform_row_of_few<V>(rows, g.width * a.cin, a.cin, tiles + g.kernel_blocks - 1, half,
                              g.row_elements,
                              points + next % g.kernel_blocks * kNestedPoints * pitch, pitch);
    }
    const int64_t row = begin + o * kNestedOutputs, height = smaller(kNestedOutputs, end - row);
    for (int64_t tile = 0; tile < tiles; tile += kNestedBatch) {
      const int64_t count = smaller(kNestedBatch, tiles - tile), column = tile * kNestedOutputs;
      const int64_t width = smaller(count * kNestedOutputs, a.columns - column);
      for (int64_t first = 0; first < a.cout; first += kPanelChannels) {
        const W* panel =
            static_cast<const W*>(a.packed) + g.panel_begin(a, 0, 0, first / kPanelChannels);
        for (int64_t point = 0; point < kNestedPoints; ++point) {
          const W* rows[kMostKernelBlocks];
          for (int64_t block = 0; block < g.kernel_blocks; ++block)
            rows[block] = points + ((o + block) % g.kernel_blocks * kNestedPoints + point) * pitch +
                          tile * a.cin;
          multiply_few_inputs<V>(rows, g.kernel_blocks, a.cin, count,
                                 panel + point * depth * kPanelChannels,
                                 products + point * kNestedBatch * kPanelChannels);
        }
        W bias[kPanelChannels];
        read_bias(a, first, bias);
        for (int64_t t = 0; t < count; ++t)
          for (int64_t lane = 0; lane < kPanelChannels; lane += kLanes<V>)
            finish_nested_tile<T>(products + t * kPanelChannels + lane, load<V>(bias + lane),
                                  height, smaller(kNestedOutputs, width - t * kNestedOutputs),
                                  values + t * kNestedOutputs * kPanelChannels + lane,
                                  width * kPanelChannels);
        for (int64_t i = 0; i < height; ++i)
          write_row<T>(a, n, row + i, column, width, first, values + i * width * kPanelChannels);
        if (a.wants_statistics()) statistics.add(values, height * width, first);
      }
      statistics.counted += double(height * width);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
