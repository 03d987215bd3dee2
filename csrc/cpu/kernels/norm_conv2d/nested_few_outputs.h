// Nested Winograd transforms for few output channels: see nested_winograd.h.
//
// Lanes of vectors are tiles, so that nothing is multiplied for channels that don't exist. A row of
// tiles is transformed a batch at a time, [point][channel][tile], so that its points stay in the L2
// cache. Their products are added at once to the rows of output tiles that read them: those are
// small. With 32 inputs and 3 outputs 4 in 5 operations are these products.
#pragma once

#include "nested_winograd.h"

namespace stylekernels::CPU_CAPABILITY {

// Transforms a vector of tiles of a vector of channels to their points, [channel][tile], `pitch`
// from one channel to the next.
template <class V>
[[gnu::noinline]] void transform_tiles(const ElementOf<V>* const (&rows)[kNestedSide], int64_t cin,
                                       ElementOf<V>* points, int64_t pitch, int64_t point_pitch) {
  constexpr int kColumns = kNestedOutputs * kLanes<V> + kNestedSide - kNestedOutputs;
  V half[kNestedSide][kColumns];
  for (int column = 0; column < kColumns; ++column) {
    V d[kNestedSide], t[kNestedSide];
    for (int i = 0; i < kNestedSide; ++i) d[i] = load<V>(rows[i] + column * cin);
    to_points(d, t);
    for (int i = 0; i < kNestedSide; ++i) half[i][column] = t[i];
  }
  for (int i = 0; i < kNestedSide; ++i) {
    V square[kNestedSide][kLanes<V>];
    for (int tile = 0; tile < kLanes<V>; ++tile) {
      V d[kNestedSide], t[kNestedSide];
      for (int j = 0; j < kNestedSide; ++j) d[j] = half[i][tile * kNestedOutputs + j];
      to_points(d, t);
      for (int j = 0; j < kNestedSide; ++j) square[j][tile] = t[j];
    }
    for (int j = 0; j < kNestedSide; ++j, points += point_pitch) {
      transpose(square[j]);
      for (int c = 0; c < kLanes<V>; ++c) store(points + c * pitch, square[j][c]);
    }
  }
}

// Adds to the sums of kVectors vectors of tiles, of every output channel, the products with one row
// of kernel blocks at one point. `adds` is false for the first row: it begins the sums.
template <int kOutputs, int kVectors, class V>
[[gnu::noinline]] void multiply_few_outputs(const ElementOf<V>* points, int64_t pitch,
                                            const ElementOf<V>* weights, int64_t cin,
                                            int64_t kernel_blocks, bool adds, ElementOf<V>* sums,
                                            int64_t sum_pitch) {
  V total[kOutputs][kVectors];
  for (int c = 0; c < kOutputs; ++c)
    for (int v = 0; v < kVectors; ++v)
      total[c][v] = adds ? load<V>(sums + c * sum_pitch + v * kLanes<V>) : V{};
  for (int64_t i = 0; i < cin; ++i, points += pitch) {
    for (int64_t block = 0; block < kernel_blocks; ++block, weights += kOutputs) {
      for (int v = 0; v < kVectors; ++v) {
        const V tiles = load<V>(points + block + v * kLanes<V>);
        for (int c = 0; c < kOutputs; ++c)
          total[c][v] = multiply_add(splat<V>(weights[c]), tiles, total[c][v]);
      }
    }
  }
  for (int c = 0; c < kOutputs; ++c)
    for (int v = 0; v < kVectors; ++v) store(sums + c * sum_pitch + v * kLanes<V>, total[c][v]);
}

// Transforms the sums of a vector of tiles back to three rows of pixels, and rounds them as they
// will be stored.
template <class T, class V>
[[gnu::always_inline]] inline void finish_tiles(const ElementOf<V>* sums, int64_t point_pitch,
                                                V bias, ElementOf<V>* values, int64_t row_pitch) {
  V half[kNestedSide][kNestedOutputs], y[kNestedOutputs][kNestedOutputs];
  for (int i = 0; i < kNestedSide; ++i) {
    V m[kNestedSide];
    for (int j = 0; j < kNestedSide; ++j)
      m[j] = load<V>(sums + (i * kNestedSide + j) * point_pitch);
    from_points(m, half[i]);
  }
  for (int j = 0; j < kNestedOutputs; ++j) {
    V column[kNestedSide], t[kNestedOutputs];
    for (int i = 0; i < kNestedSide; ++i) column[i] = half[i][j];
    from_points(column, t);
    for (int i = 0; i < kNestedOutputs; ++i) y[i][j] = rounded_to<T>(t[i] + bias);
  }
  for (int i = 0; i < kNestedOutputs; ++i) {
    interleave_three(y[i]);
    for (int k = 0; k < kNestedOutputs; ++k) store(values + i * row_pitch + k * kLanes<V>, y[i][k]);
  }
}

// Transforms the inputs of a batch, the tiles from `tile` on: `vectors` vectors of tiles, of which
// `done` are there.
template <class T>
void transform_batch(const NormConv2d& a, const Ring<T>& ring, int64_t row, int64_t tile,
                     int64_t done, int64_t vectors, Wide<T>* points) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kPitch = (kNestedVectors + 1) * kLanes<V>, kPair = 2 * kLanes<V>;
  const int64_t point_pitch = ring.g.nested_point_pitch(a);
  // Takes two vectors of channels at a time, which share cache lines of the ring. Two vectors of
  // tiles share those of the points.
  for (int64_t pair = 0; pair < a.cin; pair += kPair) {
    for (int64_t v = done; v < vectors; ++v) {
      for (int64_t c = pair; c < smaller(a.cin, pair + kPair); c += kLanes<V>) {
        const int64_t column = (tile + v * kLanes<V>)*kNestedOutputs;
        const W* rows[kNestedSide];
        for (int64_t i = 0; i < kNestedSide; ++i) rows[i] = ring.row(row + i) + column * a.cin + c;
        transform_tiles<V>(rows, a.cin, points + c * kPitch + v * kLanes<V>, kPitch, point_pitch);
      }
    }
  }
}

