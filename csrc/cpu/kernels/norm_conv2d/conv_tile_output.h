// Epilogue of a convolution on AMX tiles: from accumulators to y and its statistics. See
// conv_tiles.h.
//
// A register block is two output rows x 16 pixels x 32 channels in float32 scratch (2 x 2 KiB).
// Each piece of the epilogue adds the bias, rounds to bfloat16, writes y and sums up what was
// written. Pieces run between the products of the next register block. With AVX-512 and
// channels_last that is one pass over the scratch: two vectors are rounded by one instruction and
// stored under a mask.
//
// Kernels whose columns are among the outputs (KernelColumns::in_outputs) first add up their
// columns, which are one pixel apart.
#pragma once

#include "conv_output.h"
#include "conv_tile_rows.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

// Statistics of a panel of 32 channels in a band: of at most kTileSummed pixels in float32, about a
// shift from the first of them; such sums are merged in double.
constexpr int64_t kTileSummed = 1024;

struct TileChannels {
  float bias[kTilePanel], shift[kTilePanel], sum[kTilePanel], square[kTilePanel];
  int64_t count;   // pixels in sum and square
  int64_t merged;  // pixels of the band that are merged

  // Merges the sums into the statistics of the band. `in_pairs`: lanes are those of a vector pair.
  void merge_into(BandStatistics& statistics, int64_t first, int64_t channels, bool in_pairs) {
    for (int64_t lane = 0; lane < kTilePanel && count > 0; ++lane) {
      const int64_t c = in_pairs ? element_of_lane<BFloat16>(int(lane)) : lane;
      if (c >= channels) continue;
      const double mean = double(sum[lane]) / double(count);
      statistics.merge(double(merged), first + c, double(count), double(shift[lane]) + mean,
                       double(square[lane]) - mean * double(sum[lane]));
    }
    merged += count, count = 0;
  }
};

// Scratch of a register block. With in_outputs, product k of pixel i belongs to output pixel i - k,
// where k is a column of the kernel; so the first outputs need products of the register block
// before. Without AVX-512 the last kKept pixels' products are kept in front of `products`. With
// AVX-512 the unfinished sums are kept in `begun`. For a kernel of 3 columns and one channel, with
// products p0, p1, p2:
//
//   after pixel    lane 0: y[i]    lane 1: y[i - 1]      lane 2: y[i - 2], complete
//       14         p0[14]          p0[13] + p1[14]       p0[12] + p1[13] + p2[14]
//       15         p0[15]          p0[14] + p1[15]       p0[13] + p1[14] + p2[15]    -> begun
//       16         p0[16]          p0[15] + p1[16]       p0[14] + p1[15] + p2[16]
//
// Each pixel moves all lanes on by one column (Cout lanes) and adds its products.
struct TileSums {
  static constexpr int64_t kKept = ConvAxis::kMaxKernel - 1;
  float products[2][kKept + kTileRows + 1][kTilePanel];  // last one: read but not used
  float values[2][kTilePanel * kTileRows];               // panels of kPanel channels x 16 pixels
  float begun[2][kTilePanel];
  float bias[kTileRows * kTileRows];  // bias of 16 pixels x few channels
};

// Epilogue of one register block at a time, piece by piece.
struct TileOutput {
  static constexpr int64_t kPanelChannels = kPanel<VecF>;
  const NormConv2d& a;
  const TileGeometry& g;
  int64_t n;
  TileChannels* panels;  // one for each kTilePanel channels
  TileSums& scratch;
  int64_t band = -1;
  // Register block at work: rows from `row` on of a parity's output, pixels from `begin` on.
  int64_t rows = 0, row = 0, row_parity = 0, column_parity = 0, begin = 0, pixels = 0;
  int64_t first = 0, channels = 0;
  // State of one_pass, which is `direct` looked up once a register block: the first pixel in y,
  // elements from a pixel and from a row to the next, and a mask of the channels that are written.
  BFloat16* y = nullptr;
  int64_t y_pixel_pitch = 0, y_row_pitch = 0;
  uint32_t written = 0;
  bool one_pass = false, summed = false;
  int64_t at_row = 0, at_lane = 0;  // progress; at_lane: a channel, or a pixel if one_pass

