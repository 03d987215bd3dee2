// Deferred-norm convolution of bfloat16 on AMX tiles: see norm_conv2d.cpp for the division of work.
//
// Reads rows of x into a ring in the L2 cache (conv_tile_rows.h) and multiplies blocks of two
// output rows x 16 pixels by 32 outputs: four sums stay in tiles over kernel rows, blocks of 32
// channels and kernel columns, in this order, so that the pixels of neighbouring columns come from
// the L1 cache. Four products take 64 cycles and 4 KiB of tiles; the weights' half of that comes
// from L2 where they exceed L1. Between kernel rows and blocks of channels comes a piece of what is
// left for vectors: to round, sum up and write the block before, and to read the next rows.
#pragma once

#include "conv_output.h"
#include "conv_tile_rows.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

// -- the weights -----------------------------------------------------------------------------

// In the order of the products: a tile holds 16 pairs of values for each of 16 outputs.
inline void pack_weights_in_tiles(const NormConv2d& a, const TileGeometry& g, int64_t row_parity,
                                  int64_t column_parity) {
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  const int64_t steps = g.steps(a, row_parity, column_parity);
  BFloat16* packed =
      static_cast<BFloat16*>(a.packed) + g.weights_begin(a, row_parity, column_parity, 0);
  const int64_t elements = steps * ceil_divide(g.outputs, kTileRows) * kTileElements;
  std::memset(packed, 0, elements * sizeof(BFloat16));
  const auto place = [&](int64_t row, int64_t column, int64_t channel, int64_t output) {
    int64_t value = channel, step = row * g.depth_blocks;
    if (g.form == KernelColumns::in_values) value += column * a.cin;
    if (g.form == KernelColumns::in_outputs) output += column * a.cout;
    step += value / kTileDepth;
    if (g.form == KernelColumns::apart) step = step * columns.taps + column;
    const int64_t block = output / kTileColumns;
    const int64_t tiles = g.outputs - block * kTileColumns > kTileRows ? 2 : 1;
    const int64_t tile = block * 2 * steps + step * tiles + output % kTileColumns / kTileRows;
    return tile * kTileElements + value % kTileDepth / 2 * kTileDepth + output % kTileRows * 2 +
           value % 2;
  };
  for (int64_t c = 0; c < a.cout; ++c) {
    for (int64_t i = 0; i < a.cin; ++i) {
      const BFloat16* kernel =
          static_cast<const BFloat16*>(a.weight) + c * a.weight_cout + i * a.weight_cin;
      float sums[ConvAxis::kMaxKernel][ConvAxis::kMaxKernel] = {};
      for (int64_t ky = 0; ky < a.kernel; ++ky)
        for (int64_t kx = 0; kx < a.kernel; ++kx)
          if (rows.tap_of[ky] >= 0 && columns.tap_of[kx] >= 0)
            sums[rows.tap_of[ky]][columns.tap_of[kx]] +=
                widen(kernel[ky * a.weight_row + kx * a.weight_column]);
      for (int64_t row = 0; row < rows.taps; ++row)
        for (int64_t column = 0; column < columns.taps; ++column)
          store(packed + place(row, column, i, c), sums[row][column]);
    }
  }
}

// -- the product -----------------------------------------------------------------------------

// Where a block's values are: those of its first pixel, by output row and kernel row.
struct TilePixels {
  const BFloat16* rows[2][ConvAxis::kMaxKernel];
  int64_t kernel_rows, kernel_columns, depth_blocks, plane;
  int64_t pitch;  // bytes from one output pixel to the next
};

// A tile's store takes a quarter of a microsecond if there was none in the last 0.55 (Sapphire
// Rapids): with more steps than these a tile is stored on the way, for nothing.
constexpr int64_t kStepsWithoutStore = 16;

