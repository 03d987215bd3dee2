// The input of a deferred-norm convolution on AMX tiles: rows of it in bfloat16. See conv_tiles.h.
#pragma once

#include "conv_rows.h"
#include "tiles.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

constexpr int64_t kTileDepth = 32;    // values of a row of a tile, all of one output pixel
constexpr int64_t kTileColumns = 32;  // outputs of a pair of tiles
constexpr int64_t kTileElements = kTileRows * kTileDepth;

inline int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }

// How a row of the kernel becomes products of tiles, each 16 pixels x 32 values by 32 values x 16
// outputs. `apart`: a product per kernel column and 32 channels. With few input channels the
// columns' channels stand beside each other as the values (`in_values`), with few output channels
// the columns' outputs as the outputs, which are then shifted and added (`in_outputs`).
enum class KernelColumns { apart, in_values, in_outputs };

struct TileGeometry {
  int64_t low, span;  // see Reach
  KernelColumns form;
  int64_t depth_blocks;  // products per kernel column, or per kernel row
  int64_t outputs;       // of the product

  // These need an image.
  int64_t width;     // columns of the padded image that a row of the output meets
  int64_t columns;   // of the product
  int64_t plane;     // elements of the ring's row for kTileDepth values of every column
  int64_t rows;      // in the ring: those that two rows of the output meet
  int64_t channels;  // of a pixel that lie together where rows are read and padded
  int64_t read_blocks, read_plane;  // the same of such a row

  explicit TileGeometry(const NormConv2d& a) {
    const Reach reach(a);
    low = reach.low, span = reach.high - low + 1;
    const int64_t taps = a.axes[0].taps;
    const auto tiles = [](int64_t count) { return ceil_divide(count, kTileRows); };
    const int64_t apart = taps * ceil_divide(a.cin, kTileDepth) * tiles(a.cout);
    const int64_t in_values = ceil_divide(taps * a.cin, kTileDepth) * tiles(a.cout);
    const int64_t in_outputs = ceil_divide(a.cin, kTileDepth) * tiles(taps * a.cout);
    const bool few_values = a.step == 1 && taps * a.cin <= 2 * kTileDepth && in_values < apart;
    const bool few_outputs = a.step == 1 && a.stride == 1 && taps * a.cout <= kTileColumns &&
                             in_outputs < smaller(apart, few_values ? in_values : apart);
    form = few_outputs  ? KernelColumns::in_outputs
           : few_values ? KernelColumns::in_values
                        : KernelColumns::apart;
    const bool beside = form == KernelColumns::in_values;
    depth_blocks = ceil_divide(beside ? taps * a.cin : a.cin, kTileDepth);
    outputs = few_outputs ? taps * a.cout : a.cout;

    width = a.stride * (a.columns - 1) + span;
    columns = a.columns + (few_outputs ? taps - 1 : 0);
    rows = span + a.stride;
    // Tiles are 16 pixels whatever is needed of them; and reflecting may take pixels that a
    // cropped output doesn't meet.
    const int64_t whole = ceil_divide(columns, kTileRows) * kTileRows;
    const int64_t met = a.stride * (whole - 1) + span, reflected = 1 - 2 * low;
    const int64_t held = met < reflected ? reflected : met;
    channels = beside ? a.cin : kTileDepth;
    read_blocks = beside ? 1 : depth_blocks;
    read_plane = held * channels;
    plane = beside ? whole * kTileDepth : read_plane;
  }

  // Products of tiles for a row of pixels and 16 outputs.
  int64_t steps(const NormConv2d& a, int64_t row_parity, int64_t column_parity) const {
    const int64_t kernel_columns =
        form == KernelColumns::apart ? a.axes[column_parity].taps : int64_t(1);
    return a.axes[row_parity].taps * depth_blocks * kernel_columns;
  }
  int64_t output_blocks() const { return ceil_divide(outputs, kTileColumns); }
  // Where the weights of a block of outputs begin. All of them have two tiles of outputs, but for
  // the last, which may have one.
  int64_t weights_begin(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                        int64_t block) const {
    int64_t begin = 0;
    for (int64_t parity = 0; parity < row_parity * a.step + column_parity; ++parity)
      begin += steps(a, parity / a.step, parity % a.step) * ceil_divide(outputs, kTileRows);
    return (begin + block * 2 * steps(a, row_parity, column_parity)) * kTileElements;
  }
  int64_t packed_elements(const NormConv2d& a) const {
    const int64_t last = a.step - 1;
    return (weights_begin(a, last, last, 0) +
            steps(a, last, last) * ceil_divide(outputs, kTileRows) * kTileElements) /
           2;
  }

  int64_t row_elements() const { return depth_blocks * plane; }
  // A row as it is read, where it isn't read into the ring; whole vectors are read of its end.
  int64_t read_elements() const { return read_blocks * read_plane + 2 * kTileDepth; }
  int64_t ring_elements() const {
    return ceil_divide(rows * row_elements() + 2 * read_elements(), 32) * 32;
  }
  // Scratch of a task, in floats: the ring, what is known of its channels, and a block's sums.
  int64_t worker_elements(const NormConv2d& a) const;
};

// The rows of the padded image that two rows of the output meet, each [32 values][column][value].
// Owned by a task.
struct TileRing {
  const NormConv2d& a;
  const Input<BFloat16>& input;
  const TileGeometry& g;
  int64_t n;
  BFloat16* memory;                    // ring_elements()
  int64_t next = -(int64_t(1) << 40);  // the first row that was not read yet

  TileRing(const NormConv2d& a, const Input<BFloat16>& input, const TileGeometry& g, int64_t n,
           BFloat16* memory)
      : a(a), input(input), g(g), n(n), memory(memory) {
    // Channels beyond the last are multiplied with weights of zero: they must be numbers.
    if (a.cin % g.channels != 0) std::memset(memory, 0, g.ring_elements() * sizeof(BFloat16));
  }

