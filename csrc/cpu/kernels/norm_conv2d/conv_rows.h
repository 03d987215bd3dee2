// Input of a deferred-norm convolution: a ring buffer of rows, each normalised, activated, added to
// the residual and padded. See norm_conv2d.cpp.
#pragma once

#include "../vector/planes.h"
#include "conv_sizes.h"

namespace stylekernels::CPU_CAPABILITY {

// Returns the pixel of x at `position` of the padded image; -1 for a zero.
inline int64_t source(const NormConv2d& a, int64_t position, int64_t size) {
  const int64_t whole = a.repeats * size;
  if (position < 0 || position >= whole) {
    if (a.padding_mode == PaddingMode::zeros) return -1;
    if (a.padding_mode == PaddingMode::reflect)
      position = position < 0 ? -position : 2 * (whole - 1) - position;
    position = position < 0 ? 0 : position >= whole ? whole - 1 : position;
  }
  return position / a.repeats;
}

// Input of the convolution: x, and the norm, activation and residual that are applied as it is
// read.
template <class T>
struct Input {
  const T* x;
  const uint8_t* bytes;  // replace x; null: x is read
  const T* residual;
  const Wide<T>* scale;  // (N, Cin); null: no norm
  const Wide<T>* shift;
  Activation activation;
  Wide<T> negative_slope;

  template <Activation A, class V>
  inline V unrounded(V in, V added, V scale_of_channel, V shift_of_channel) const {
    V z = scale == nullptr ? in : multiply_add_rounded_once(in, scale_of_channel, shift_of_channel);
    z = activate<A>(z, negative_slope);
    if (residual != nullptr) z += added;
    return z;
  }

  template <Activation A, class V>
  inline V value(V in, V added, V scale_of_channel, V shift_of_channel) const {
    return rounded_to<T>(unrounded<A>(in, added, scale_of_channel, shift_of_channel));
  }
};

// Reads `count` elements of x from `from` on, and stores them to `out` in its type. Element i has
// channel `channel` + i * channel_step: channel_step is 1 along channels, 0 along pixels.
template <Activation A, class T, class Out>
inline void read_run(const Input<T>& input, int64_t from, int64_t count, int64_t channel,
                     int64_t channel_step, Out* out) {
  using V = Vec<T>;
  const auto value = [&](auto lane, int64_t i) {
    using U = decltype(lane);
    U added{}, scale{}, shift{};
    if (input.residual != nullptr) added = load<U>(input.residual + from + i);
    if (input.scale != nullptr) {
      const int64_t c = channel + i * channel_step;
      scale = channel_step ? load<U>(input.scale + c) : splat<U>(input.scale[c]);
      shift = channel_step ? load<U>(input.shift + c) : splat<U>(input.shift[c]);
    }
    const U x =
        input.bytes != nullptr ? load<U>(input.bytes + from + i) : load<U>(input.x + from + i);
    return input.template value<A>(x, added, scale, shift);
  };
  int64_t i = 0;
  for (; i + kLanes<V> <= count; i += kLanes<V>) store(out + i, value(V{}, i));
  for (; i < count; ++i) store(out + i, value(Wide<T>{}, i));
}

// Reads runs and transposes them: read(run, from, count, to) gives `count` elements of a run.
// Element i of run j goes to out[i * pitch + j].
template <class V, class Read, class Out>
void read_across(int64_t runs, int64_t length, const Read& read, int64_t pitch, Out* out) {
  constexpr int64_t kSide = kLanes<V>;
  ElementOf<V> square[kSide * kSide];
  for (int64_t run = 0; run < runs; run += kSide) {
    const int64_t height = smaller(kSide, runs - run);
    for (int64_t from = 0; from < length; from += kSide) {
      const int64_t count = smaller(kSide, length - from);
      for (int64_t j = 0; j < height; ++j) read(run + j, from, count, square + j * kSide);
      Out* corner = out + from * pitch + run;
      if (height == kSide && count == kSide) {
        V rows[kSide];
        for (int64_t j = 0; j < kSide; ++j) rows[j] = load<V>(square + j * kSide);
        transpose(rows);
        for (int64_t j = 0; j < kSide; ++j) store(corner + j * pitch, rows[j]);
      } else {
        for (int64_t j = 0; j < height; ++j)
          for (int64_t i = 0; i < count; ++i) store(corner + i * pitch + j, square[j * kSide + i]);
      }
    }
  }
}

// Reads pixels [0, columns) of a row of x, in the order of the ring. x has the same order, or is
// transposed.
template <Activation A, class T, class R>
void read_row(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input, int64_t n,
              int64_t row, int64_t columns, R* out) {
  using V = Vec<T>;
  const bool planes = a.layout == Layout::contiguous;
  if (!planes && !g.is(Method::planar) && g.pitch == a.cin && input.scale == nullptr) {  // one run
    read_run<A>(input, (n * a.h + row) * a.w * a.cin, columns * a.cin, 0, 0, out);
    return;
  }
  // Runs of x, `run_step` apart: the columns of a channel, or the channels of a column.
  const int64_t runs = planes ? a.cin : columns, length = planes ? columns : a.cin;
  const int64_t run_step = planes ? a.h * a.w : a.cin;
  const int64_t first = planes ? (n * a.cin * a.h + row) * a.w : (n * a.h + row) * a.w * a.cin;
  const auto read = [&](int64_t run, int64_t from, int64_t count, auto* to) {
    const int64_t channel = n * a.cin + (planes ? run : from);
    read_run<A>(input, first + run * run_step + from, count, channel, planes ? 0 : 1, to);
  };
  if (planes == g.is(Method::planar)) {
    for (int64_t run = 0; run < runs; ++run) read(run, 0, length, out + run * g.pitch);
    return;
  }
  read_across<V>(runs, length, read, g.pitch, out);
}

template <class T, class R>
void read_row(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input, int64_t n,
              int64_t row, int64_t columns, R* out) {
  for_activation(input.activation, [&](auto activation) {
    read_row<decltype(activation)::value>(a, g, input, n, row, columns, out);
  });
}

// Ring buffer of rows of the padded input, of type R. Position p of the padded image (it may be
// negative) is at row (p - low) % span.
template <class T, class R = Wide<T>>
struct Ring {
  const NormConv2d& a;
  const Input<T>& input;
  const Geometry<T>& g;
  int64_t n;
  R* memory;                           // span rows, and one more if pixels repeat
  int64_t next = -(int64_t(1) << 40);  // first row that is not read yet