// Leaves the sums of kRows output rows and kTiles times 16 outputs in tiles 0 and 1, and 2 and 3,
// and calls between() now and then.
template <int kRows, int kTiles, class Between>
inline void multiply_tiles(const TilePixels& pixels, int64_t offset, const BFloat16* weights,
                           const Between& between) {
  const int64_t pitch = pixels.pitch, width = pixels.kernel_columns * kTileDepth;
  alignas(64) float unused[kTileRows * kTileBytes / 4];
  int64_t steps = 0;
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t t = 0; t < pixels.kernel_rows; ++t) {
    const BFloat16* first = pixels.rows[0][t] + offset;
    const BFloat16* second = pixels.rows[kRows - 1][t] + offset;
    for (int64_t block = 0; block < pixels.depth_blocks; ++block) {
      for (int64_t k = 0; k < width; k += kTileDepth) {
        tile_load<4>(first + k, pitch);
        tile_load<6>(weights);
        tile_multiply<0, 4, 6>();
        if constexpr (kTiles == 2) {
          tile_load<7>(weights + kTileElements);
          tile_multiply<1, 4, 7>();
        }
        if constexpr (kRows == 2) {
          tile_load<5>(second + k, pitch);
          tile_multiply<2, 5, 6>();
          if constexpr (kTiles == 2) tile_multiply<3, 5, 7>();
        }
        weights += kTiles * kTileElements;
      }
      first += pixels.plane, second += pixels.plane;
      between();
      steps += pixels.kernel_columns;
      if (steps >= kStepsWithoutStore) tile_store<4>(unused), steps = 0;
    }
  }
}

// -- the output ------------------------------------------------------------------------------

// Statistics of 32 channels of a band: of at most kTileSummed pixels in float32 about a shift taken
// from the first of them, then in double.
constexpr int64_t kTileSummed = 1024;

struct TileChannels {
  float bias[kTileColumns], shift[kTileColumns], sum[kTileColumns], square[kTileColumns];
  int64_t count, merged;

  // With `in_pairs` the lanes are those of a pair of vectors.
  void merge_into(BandStatistics& statistics, int64_t first, int64_t channels, bool in_pairs) {
    for (int64_t lane = 0; lane < kTileColumns && count > 0; ++lane) {
      const int64_t c = in_pairs ? element_of_lane<BFloat16>(int(lane)) : lane;
      if (c >= channels) continue;
      const double mean = double(sum[lane]) / double(count);
      statistics.merge(double(merged), first + c, double(count), double(shift[lane]) + mean,
                       double(square[lane]) - mean * double(sum[lane]));
    }
    merged += count, count = 0;
  }
};

// Scratch of a block's sums. With the kernel's columns among the outputs, products of the pixels
// before the block are kept in front of it, or sums of them in `begun`: its first outputs need them
// too.
struct TileSums {
  static constexpr int64_t kKept = ConvAxis::kMaxKernel - 1;
  float products[2][kKept + kTileRows + 1][kTileColumns];  // the last is read, and not used
  float values[2][kTileColumns * kTileRows];               // panels of kPanel channels x 16 pixels
  float begun[2][kTileColumns];
  float bias[kTileRows * kTileRows];  // of 16 pixels with few channels, which follow each other
};

// A block on its way from tiles to y, piece by piece.
struct TileOutput {
  static constexpr int64_t kStep = kPanel<VecF>;
  const NormConv2d& a;
  const TileGeometry& g;
  int64_t n;
  BandStatistics& statistics;
  TileChannels* blocks;  // by kTileColumns channels
  TileSums& sums;
  // The block: rows from `row` on of a parity's output, pixels from `begin` on.
  int64_t rows = 0, row = 0, row_parity = 0, column_parity = 0, begin = 0, pixels = 0;
  int64_t first = 0, channels = 0;
  int64_t at_row = 0, at_lane = 0;

  bool shifted() const { return g.form == KernelColumns::in_outputs; }
  // Whether sums go from the tiles' scratch to y in one pass, all channels of a pixel at a time.
  bool direct() const {
    return VECTOR_BYTES == 64 && ROUNDS_BFLOAT16 && a.layout == Layout::channels_last &&
           !a.bytes_out && !shifted();
  }
  int64_t kept() const { return a.axes[0].taps - 1; }
  float* value(int64_t r, int64_t channel) const {
    return sums.values[r] + channel / kStep * kStep * kTileRows + channel % kStep;
  }