  BFloat16* row(int64_t position) const {
    return memory + (position - g.low) % g.rows * g.row_elements();
  }

  // Reads what `count` rows of the output from o on meet and is not there yet.
  void advance(int64_t o, int64_t count) {
    const int64_t first = a.stride * o + g.low, end = first + a.stride * (count - 1) + g.span;
    for (int64_t position = next < first ? first : next; position < end; ++position)
      fill(source(a, position, a.h), row(position));
    next = end;
  }

  void fill(int64_t from, BFloat16* out) const {
    if (from < 0) {
      std::memset(out, 0, g.row_elements() * sizeof(BFloat16));
      return;
    }
    const bool beside = g.form == KernelColumns::in_values, repeated = a.repeats > 1;
    BFloat16* spare = memory + g.rows * g.row_elements();
    BFloat16* padded = beside ? spare + g.read_elements() : out;
    const int64_t inside = repeated ? 0 : -g.low;  // where column 0 of x goes
    const int64_t met = g.width - inside < inside + 1 ? inside + 1 : g.width - inside;
    const int64_t count = repeated ? a.w : smaller(a.w, met);
    BFloat16* pixels = repeated ? spare : padded + inside * g.channels;
    for_activation(input.activation, [&](auto activation) {
      read<decltype(activation)::value>(from, count, pixels);
    });
    for (int64_t i = 0; i < g.width; ++i) {
      if (!repeated && i >= inside && i < inside + count) continue;
      const int64_t column = source(a, i + g.low, a.w);
      for (int64_t block = 0; block < g.read_blocks; ++block)
        for (int64_t c = 0; c < g.channels; ++c)
          padded[block * g.read_plane + i * g.channels + c] =
              column < 0 ? BFloat16{} : pixels[block * g.read_plane + column * g.channels + c];
    }
    if (beside) spread(padded, out);
  }

  // Pixels [0, columns) of a row of x, `channels` of each together.
  template <Activation A>
  void read(int64_t row, int64_t columns, BFloat16* out) const {
    const bool planes = a.layout == Layout::contiguous;
    const int64_t pixel = (n * a.h + row) * a.w;
    if (!planes && g.channels == a.cin && input.scale == nullptr) {  // the row as it lies
      read_run<A>(input, pixel * a.cin, columns * a.cin, 0, 0, out);
      return;
    }
    for (int64_t block = 0; block < g.read_blocks; ++block, out += g.read_plane) {
      const int64_t first = block * g.channels, count = smaller(g.channels, a.cin - first);
      const int64_t channel = n * a.cin + first;
      if (planes) {
        const auto run = [&](int64_t c, int64_t from, int64_t length, float* to) {
          read_run<A>(input, ((channel + c) * a.h + row) * a.w + from, length, channel + c, 0, to);
        };
        read_across<VecF>(count, columns, run, g.channels, out);
      } else if (count == kTileDepth && input.bytes == nullptr) {
        read_whole_blocks<A>(pixel * a.cin + first, columns, channel, out);
      } else {
        for (int64_t i = 0; i < columns; ++i)
          read_run<A>(input, (pixel + i) * a.cin + first, count, channel, 1, out + i * g.channels);
      }
    }
  }

  // 32 channels from `channel` on of `columns` pixels. Pairs of vectors are rounded and joined as
  // they were separated, in any order.
  template <Activation A>
  void read_whole_blocks(int64_t from, int64_t columns, int64_t channel, BFloat16* out) const {
    constexpr int64_t kStep = kPairLanes<VecF>;
    for (int64_t c = 0; c < kTileDepth; c += kStep) {
      Pair<VecF> scale{}, shift{};
      if (input.scale != nullptr) {
        float lanes[2][kStep];
        for (int64_t j = 0; j < kStep; ++j) {
          const int64_t element = channel + c + element_of_lane<BFloat16>(int(j));
          lanes[0][j] = input.scale[element], lanes[1][j] = input.shift[element];
        }
        scale = load_lanes<VecF>(lanes[0]), shift = load_lanes<VecF>(lanes[1]);
      }
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t at = from + i * a.cin + c;
        const Pair<VecF> x = load_pair(input.x + at);
        Pair<VecF> added{};
        if (input.residual != nullptr) added = load_pair(input.residual + at);
        const VecF even = input.unrounded<A>(x.a, added.a, scale.a, shift.a);
        const VecF odd = input.unrounded<A>(x.b, added.b, scale.b, shift.b);
        store_pair(out + i * kTileDepth + c, Pair<VecF>{even, odd}, false);
      }
    }
  }

  // For every column of the output, the channels of all columns of the kernel beside each other,
  // and zeros: a pixel that isn't met could be no number.
  void spread(const BFloat16* padded, BFloat16* out) const {
    constexpr int64_t kStep = VECTOR_BYTES / sizeof(BFloat16);
    const int64_t values = a.axes[0].taps * a.cin;
    for (int64_t first = 0; first < g.row_elements() / g.plane * kTileDepth; first += kStep) {
      BFloat16 ones[kStep];
      for (int64_t j = 0; j < kStep; ++j) ones[j].bits = first + j < values ? 0xffff : 0;
      VecU mask;
      std::memcpy(&mask, ones, sizeof(mask));
      BFloat16* to = out + first / kTileDepth * g.plane + first % kTileDepth;
      for (int64_t i = 0; i < a.columns; ++i) {
        VecU bits;
        std::memcpy(&bits, padded + i * a.stride * a.cin + first, sizeof(bits));
        bits &= mask;
        std::memcpy(to + i * kTileDepth, &bits, sizeof(bits));
      }
    }
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
#endif