  R* row(int64_t position) const { return memory + (position - g.low) % g.span * g.row_elements; }

  // Reads the rows that output row o needs and that are not in the ring.
  void advance(int64_t o) { read(g.row_advance * o + g.low); }

  // Reads the span rows from `first` on that are not in the ring.
  void read(int64_t first) {
    const int64_t end = first + g.span;
    for (int64_t position = next < first ? first : next; position < end; ++position)
      fill(source(a, position, a.h), row(position));
    next = end;
  }

  void fill(int64_t from, R* out) const {
    const bool planar = g.is(Method::planar);
    const int64_t channels = planar ? a.cin : 1, elements = planar ? 1 : a.cin;
    const int64_t column_step = planar ? 1 : g.pitch;
    // Copies column `column` of `pixels` to column `to` of the row; zeros for a column of -1.
    const auto set = [&](int64_t to, const R* pixels, int64_t column) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < elements; ++i)
          out[c * g.pitch + to * column_step + i] =
              column < 0 ? R{} : pixels[c * g.pitch + column * column_step + i];
    };
    if (from < 0) {
      for (int64_t i = 0; i < g.width; ++i) set(i, nullptr, -1);
      return;
    }
    const bool repeated = a.repeats > 1;
    const int64_t inside = repeated ? 0 : -g.low;  // column of the row that gets column 0 of x
    const int64_t count = repeated ? a.w : smaller(a.w, g.width - inside);
    R* pixels = repeated ? memory + g.span * g.row_elements : out + inside * column_step;
    read_row(a, g, input, n, from, count, pixels);
    for (int64_t i = 0; i < g.width; ++i)
      if (repeated || i < inside || i >= inside + count) set(i, pixels, source(a, i + g.low, a.w));
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