  // Takes the sums of the products of pixels from `column` on out of the tiles.
  template <int kRows, int kTiles>
  void take(int64_t o, int64_t row_of_parity, int64_t column_of_parity, int64_t column,
            int64_t channel) {
    const int64_t pitch = (shifted() ? kTileColumns : kStep) * sizeof(float);
    const auto target = [&](int64_t r, int64_t tile) {
      return shifted() ? sums.products[r][kept()] + tile * kTileRows : value(r, tile * kTileRows);
    };
    tile_store<0>(target(0, 0), pitch);
    if constexpr (kTiles == 2) tile_store<1>(target(0, 1), pitch);
    if constexpr (kRows == 2) tile_store<2>(target(1, 0), pitch);
    if constexpr (kRows == 2 && kTiles == 2) tile_store<3>(target(1, 1), pitch);
    rows = kRows, row = o, row_parity = row_of_parity, column_parity = column_of_parity;
    begin = shifted() ? column - kept() : column;
    pixels = smaller<int64_t>(kTileRows, a.columns - begin);
    if (begin < 0) pixels += begin, begin = 0;
    first = channel, channels = smaller(kTileColumns, a.cout - channel);
    at_row = at_lane = 0;
    TileChannels& block = blocks[first / kTileColumns];
    if (block.count + kRows * kTileRows > kTileSummed)
      block.merge_into(statistics, first, channels, direct());
  }

  // Whether the few channels of pixels follow each other in `values` as they do in y.
  bool joined() const {
    return VECTOR_BYTES == 64 && shifted() && a.layout == Layout::channels_last &&
           !a.wants_statistics();
  }

  int64_t pieces() const {
    if (joined()) return rows;
    return rows * (direct() ? kTileRows / kPixels : ceil_divide(channels, kLanes<VecF>) + 1);
  }

  // The next piece, if there is one. Not inlined: the loop over tiles is short without it.
  [[gnu::noinline]] void advance() {
    if (at_row == rows) return;
    if (direct()) return advance_directly();
    if (shifted() && at_lane == 0) add_shifted(at_row);
    if (joined()) return write_joined(at_row++);
    if (at_lane < channels) {
      finish_vector(at_row, at_lane);
      at_lane += kLanes<VecF>;
      return;
    }
    write(at_row);
    if (a.wants_statistics()) blocks[first / kTileColumns].count += pixels;
    ++at_row, at_lane = 0;
  }

  void finish() {
    while (at_row < rows) advance();
  }