template <int kOutputs, class T>
void run_band_of_few_outputs(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                             int64_t n, int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kBatch = kNestedVectors * kLanes<V>, kPitch = kBatch + kLanes<V>;
  const int64_t tiles = g.tiles(a), sum_pitch = g.nested_pitch(a);
  const int64_t row_sums = kNestedPoints * kOutputs * sum_pitch;
  const int64_t plane_pitch = kNestedOutputs * sum_pitch;  // pitch of a channel in values
  const int64_t point_pitch = g.nested_point_pitch(a);
  const int64_t weights_per_row = a.cin * g.kernel_blocks * kOutputs;
  W* points = memory + (g.span + 1) * g.row_elements;
  W* sums = points + kNestedPoints * point_pitch;
  W* values = sums + g.kernel_blocks * row_sums;
  W* joined = values + kNestedOutputs * kOutputs * plane_pitch;
  Ring<T> ring{a, input, g, n, memory};
  BandStatistics statistics(a, n, band);
  W bias[kPanel<V>];
  read_bias(a, 0, bias);
  const int64_t begin = band * a.band, height = smaller(a.band, a.rows - begin);
  const int64_t tile_rows = ceil_divide(height, kNestedOutputs);
  for (int64_t r = 0; r < tile_rows + g.kernel_blocks - 1; ++r) {
    const int64_t input_row = begin + r * kNestedOutputs + g.low;
    ring.read(input_row);
    for (int64_t tile = 0; tile < tiles; tile += kBatch) {
      const auto vectors_of = [](int64_t count) { return ceil_divide(count, kLanes<V>); };
      const int64_t vectors = smaller<int64_t>(kNestedVectors, vectors_of(tiles - tile));
      const int64_t inputs = smaller(vectors + 1, vectors_of(tiles - tile + g.kernel_blocks - 1));
      if (tile > 0)  // the last vector of the batch before is the first of this one
        for (int64_t point = 0; point < kNestedPoints; ++point)
          for (int64_t c = 0; c < a.cin; ++c) {
            W* first = points + point * point_pitch + c * kPitch;
            store(first, load<V>(first + kBatch));
          }
      transform_batch(a, ring, input_row, tile, tile > 0 ? 1 : 0, inputs, points);
      for (int64_t point = 0; point < kNestedPoints; ++point) {
        const W* from = points + point * point_pitch;
        for (int64_t block = 0; block < g.kernel_blocks; ++block) {
          const int64_t o = r - block;  // row of output tiles that reads r with this row of blocks
          if (o < 0 || o >= tile_rows) continue;
          const W* weights =
              static_cast<const W*>(a.packed) + (point * g.kernel_blocks + block) * weights_per_row;
          W* to = sums + o % g.kernel_blocks * row_sums + point * kOutputs * sum_pitch + tile;
          int64_t v = 0;
          const auto multiply = [&](auto count) {
            for (; v + count.value <= vectors; v += count.value)
              multiply_few_outputs<kOutputs, count.value, V>(from + v * kLanes<V>, kPitch, weights,
                                                             a.cin, g.kernel_blocks, block > 0,
                                                             to + v * kLanes<V>, sum_pitch);
          };
          multiply(Count<4>{}), multiply(Count<2>{}), multiply(Count<1>{});
        }
      }
    }
    const int64_t o = r - g.kernel_blocks + 1;
    if (o < 0) continue;
    const W* row_of_sums = sums + o % g.kernel_blocks * row_sums;
    for (int64_t c = 0; c < kOutputs; ++c)
      for (int64_t tile = 0; tile < tiles; tile += kLanes<V>)
        finish_tiles<T>(row_of_sums + c * sum_pitch + tile, kOutputs * sum_pitch, splat<V>(bias[c]),
                        values + c * plane_pitch + kNestedOutputs * tile, kOutputs * plane_pitch);
    for (int64_t i = o * kNestedOutputs; i < smaller((o + 1) * kNestedOutputs, height); ++i) {
      const W* row = values + i % kNestedOutputs * kOutputs * plane_pitch;
      write_planes<kOutputs, T>(a, n, begin + i, row, plane_pitch, joined);
      if (a.wants_statistics())
        for (int64_t c = 0; c < kOutputs; ++c)
          statistics.add_plane(row + c * plane_pitch, a.columns, c);
      statistics.counted += double(a.columns);
    }
  }
}

template <class T>
void run_band_of_few_outputs(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                             int64_t n, int64_t band, Wide<T>* memory) {
  if (a.cout == 1)
    run_band_of_few_outputs<1>(a, g, input, n, band, memory);
  else if (a.cout == 2)
    run_band_of_few_outputs<2>(a, g, input, n, band, memory);
  else
    run_band_of_few_outputs<3>(a, g, input, n, band, memory);
}

}  // namespace stylekernels::CPU_CAPABILITY