  // Tells whether columns of the kernel are among the outputs.
  bool shifted() const { return g.form == KernelColumns::in_outputs; }
  // Tells whether one pass takes sums from scratch to y, all channels of a pixel at a time.
  bool direct() const {
    return VECTOR_BYTES == 64 && ROUNDS_BFLOAT16 && a.layout == Layout::channels_last &&
           !a.bytes_out && !shifted();
  }
  // Pixels before a register block whose products its outputs need.
  int64_t kept() const { return a.axes[0].taps - 1; }
  float* value(int64_t r, int64_t channel) const {
    return scratch.values[r] + channel / kPanelChannels * kPanelChannels * kTileRows +
           channel % kPanelChannels;
  }

  // Completes the last band, if there is one, and begins the statistics of `next`.
  void begin_band(int64_t next) {
    if (band >= 0) end_band();
    band = next;
    for (int64_t c = 0; c < a.cout; c += kTilePanel)
      panels[c / kTilePanel].count = panels[c / kTilePanel].merged = 0;
  }

  void end_band() {
    finish();
    for (int64_t c = 0; c < a.cout; c += kTilePanel) merge(c);
  }

  void merge(int64_t channel) {
    BandStatistics statistics(a, n, band);
    panels[channel / kTilePanel].merge_into(statistics, channel,
                                            smaller(kTilePanel, a.cout - channel), direct());
  }

  // Stores the accumulators of pixels from `column` on to scratch, and makes them the register
  // block at work.
  template <int kOutputRows, int kTiles>
  void take(int64_t o, int64_t row_of_parity, int64_t column_of_parity, int64_t column,
            int64_t channel) {
    const int64_t pitch_bytes = (shifted() ? kTilePanel : kPanelChannels) * sizeof(float);
    const auto target = [&](int64_t r, int64_t tile) {
      return shifted() ? scratch.products[r][kept()] + tile * kTileRows
                       : value(r, tile * kTileRows);
    };
    tile_store<0>(target(0, 0), pitch_bytes);
    if constexpr (kTiles == 2) tile_store<1>(target(0, 1), pitch_bytes);
    if constexpr (kOutputRows == 2) tile_store<2>(target(1, 0), pitch_bytes);
    if constexpr (kOutputRows == 2 && kTiles == 2) tile_store<3>(target(1, 1), pitch_bytes);
    rows = kOutputRows, row = o, row_parity = row_of_parity, column_parity = column_of_parity;
    begin = shifted() ? column - kept() : column;
    pixels = smaller<int64_t>(kTileRows, a.columns - begin);
    if (begin < 0) pixels += begin, begin = 0;
    first = channel, channels = smaller(kTilePanel, a.cout - channel);
    at_row = at_lane = 0;
    one_pass = direct(), summed = a.wants_statistics();
    if (one_pass) {
      const int64_t height = a.parities * a.rows, width = a.parities * a.columns;
      y_pixel_pitch = a.parities * a.cout, y_row_pitch = a.parities * width * a.cout;
      const int64_t pixel = (n * height + a.parities * row + row_parity) * width;
      y = static_cast<BFloat16*>(a.y) + (pixel + a.parities * begin + column_parity) * a.cout +
          first;
      written = channels == kTilePanel ? ~0u : (1u << channels) - 1;
    }
    TileChannels& panel = panels[first / kTilePanel];
    if (panel.count + kOutputRows * kTileRows > kTileSummed) merge(first);
  }

  // Tells whether the few channels of consecutive pixels are consecutive in `values`, as they are
  // in y.
  bool joined() const {
    return VECTOR_BYTES == 64 && shifted() && a.layout == Layout::channels_last &&
           !a.wants_statistics();
  }

  int64_t pieces() const {
    if (joined()) return rows;
    return rows * (direct() ? kTileRows / kPixels : ceil_divide(channels, kLanes<VecF>) + 1);
  }

  // Runs the next piece, if there is one. Not inlined: without it the loop over tiles is short.
  [[gnu::noinline]] void advance() {
    if (at_row == rows) return;
    if (one_pass) {
      if (at_lane + kPixels <= pixels) return write_pixels<kPixels>(kPixels);
      return write_pixels<0>(pixels - at_lane);
    }
    if (shifted() && at_lane == 0) add_shifted(at_row);
    if (joined()) return write_joined(at_row++);
    if (at_lane < channels) {
      finish_vector(at_row, at_lane);
      at_lane += kLanes<VecF>;
      return;
    }
    write(at_row);
    if (a.wants_statistics()) panels[first / kTilePanel].count += pixels;
    ++at_row, at_lane = 0;
  }

