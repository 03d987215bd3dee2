// Input of a deferred-norm convolution: a ring buffer of rows, each normalised, activated, added to
// the residual and padded. See norm_conv2d.cpp.
#pragma once

#include "../vector/planes.h"
#include "method.h"

namespace stylekernels::CPU_CAPABILITY {

// Register block of planar rows, in vectors of pixels: for each of kFewOutputs outputs as many
// accumulators; these and the weights fit in 16 registers.
constexpr int kPlanarVectors = 3;

// Winograd tiles: 4 x 4 outputs. A batch is so many that their points, for 128 input channels, stay
// in the L2 cache.
constexpr int64_t kWinogradOutputs = 4;
constexpr int64_t kWinogradBatch = VECTOR_BYTES == 64 ? 24 : 18;
static_assert(kWinogradBatch % kBlockRows == 0, "batches are whole register blocks");

// Returns the elements from one point of a batch to the next: a cache line more than the tiles
// take, because stores a multiple of the cache's size apart would compete for one set of it.
inline int64_t winograd_pitch(int64_t cin) { return kWinogradBatch * cin + 16; }

// Nested Winograd transforms: see nested_winograd.h. A tile is 3 x 3 outputs, from 5 x 5 inputs and
// up to 3 x 3 kernel blocks. A batch is so many tiles (few inputs), or vectors of tiles (few
// outputs), that their points stay in the L2 cache.
constexpr int64_t kNestedOutputs = 3, kNestedSide = 5, kNestedPoints = 25, kMostKernelBlocks = 3;
constexpr int64_t kNestedBatch = 4 * kBlockRows;
constexpr int64_t kNestedVectors = 8;

// -- geometry --------------------------------------------------------------------------------

// Window of output pixel 0, all parities together: it reads input pixels from low to high.
struct Window {
  int64_t low, high;

  explicit Window(const NormConv2d& a) : low(a.axes[0].first), high(low + a.axes[0].taps - 1) {
    if (a.parities == 1) return;
    low = smaller<int64_t>(low, a.axes[1].first);
    const int64_t end = a.axes[1].first + a.axes[1].taps - 1;
    high = high < end ? end : high;
  }
};

template <class T>
struct Geometry {
  static constexpr int64_t kPanelChannels = kPanel<Vec<T>>;
  int64_t low, high;  // see Window
  int64_t span;       // rows in the ring: those that an output row, or a row of tiles, reads
  int64_t width;      // columns of a row in the ring
  Method method;
  bool winograd;          // output rows are made four at a time
  int64_t side;           // inputs a side of a Winograd tile
  int64_t kernel_blocks;  // a side of the kernel; 0: not nested_winograd.h
  bool few_outputs;       // vectors hold tiles
  int64_t row_advance;    // input rows from one output row, or row of tiles, to the next
  bool planar;            // rows in the ring are [channel][column], else [column][channel]
  bool pairs;             // ring and weights in bfloat16, multiplied in pairs
  int64_t pitch;          // elements from one column, or channel, to the next
  int64_t row_elements;
  int64_t panels;  // panels of the weights, per parity

  explicit Geometry(const NormConv2d& a) {
    const Window window(a);
    low = window.low, high = window.high;
    span = high - low + 1;
    const int taps = a.axes[0].taps;
    method = method_of<T>(a);
    winograd = method == Method::winograd, few_outputs = method == Method::few_outputs;
    planar = method == Method::planar, pairs = method == Method::pairs;
    side = winograd ? taps + kWinogradOutputs - 1 : 0;
    row_advance = winograd ? kWinogradOutputs : a.stride;
    const bool nested = few_outputs || method == Method::few_inputs;
    kernel_blocks = nested ? (a.kernel + kNestedOutputs - 1) / kNestedOutputs : 0;
    if (nested) span = kNestedSide;
    width = winograd ? (a.columns + kWinogradOutputs - 1) / kWinogradOutputs * kWinogradOutputs +
                           span - 1
            : nested ? (tiles(a) + kernel_blocks - 1) * kNestedOutputs + 2
                     : a.stride * (a.columns - 1) + span;
    if (winograd) span += kWinogradOutputs - 1;
    // A reflected border reads columns that a cropped output may not read.
    const int64_t reflected = smaller<int64_t>(a.w, 1 - low) - low;
    if (width < reflected) width = reflected;
    // Vectors are loaded whole, up to kPlanarVectors of them from the last column of a plane on.
    pitch = planar ? width + kPlanarVectors * kLanes<Vec<T>> : pairs ? (a.cin + 1) / 2 * 2 : a.cin;
    row_elements = ((planar ? a.cin : width) * pitch + 15) / 16 * 16;
    panels = planar || few_outputs ? 1 : (a.cout + kPanelChannels - 1) / kPanelChannels;
  }

