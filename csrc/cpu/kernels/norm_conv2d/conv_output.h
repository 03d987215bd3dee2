// Output of a deferred-norm convolution: writing rows of it to y, and their statistics. See
// norm_conv2d.cpp.
#pragma once

#include "../../norm_conv2d.h"
#include "../vector/matrix.h"
#include "../vector/planes.h"

namespace stylekernels::CPU_CAPABILITY {

// Reads the bias of kPanel channels from `first` on, or zeros.
template <class W>
inline void read_bias(const NormConv2d& a, int64_t first, W* bias) {
  const W* given = static_cast<const W*>(a.bias);
  for (int64_t c = 0; c < kPanel<Vec<W>>; ++c)
    bias[c] = given != nullptr && first + c < a.cout ? coefficient<W>(given[first + c]) : W(0);
}

// Writes `count` pixels of a row of y, every a.parities-th from `column` on. `values` has kPanel
// channels per pixel: they are the channels from `first` on, and those from Cout on are left out.
template <class W, class Y>
void write_row(const NormConv2d& a, int64_t n, int64_t row, int64_t column, int64_t count,
               int64_t first, const W* values, Y* y) {
  using V = Vec<W>;
  constexpr int64_t kPanelChannels = kPanel<V>;
  const int64_t channels = smaller(kPanelChannels, a.cout - first);
  const int64_t height = a.parities * a.rows, width = a.parities * a.columns;
  if (a.layout == Layout::contiguous) {
    for (int64_t c = 0; c < channels; ++c) {
      Y* pixel = y + ((n * a.cout + first + c) * height + row) * width + column;
      for (int64_t p = 0; p < count; ++p)
        store(pixel + p * a.parities, values[p * kPanelChannels + c]);
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p) {
    Y* pixel = y + ((n * height + row) * width + p * a.parities + column) * a.cout + first;
    const W* from = values + p * kPanelChannels;
    int64_t c = 0;
    for (; c + kLanes<V> <= channels; c += kLanes<V>) store(pixel + c, load<V>(from + c));
    for (; c < channels; ++c) store(pixel + c, from[c]);
  }
}

template <class T>
void write_row(const NormConv2d& a, int64_t n, int64_t row, int64_t column, int64_t count,
               int64_t first, const Wide<T>* values) {
  if (a.bytes_out)
    write_row(a, n, row, column, count, first, values, static_cast<uint8_t*>(a.y));
  else
    write_row(a, n, row, column, count, first, values, static_cast<T*>(a.y));
}

// Writes a run of `count` elements.
template <class W, class Y>
inline void write_run(const W* values, int64_t count, Y* y) {
  using V = Vec<W>;
  int64_t i = 0;
  for (; i + kLanes<V> <= count; i += kLanes<V>) store(y + i, load<V>(values + i));
  for (; i < count; ++i) store(y + i, values[i]);
}

// Writes a row of y with kOutputs channels, from planes of `values` that are `pitch` apart.
// `joined` is scratch for all of them pixel by pixel.
template <int kOutputs, class W, class Y>
void write_planes(const NormConv2d& a, int64_t n, int64_t row, const W* values, int64_t pitch,
                  W* joined, Y* y) {
  using V = Vec<W>;
  if (a.layout == Layout::contiguous) {
    for (int64_t c = 0; c < kOutputs; ++c)
      write_run(values + c * pitch, a.columns, y + ((n * kOutputs + c) * a.rows + row) * a.columns);
    return;
  }
  if constexpr (kOutputs == 3) {
    for (int64_t p = 0; p < a.columns; p += kLanes<V>) {
      V channels[3];
      for (int c = 0; c < 3; ++c) channels[c] = load<V>(values + c * pitch + p);
      interleave_three(channels);
      for (int v = 0; v < 3; ++v) store(joined + 3 * p + v * kLanes<V>, channels[v]);
    }
  } else {
    for (int64_t p = 0; p < a.columns; ++p)
      for (int c = 0; c < kOutputs; ++c) joined[p * kOutputs + c] = values[c * pitch + p];
  }
  write_run(joined, a.columns * kOutputs, y + (n * a.rows + row) * a.columns * kOutputs);
}

template <int kOutputs, class T>
void write_planes(const NormConv2d& a, int64_t n, int64_t row, const Wide<T>* values, int64_t pitch,
                  Wide<T>* joined) {
  if (a.bytes_out)
    write_planes<kOutputs>(a, n, row, values, pitch, joined, static_cast<uint8_t*>(a.y));
  else
    write_planes<kOutputs>(a, n, row, values, pitch, joined, static_cast<T*>(a.y));
}

// Statistics of a band, added row by row in the order in which rows are computed.
struct BandStatistics {
  const NormConv2d& a;
  double *mean, *m2;
  double counted = 0;  // pixels added, of every channel

  BandStatistics(const NormConv2d& args, int64_t n, int64_t band)
      : a(args),
        mean(args.partials + (n * args.bands + band) * 2 * args.cout),
        m2(mean + args.cout) {}

  // Adds `pixels` pixels of kPanel channels: those from `first` on.
  template <class W>
  void add(const W* values, int64_t pixels, int64_t first) {
    constexpr int64_t kPanelChannels = kPanel<Vec<W>>;
    double part_mean[kSegment], part_m2[kSegment];
    lane_moments<W>(values, kPanelChannels, pixels, kPanelChannels, part_mean, part_m2);
    for (int64_t c = 0; c < smaller(kPanelChannels, a.cout - first); ++c)
      merge(counted, first + c, double(pixels), part_mean[c], part_m2[c]);
  }

  // Adds `pixels` pixels of one channel.
  template <class W>
  void add_plane(const W* values, int64_t pixels, int64_t channel) {
    const Moments part = moments_of_run(values, pixels);
    merge(counted, channel, part.count, part.mean, part.m2);
  }

  // Merges moments into those of a channel with `before` pixels.
  void merge(double before, int64_t channel, double pixels, double part_mean, double part_m2) {
    Moments moments;
    if (before > 0) moments = {before, mean[channel], m2[channel]};
    moments.merge(pixels, part_mean, part_m2);
    mean[channel] = moments.mean, m2[channel] = moments.m2;
  }
};

// Merges the statistics of the bands of image n, in their order.
template <class T>
void finish_statistics(const NormConv2d& a, int64_t n) {
  using W = Wide<T>;
  const double* partials = a.partials + n * a.bands * 2 * a.cout;
  const W *weight = static_cast<const W*>(a.norm_weight),
          *bias = static_cast<const W*>(a.norm_bias);
  for (int64_t c = 0; c < a.cout; ++c) {
    Moments moments;
    for (int64_t band = 0; band < a.bands; ++band) {
      const int64_t rows = smaller(a.band, a.rows - band * a.band);
      const double* part = partials + band * 2 * a.cout + c;
      moments.merge(double(rows * a.parities * a.columns * a.parities), part[0], part[a.cout]);
    }
    const double var = moments.m2 / moments.count;
    if (a.mean != nullptr) {
      static_cast<W*>(a.mean)[n * a.cout + c] = W(moments.mean);
      static_cast<W*>(a.var)[n * a.cout + c] = W(var);
    }
    if (a.next_scale_shift != nullptr) {
      // The shift is computed from the rounded scale: see norm_scale_shift.
      W* next = static_cast<W*>(a.next_scale_shift) + (n * a.cout + c) * 2;
      next[0] = W((weight != nullptr ? double(weight[c]) : 1) * inverse_deviation(var, a.eps));
      next[1] = W((bias != nullptr ? double(bias[c]) : 0) - moments.mean * double(next[0]));
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