  void finish() {
    while (at_row < rows) advance();
  }

  // Adds the bias to kCount pixels or, for kCount 0, `count` pixels of a row from at_lane on,
  // rounds, writes and sums them up. A shift and a mask separate the even and the odd elements of a
  // rounded vector.
  static constexpr int64_t kPixels = 8;
  template <int64_t kCount>
  void write_pixels(int64_t count) {
#if VECTOR_BYTES == 64 && ROUNDS_BFLOAT16
    if constexpr (kCount > 0) count = kCount;
    TileChannels& panel = panels[first / kTilePanel];
    const Pair<VecF> bias = load_lanes<VecF>(panel.bias);
    const float* from = scratch.values[at_row] + at_lane * kPanelChannels;
    BFloat16* to = y + at_row * y_row_pitch + at_lane * y_pixel_pitch;
    const int64_t pitch = y_pixel_pitch;
    const __mmask32 mask = written;
    // Prefetches the pixels of the next register block for writing: they come from the L3 cache.
    const auto store_pixel = [&](int64_t i, VecU bits) {
      if constexpr (kCount > 0) __builtin_prefetch(to + (i + kTileRows) * pitch, 1);
      _mm512_mask_storeu_epi16(to + i * pitch, mask, (__m512i)bits);
    };
    const auto rounded = [&](const float* pixel) {
      const Pair<VecF> pair = load_lanes<VecF>(pixel);
      return (VecU)_mm512_cvtne2ps_pbh(pair.b + bias.b, pair.a + bias.a);
    };
    const auto even = [](VecU bits) { return (VecF)(bits << 16); };
    const auto odd = [](VecU bits) { return (VecF)(bits & 0xffff0000u); };
    if (!summed) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < count; ++i) store_pixel(i, rounded(from + i * kPanelChannels));
    } else {
      if (panel.count == 0) {
        const int64_t shift_count = smaller<int64_t>(kShiftValues, count);
        Pair<VecF> total{};
        for (int64_t i = 0; i < shift_count; ++i) {
          const VecU bits = rounded(from + i * kPanelChannels);
          total.a += even(bits), total.b += odd(bits);
        }
        const VecF share = splat<VecF>(1.0f / float(shift_count));
        store(panel.shift, total.a * share), store(panel.shift + kLanes<VecF>, total.b * share);
        for (int64_t c = 0; c < kTilePanel; ++c) panel.sum[c] = panel.square[c] = 0;
      }
      const Pair<VecF> shift = load_lanes<VecF>(panel.shift);
      Pair<VecF> sum{}, square{};  // these pixels summed apart first: a tenth of the rounding error
#pragma GCC unroll 8
      for (int64_t i = 0; i < count; ++i) {
        const VecU bits = rounded(from + i * kPanelChannels);
        store_pixel(i, bits);
        const VecF d = even(bits) - shift.a, e = odd(bits) - shift.b;
        sum.a += d, sum.b += e;
        square.a = multiply_add(d, d, square.a), square.b = multiply_add(e, e, square.b);
      }
      add_to(panel.sum, sum), add_to(panel.square, square);
      panel.count += count;
    }
    at_lane += count;
    const bool whole = at_lane == pixels;  // no branch: it would alternate
    at_row += whole, at_lane = whole ? 0 : at_lane;
#else
    (void)count;