  // Scratch of a worker: ring, one more row if pixels repeat, and an output row (transforms: see
  // their files).
  int64_t worker_elements(const NormConv2d& a) const {
    if (winograd)
      return span * row_elements + side * side * winograd_pitch(a.cin) +
             kWinogradBatch * (side * side + kWinogradOutputs * kWinogradOutputs) * kPanelChannels;
    if (kernel_blocks > 0) {
      const int64_t rows = kernel_blocks * kNestedPoints * nested_pitch(a);
      const int64_t own = few_outputs
                              ? kNestedPoints * nested_point_pitch(a) + a.cout * rows +
                                    (kNestedOutputs + 1) * kNestedOutputs * a.cout * nested_pitch(a)
                              : kNestedSide * row_elements + rows +
                                    (kNestedPoints + kNestedOutputs * kNestedOutputs) *
                                        kNestedBatch * kPanelChannels;
      return (span + 1) * row_elements + own;
    }
    return (span + 1) * row_elements + a.columns * kPanelChannels;
  }

  // False: a pass of its own writes the input of the convolution (TileGeometry: tasks do).
  bool writes_input(const NormConv2d&) const { return false; }

  int64_t tiles(const NormConv2d& a) const {
    return (a.columns + kNestedOutputs - 1) / kNestedOutputs;
  }

  // Returns the elements from one point of a row of tiles, or of their sums for one output, to the
  // next.
  int64_t nested_pitch(const NormConv2d& a) const {
    const int64_t multiple = few_outputs ? kLanes<Vec<T>> : kBlockRows;
    const int64_t count = (tiles(a) + multiple - 1) / multiple * multiple;
    if (few_outputs) return count;
    return ((count + kernel_blocks - 1) * a.cin + kLanes<Vec<T>> + 15) / 16 * 16;
  }
  // Returns the elements from one point of a batch to the next, with few outputs: see
  // winograd_pitch.
  int64_t nested_point_pitch(const NormConv2d& a) const {
    constexpr int64_t kCount = kLanes<Vec<T>>;
    return (a.cin + kCount - 1) / kCount * kCount * (kNestedVectors + 1) * kCount + 16;
  }

  // Returns the output channels of a panel of the weights.
  int64_t panel_channels(const NormConv2d& a) const {
    return planar || few_outputs ? a.cout : kPanelChannels;
  }

  int64_t panel_elements(const NormConv2d& a, int64_t row_parity, int64_t column_parity) const {
    if (winograd) return side * side * a.cin * kPanelChannels;
    if (kernel_blocks > 0)
      return kNestedPoints * kernel_blocks * kernel_blocks * a.cin * panel_channels(a);
    const int64_t depth = pairs ? pitch / 2 : a.cin;  // a pair takes the room of one float
    return int64_t(a.axes[row_parity].taps) * a.axes[column_parity].taps * depth *
           panel_channels(a);
  }
  // Returns the offset of a panel of a parity.
  int64_t panel_begin(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                      int64_t panel) const {
    int64_t begin = 0;
    for (int64_t parity = 0; parity < row_parity * a.parities + column_parity; ++parity)
      begin += panels * panel_elements(a, parity / a.parities, parity % a.parities);
    return begin + panel * panel_elements(a, row_parity, column_parity);
  }
  int64_t packed_elements(const NormConv2d& a) const {
    return panel_begin(a, a.parities - 1, a.parities - 1, panels);
  }
};

// Reads the bias of kPanel channels from `first` on, or zeros.
template <class W>
inline void read_bias(const NormConv2d& a, int64_t first, W* bias) {
  const W* given = static_cast<const W*>(a.bias);
  for (int64_t c = 0; c < kPanel<Vec<W>>; ++c)
    bias[c] = given != nullptr && first + c < a.cout ? coefficient<W>(given[first + c]) : W(0);
}

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

// -- the input -------------------------------------------------------------------------------

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
  if (!planes && !g.planar && g.pitch == a.cin && input.scale == nullptr) {  // one run
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
  if (planes == g.planar) {
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

// Ring buffer of rows of the padded input, in numbers R. Position p of the padded image (it may be
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
    const int64_t channels = g.planar ? a.cin : 1, elements = g.planar ? 1 : a.cin;
    const int64_t column_step = g.planar ? 1 : g.pitch;
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