  // A few pixels, at_lane of a row being the first of them: adds the bias, rounds, writes and sums
  // up. Of rounded pairs the even elements and the odd ones are apart without a shuffle.
  static constexpr int64_t kPixels = 8;
  void advance_directly() {
#if VECTOR_BYTES == 64 && ROUNDS_BFLOAT16
    TileChannels& block = blocks[first / kTileColumns];
    const Pair<VecF> bias = load_lanes<VecF>(block.bias);
    const int64_t end = smaller(at_lane + kPixels, pixels);
    const int64_t height = a.step * a.rows, width = a.step * a.columns;
    const int64_t y_row = n * height + a.step * (row + at_row) + row_parity;
    const int64_t y_pixel = y_row * width + a.step * (begin + at_lane) + column_parity;
    BFloat16* y = static_cast<BFloat16*>(a.y) + y_pixel * a.cout + first;
    const int64_t y_pitch = a.step * a.cout;
    const float* from = value(at_row, 0) + at_lane * kStep;
    const __mmask32 written = channels == kTileColumns ? ~0u : (1u << channels) - 1;
    const auto rounded = [&](const float* sums) {
      const Pair<VecF> pair = load_lanes<VecF>(sums);
      return (VecU)_mm512_cvtne2ps_pbh(pair.b + bias.b, pair.a + bias.a);
    };
    const auto even = [](VecU bits) { return (VecF)(bits << 16); };
    const auto odd = [](VecU bits) { return (VecF)(bits & 0xffff0000u); };
    if (!a.wants_statistics()) {
      for (int64_t i = at_lane; i < end; ++i, from += kStep, y += y_pitch)
        _mm512_mask_storeu_epi16(y, written, (__m512i)rounded(from));
    } else {
      if (block.count == 0 && at_lane == 0) {
        const int64_t count = smaller<int64_t>(kShift, pixels);
        Pair<VecF> total{};
        for (int64_t i = 0; i < count; ++i) {
          const VecU bits = rounded(from + i * kStep);
          total.a += even(bits), total.b += odd(bits);
        }
        const VecF share = splat<VecF>(1.0f / float(count));
        store(block.shift, total.a * share), store(block.shift + kLanes<VecF>, total.b * share);
        for (int64_t c = 0; c < kTileColumns; ++c) block.sum[c] = block.square[c] = 0;
      }
      const Pair<VecF> shift = load_lanes<VecF>(block.shift);
      Pair<VecF> sum{}, square{};  // of these pixels first: a tenth of the rounding error
      for (int64_t i = at_lane; i < end; ++i, from += kStep, y += y_pitch) {
        const VecU bits = rounded(from);
        _mm512_mask_storeu_epi16(y, written, (__m512i)bits);
        const VecF d = even(bits) - shift.a, e = odd(bits) - shift.b;
        sum.a += d, sum.b += e;
        square.a = multiply_add(d, d, square.a), square.b = multiply_add(e, e, square.b);
      }
      add_to(block.sum, sum), add_to(block.square, square);
    }
    at_lane += kPixels;
    if (at_lane < pixels) return;
    if (a.wants_statistics()) block.count += pixels;
    ++at_row, at_lane = 0;
#endif
  }

  // Sums up the kernel's columns. In vectors that hold a sum for every column of the kernel: with
  // each pixel the sums move on to the next column, and one of them is complete.
  void add_shifted(int64_t r) {
#if VECTOR_BYTES == 64
    const VecI lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32_t step = int32_t(a.cout), last = int32_t(kept() * a.cout);
    const __m512i before = (__m512i)(lane - step), before_high = (__m512i)(lane + 16 - step);
    const __m512i complete = (__m512i)(lane + last);
    const __mmask16 any = __mmask16(0xffff << step);
    const float* from = sums.products[r][kept()];
    const int64_t skipped = begin == 0 ? kept() : 0;  // pixels before the first
    const int64_t pitch = joined() ? a.cout : kStep;
    float* to = sums.values[r] - skipped * pitch;
    VecF low = load<VecF>(sums.begun[r]), high = load<VecF>(sums.begun[r] + 16);
    if (begin == 0) low = high = VecF{};
    for (int64_t i = 0; i < kTileRows; ++i, from += kTileColumns, to += pitch) {
      const VecF moved = _mm512_maskz_permutexvar_ps(any, before, low);
      high = _mm512_permutex2var_ps(low, before_high, high) + load<VecF>(from + 16);
      low = moved + load<VecF>(from);
      if (i >= skipped) store(to, VecF(_mm512_permutex2var_ps(low, complete, high)));
    }
    store(sums.begun[r], low), store(sums.begun[r] + 16, high);
#else
    typedef float Four __attribute__((vector_size(16)));
    float (*products)[kTileColumns] = sums.products[r];
    const float* from = products[begin == 0 ? kept() : 0];
    for (int64_t i = 0; i < pixels; ++i, from += kTileColumns) {
      for (int64_t c = 0; c < a.cout; c += 4) {
        Four sum{};
        for (int64_t k = 0; k <= kept(); ++k) {
          Four product;
          std::memcpy(&product, from + k * (kTileColumns + a.cout) + c, sizeof(product));
          sum += product;
        }
        std::memcpy(value(r, 0) + i * kStep + c, &sum, sizeof(sum));
      }
    }
    std::memmove(products[0], products[kTileRows], kept() * sizeof(products[0]));
#endif
  }