#endif
  }

  // Adds up the columns of the kernel. With AVX-512 two vectors hold one unfinished sum per column
  // of the kernel and channel: see TileSums. Each pixel adds its products, completes the sum of the
  // last column, and moves the others on by one column.
  void add_shifted(int64_t r) {
#if VECTOR_BYTES == 64
    const VecI lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int32_t channels_of_column = int32_t(a.cout), last = int32_t(kept() * a.cout);
    const __m512i before = (__m512i)(lane - channels_of_column),
                  before_high = (__m512i)(lane + 16 - channels_of_column);
    const __m512i complete = (__m512i)(lane + last);
    const __mmask16 any = __mmask16(0xffff << channels_of_column);
    const float* from = scratch.products[r][kept()];
    const int64_t skipped = begin == 0 ? kept() : 0;  // pixels before the first
    const int64_t pitch = joined() ? a.cout : kPanelChannels;
    float* to = scratch.values[r] - skipped * pitch;
    VecF low = load<VecF>(scratch.begun[r]), high = load<VecF>(scratch.begun[r] + 16);
    if (begin == 0) low = high = VecF{};
    for (int64_t i = 0; i < kTileRows; ++i, from += kTilePanel, to += pitch) {
      const VecF moved = _mm512_maskz_permutexvar_ps(any, before, low);
      high = _mm512_permutex2var_ps(low, before_high, high) + load<VecF>(from + 16);
      low = moved + load<VecF>(from);
      if (i >= skipped) store(to, VecF(_mm512_permutex2var_ps(low, complete, high)));
    }
    store(scratch.begun[r], low), store(scratch.begun[r] + 16, high);
#else
    typedef float Four __attribute__((vector_size(16)));
    float (*products)[kTilePanel] = scratch.products[r];
    const float* from = products[begin == 0 ? kept() : 0];
    for (int64_t i = 0; i < pixels; ++i, from += kTilePanel) {
      for (int64_t c = 0; c < a.cout; c += 4) {
        Four sum{};
        for (int64_t k = 0; k <= kept(); ++k) {
          Four product;
          std::memcpy(&product, from + k * (kTilePanel + a.cout) + c, sizeof(product));
          sum += product;
        }
        std::memcpy(value(r, 0) + i * kPanelChannels + c, &sum, sizeof(sum));
      }
    }
    std::memmove(products[0], products[kTileRows], kept() * sizeof(products[0]));
#endif
  }

  // Adds the bias to a row of pixels that are consecutive in y, rounds and writes them.
  void write_joined(int64_t r) {
    const int64_t count = pixels * a.cout;
    float* values = scratch.values[r];
    for (int64_t i = 0; i < count; i += kLanes<VecF>)
      store(values + i,
            rounded_to<BFloat16>(load<VecF>(values + i) + load<VecF>(scratch.bias + i)));
    const int64_t offset = ((n * a.rows + row + r) * a.columns + begin) * a.cout;
    if (a.bytes_out)
      write_run(values, count, static_cast<uint8_t*>(a.y) + offset);
    else
      write_run(values, count, static_cast<BFloat16*>(a.y) + offset);
  }

  // Adds the bias to a vector of channels of a row of pixels, rounds and sums them up.
  void finish_vector(int64_t r, int64_t lane) {
    TileChannels& panel = panels[first / kTilePanel];
    float* from = value(r, lane);
    const VecF bias = load<VecF>(panel.bias + lane);
    for (int64_t i = 0; i < pixels; ++i)
      store(from + i * kPanelChannels,
            rounded_to<BFloat16>(load<VecF>(from + i * kPanelChannels) + bias));
    if (!a.wants_statistics()) return;
    if (panel.count == 0) {
      const int64_t count = smaller<int64_t>(kShiftValues, pixels);
      VecF total{};
      for (int64_t i = 0; i < count; ++i) total += load<VecF>(from + i * kPanelChannels);
      store(panel.shift + lane, total * splat<VecF>(1.0f / float(count)));
      store(panel.sum + lane, VecF{}), store(panel.square + lane, VecF{});
    }
    const VecF shift = load<VecF>(panel.shift + lane);
    VecF sum{}, square{};
    for (int64_t i = 0; i < pixels; ++i) {
      const VecF d = load<VecF>(from + i * kPanelChannels) - shift;
      sum += d;
      square = multiply_add(d, d, square);
    }
    store(panel.sum + lane, load<VecF>(panel.sum + lane) + sum);
    store(panel.square + lane, load<VecF>(panel.square + lane) + square);
  }

  void write(int64_t r) const {
    for (int64_t channel = 0; channel < channels; channel += kPanelChannels)
      write_row<BFloat16>(a, n, a.parities * (row + r) + row_parity,
                          a.parities * begin + column_parity, pixels, first + channel,
                          value(r, channel));
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
#endif