  // Adds the bias, rounds and writes a row of pixels.
  void write_joined(int64_t r) {
    const int64_t count = pixels * a.cout;
    float* values = sums.values[r];
    for (int64_t i = 0; i < count; i += kLanes<VecF>)
      store(values + i, rounded_to<BFloat16>(load<VecF>(values + i) + load<VecF>(sums.bias + i)));
    const int64_t y = ((n * a.rows + row + r) * a.columns + begin) * a.cout;
    if (a.bytes_out)
      write_run(values, count, static_cast<uint8_t*>(a.y) + y);
    else
      write_run(values, count, static_cast<BFloat16*>(a.y) + y);
  }

  // Adds the bias, rounds and sums a vector of channels.
  void finish_vector(int64_t r, int64_t lane) {
    TileChannels& block = blocks[first / kTileColumns];
    float* from = value(r, lane);
    const VecF bias = load<VecF>(block.bias + lane);
    for (int64_t i = 0; i < pixels; ++i)
      store(from + i * kStep, rounded_to<BFloat16>(load<VecF>(from + i * kStep) + bias));
    if (!a.wants_statistics()) return;
    if (block.count == 0) {
      const int64_t count = smaller<int64_t>(kShift, pixels);
      VecF total{};
      for (int64_t i = 0; i < count; ++i) total += load<VecF>(from + i * kStep);
      store(block.shift + lane, total * splat<VecF>(1.0f / float(count)));
      store(block.sum + lane, VecF{}), store(block.square + lane, VecF{});
    }
    const VecF shift = load<VecF>(block.shift + lane);
    VecF sum{}, square{};
    for (int64_t i = 0; i < pixels; ++i) {
      const VecF d = load<VecF>(from + i * kStep) - shift;
      sum += d;
      square = multiply_add(d, d, square);
    }
    store(block.sum + lane, load<VecF>(block.sum + lane) + sum);
    store(block.square + lane, load<VecF>(block.square + lane) + square);
  }

  void write(int64_t r) const {
    for (int64_t channel = 0; channel < channels; channel += kStep)
      write_row<BFloat16>(a, n, a.step * (row + r) + row_parity, a.step * begin + column_parity,
                          pixels, first + channel, value(r, channel));
  }
};

// -- a task ----------------------------------------------------------------------------------

inline int64_t TileGeometry::worker_elements(const NormConv2d& a) const {
  const int64_t bytes = ring_elements() * sizeof(BFloat16) +
                        coefficient_elements(a) * sizeof(float) + sizeof(TileSums) +
                        ceil_divide(a.cout, kTileColumns) * sizeof(TileChannels);
  return ceil_divide(bytes, 64) * 16;
}

inline void pack_panels(const NormConv2d& a, const TileGeometry& g) {
  parallel_tasks(a.step * a.step, g.packed_elements(a), [&](int64_t parity) {
    pack_weights_in_tiles(a, g, parity / a.step, parity % a.step);
  });
}

// What vectors have to do while tiles multiply: a piece after so many products.
struct TileWork {
  TileOutput& output;
  TileRing& ring;
  int64_t pieces, turns;  // of the ring, and how often its turn comes, per two rows of the output
  int64_t due = 0;

  TileWork(const NormConv2d& a, const TileGeometry& g, TileOutput& output, TileRing& ring)
      : output(output), ring(ring), pieces(2 * a.stride * g.pieces()) {
    int64_t kernel_rows = 0;
    for (int64_t parity = 0; parity < a.step; ++parity) kernel_rows += a.step * a.axes[parity].taps;
    turns = kernel_rows * g.depth_blocks * g.output_blocks() * ceil_divide(g.columns, kTileRows);
  }

  void advance(int64_t output_pieces) {
    for (int64_t piece = 0; piece < output_pieces; ++piece) output.advance();
    for (due += pieces; due >= turns; due -= turns) ring.advance();
  }
};

template <int kRows, int kTiles>
void multiply_rows(const TileGeometry& g, const TilePixels& pixels, const BFloat16* weights,
                   int64_t o, int64_t row_parity, int64_t column_parity, int64_t first,
                   TileWork& work) {
  TileOutput& output = work.output;
  for (int64_t column = 0; column < g.columns; column += kTileRows) {
    const int64_t share = ceil_divide(output.pieces(), pixels.kernel_rows * pixels.depth_blocks);
    multiply_tiles<kRows, kTiles>(pixels, column * pixels.pitch / int64_t(sizeof(BFloat16)),
                                  weights, [&] { work.advance(share); });
    output.finish();
    output.take<kRows, kTiles>(o, row_parity, column_parity, column, first);
  }
}

inline void run_band(const NormConv2d& a, const TileGeometry& g, const Input<BFloat16>& input,
                     int64_t n, int64_t band, float* memory) {
  [[maybe_unused]] const TileScope scope;
  const int64_t begin = band * a.band, end = smaller(begin + a.band, a.rows);
  float* coefficients = memory + g.ring_elements() / 2;
  TileRing ring(a, input, g, n, begin, end, reinterpret_cast<BFloat16*>(memory), coefficients);
  memory = coefficients + g.coefficient_elements(a);
  TileSums& sums = *reinterpret_cast<TileSums*>(memory);
  TileChannels* blocks = reinterpret_cast<TileChannels*>(&sums + 1);
  for (int64_t first = 0; first < a.cout; first += kTileColumns) {
    TileChannels& block = blocks[first / kTileColumns];
    for (int64_t c = 0; c < kTileColumns; c += kPanel<VecF>)
      read_bias(a, first + c, block.bias + c);
    block.count = block.merged = 0;
  }
  if (g.form == KernelColumns::in_outputs)
    for (int64_t i = 0; i < kTileRows * a.cout; ++i) sums.bias[i] = blocks[0].bias[i % a.cout];
  BandStatistics statistics(a, n, band);
  TileOutput output{a, g, n, statistics, blocks, sums};
  TileWork work(a, g, output, ring);
  ring.want(smaller(begin + 2, end));
  for (int64_t o = begin; o < end; o += 2) {
    const int64_t rows = smaller<int64_t>(2, end - o);
    ring.finish();
    ring.want(smaller(o + 4, end));
    for (int64_t parity = 0; parity < a.step * a.step; ++parity) {
      const int64_t row_parity = parity / a.step, column_parity = parity % a.step;
      const ConvAxis &row_axis = a.axes[row_parity], &column_axis = a.axes[column_parity];
      const bool apart = g.form == KernelColumns::apart;
      const bool beside = g.form == KernelColumns::in_values;
      TilePixels pixels;
      pixels.kernel_rows = row_axis.taps, pixels.kernel_columns = apart ? column_axis.taps : 1;
      pixels.depth_blocks = g.depth_blocks, pixels.plane = g.plane;
      pixels.pitch = (beside ? 1 : a.stride) * kTileBytes;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < row_axis.taps; ++t)
          pixels.rows[r][t] = ring.row(a.stride * (o + r) + row_axis.first + t) +
                              (column_axis.first - g.low) * kTileDepth;
      for (int64_t block = 0; block < g.output_blocks(); ++block) {
        const int64_t first = block * kTileColumns;
        const BFloat16* weights = static_cast<const BFloat16*>(a.packed) +
                                  g.weights_begin(a, row_parity, column_parity, block);
        const auto multiply = [&](auto in_rows, auto in_tiles) {
          multiply_rows<decltype(in_rows)::value, decltype(in_tiles)::value>(
              g, pixels, weights, o, row_parity, column_parity, first, work);
        };
        const bool wide = g.outputs - first > kTileRows;
        if (rows == 2 && wide)
          multiply(Count<2>{}, Count<2>{});
        else if (rows == 2)
          multiply(Count<2>{}, Count<1>{});
        else if (wide)
          multiply(Count<1>{}, Count<2>{});
        else
          multiply(Count<1>{}, Count<1>{});
      }
    }
  }
  output.finish();
  for (int64_t first = 0; first < a.cout; first += kTileColumns)
    blocks[first / kTileColumns].merge_into(statistics, first,
                                            smaller(kTileColumns, a.cout - first), output.direct());
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
