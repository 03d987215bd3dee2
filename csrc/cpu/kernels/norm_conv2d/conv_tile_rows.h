// The input of a deferred-norm convolution on AMX tiles: rows of it in bfloat16. See conv_tiles.h.
#pragma once

#include "../vector/tiles.h"
#include "conv_rows.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

inline int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }

// How a row of the kernel becomes products of tiles, each 16 pixels x 32 values by 32 values x 16
// outputs. `apart`: a product per kernel column and 32 channels. With few input channels the
// columns' channels stand beside each other as the values (`in_values`), with few output channels
// the columns' outputs as the outputs, which are then shifted and added (`in_outputs`).
enum class KernelColumns { apart, in_values, in_outputs };

struct TileGeometry {
  int64_t low, span;  // see Window
  KernelColumns form;
  int64_t depth_blocks;  // products per kernel column, or per kernel row
  int64_t outputs;       // of the product

  // These need an image.
  int64_t width;     // columns of the padded image that a row of the output meets
  int64_t columns;   // of the product
  int64_t plane;     // elements of the ring's row for kTileDepth values of every column
  int64_t rows;      // in the ring: those that two rows of the output meet, and the next two
  int64_t channels;  // of a pixel that lie together where rows are read and padded
  int64_t read_blocks, read_plane;  // the same of such a row

  explicit TileGeometry(const NormConv2d& a) {
    const Window window(a);
    low = window.low, span = window.high - low + 1;
    const int64_t taps = a.axes[0].taps;
    const auto tiles = [](int64_t count) { return ceil_divide(count, kTileRows); };
    const int64_t apart = taps * ceil_divide(a.cin, kTileDepth) * tiles(a.cout);
    const int64_t in_values = ceil_divide(taps * a.cin, kTileDepth) * tiles(a.cout);
    const int64_t in_outputs = ceil_divide(a.cin, kTileDepth) * tiles(taps * a.cout);
    const bool few_values = a.parities == 1 && taps * a.cin <= 2 * kTileDepth && in_values < apart;
    const bool few_outputs = a.parities == 1 && a.stride == 1 && taps * a.cout <= kTilePanel &&
                             in_outputs < smaller(apart, few_values ? in_values : apart);
    form = few_outputs  ? KernelColumns::in_outputs
           : few_values ? KernelColumns::in_values
                        : KernelColumns::apart;
    const bool beside = form == KernelColumns::in_values;
    depth_blocks = ceil_divide(beside ? taps * a.cin : a.cin, kTileDepth);
    outputs = few_outputs ? taps * a.cout : a.cout;

    width = a.stride * (a.columns - 1) + span;
    columns = a.columns + (few_outputs ? taps - 1 : 0);
    rows = span + 3 * a.stride;
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
  int64_t panels() const { return ceil_divide(outputs, kTilePanel); }
  // Where the weights of a block of outputs begin. All of them have two tiles of outputs, but for
  // the last, which may have one.
  int64_t weights_begin(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                        int64_t block) const {
    int64_t begin = 0;
    for (int64_t parity = 0; parity < row_parity * a.parities + column_parity; ++parity)
      begin += steps(a, parity / a.parities, parity % a.parities) * ceil_divide(outputs, kTileRows);
    return (begin + block * 2 * steps(a, row_parity, column_parity)) * kTileElements;
  }
  int64_t packed_elements(const NormConv2d& a) const {
    const int64_t last = a.parities - 1;
    return (weights_begin(a, last, last, 0) +
            steps(a, last, last) * ceil_divide(outputs, kTileRows) * kTileElements) /
           2;
  }

  // Tasks write the input of the convolution as they read it, each the rows at its own outputs, if
  // these are the image's rows and nothing else reads what is written.
  bool writes_input(const NormConv2d& a) const {
    return a.input != nullptr && a.input != a.x && a.input != a.residual && !a.bytes_in &&
           a.layout == Layout::channels_last && form == KernelColumns::apart &&
           a.cin % kTileDepth == 0 && a.stride == 1 && a.parities == 1 && a.repeats == 1 &&
           a.rows == a.h && a.columns == a.w && low <= 0 && low + span > 0;
  }

  int64_t row_elements() const { return depth_blocks * plane; }
  // A row as it is read, where it isn't read into the ring; whole vectors are read of its end.
  int64_t read_elements() const { return read_blocks * read_plane + 2 * kTileDepth; }
  int64_t ring_elements() const {
    return ceil_divide(rows * row_elements() + 2 * read_elements(), 32) * 32;
  }
  // Columns that are spread in a piece, and pixels of a whole block of channels that are read in
  // one.
  static constexpr int64_t kSpreadPiece = 64, kPiece = 8;
  int64_t read_piece(const NormConv2d& a) const {
    if (reads_whole_blocks(a)) return kPiece;
    return ceil_divide(kTileElements / channels, kTileRows) * kTileRows;
  }
  bool reads_whole_blocks(const NormConv2d& a) const {
    return a.layout == Layout::channels_last && !a.bytes_in && channels == kTileDepth &&
           a.cin % kTileDepth == 0;
  }
  // Pieces of a row: to read, to pad and to spread it.
  int64_t pieces(const NormConv2d& a) const {
    const int64_t spread = form == KernelColumns::in_values ? ceil_divide(width, kSpreadPiece) : 0;
    return read_blocks * ceil_divide(width, read_piece(a)) + 1 + spread;
  }
  int64_t coefficient_elements(const NormConv2d& a) const {
    return ceil_divide(2 * a.cin, 16) * 16;
  }
  // Scratch of a task, in floats: the ring, what is known of its channels, and a block's sums.
  int64_t worker_elements(const NormConv2d& a) const;
};

// The rows of the padded image that the output's rows at hand meet, each [block of 32
// values][column][value], and those that the next ones will. Owned by a task, and read piece by
// piece between products.
struct TileRing {
  const NormConv2d& a;
  const Input<BFloat16>& input;
  const TileGeometry& g;
  int64_t n;
  BFloat16* memory;        // ring_elements()
  float* scale;            // coefficient_elements(): scale and shift in the order of a pair's lanes
  int64_t kept, kept_end;  // rows of x that are written to a.input as well
  int64_t next, end;       // the row that is read, and that up to which rows are wanted

  // The row that is being read.
  bool opened = false;
  int64_t from;                      // of x
  int64_t count;                     // its pixels
  BFloat16 *out, *columns, *pixels;  // in the ring; padded; where pixel 0 goes
  int64_t block, column;             // how far it has come: of what is read, then of what is spread
  bool padded;

  // Pixels of a block of 32 channels that are still to be read, if whole blocks are read.
  int64_t left = 0;
  const BFloat16 *x, *added;
  BFloat16 *to, *copy;  // copy: of the input; null: none
  const float* factors;

  // For output rows [o, last).
  TileRing(const NormConv2d& a, const Input<BFloat16>& input, const TileGeometry& g, int64_t n,
           int64_t o, int64_t last, BFloat16* memory, float* scale)
      : a(a),
        input(input),
        g(g),
        n(n),
        memory(memory),
        scale(scale),
        kept(o),
        kept_end(g.writes_input(a) ? last : o),
        next(a.stride * o + g.low),
        end(next) {
    // Channels beyond the last are multiplied with weights of zero: they must be numbers.
    if (a.cin % g.channels != 0) std::memset(memory, 0, g.ring_elements() * sizeof(BFloat16));
    constexpr int64_t kStep = kPairLanes<VecF>;
    for (int64_t i = 0; i < a.cin / kStep * kStep; ++i) {
      const int64_t channel = n * a.cin + i / kStep * kStep + element_of_lane<BFloat16>(i % kStep);
      const bool scaled = input.scale != nullptr;  // else z * 1 - 0 is z, also where z is -0
      scale[i] = scaled ? input.scale[channel] : 1.0f;
      scale[a.cin + i] = scaled ? input.shift[channel] : -0.0f;
    }
  }

  BFloat16* row(int64_t position) const {
    return memory + (position - g.low) % g.rows * g.row_elements();
  }

  // Sets what is to be read: what the output's rows before o meet.
  void want(int64_t o) { end = a.stride * (o - 1) + g.low + g.span; }

  void finish() {
    while (next < end) advance();
  }

  // The next piece, if there is one. Not inlined: the loop over tiles is short without it.
  [[gnu::noinline]] void advance() {
    if (left >= g.kPiece)
      read_pixels<g.kPiece>(g.kPiece);
    else
      begin();
  }

  // What comes up once in a row, or once in a block of it.
  [[gnu::noinline]] void begin() {
    if (next == end) return;
    if (left > 0) return read_pixels<0>(left);
    if (!opened && !open()) return;
    if (block < g.read_blocks) {
      if (g.reads_whole_blocks(a)) return begin_block();
      const int64_t size = smaller(g.read_piece(a), count - column);
      for_activation(input.activation,
                     [&](auto activation) { read<decltype(activation)::value>(size); });
      column += size;
      if (column == count) column = 0, ++block;
      return;
    }
    if (!padded) {
      pad();
      padded = true;
      if (g.form == KernelColumns::in_values) return;
    }
    if (g.form == KernelColumns::in_values) {
      const int64_t size = smaller(g.kSpreadPiece, a.columns - column);
      spread(size);
      column += size;
      if (column < a.columns) return;
    }
    opened = false, ++next;
  }

  // Prepares a row. One of zeros is complete: nothing is left to read of it.
  bool open() {
    from = source(a, next, a.h);
    out = row(next);
    if (from < 0) {
      std::memset(out, 0, g.row_elements() * sizeof(BFloat16));
      ++next;
      return false;
    }
    const bool repeated = a.repeats > 1;
    BFloat16* spare = memory + g.rows * g.row_elements();
    columns = g.form == KernelColumns::in_values ? spare + g.read_elements() : out;
    const int64_t inside = repeated ? 0 : -g.low;  // where column 0 of x goes
    const int64_t met = g.width - inside < inside + 1 ? inside + 1 : g.width - inside;
    count = repeated ? a.w : smaller(a.w, met);
    pixels = repeated ? spare : columns + inside * g.channels;
    block = column = 0;
    opened = true, padded = false;
    return true;
  }

  // Prepares the pixels of the next block of channels, and reads the first ones.
  void begin_block() {
    const int64_t channel = block * kTileDepth, at = (n * a.h + from) * a.w * a.cin + channel;
    x = input.x + at;
    added = input.residual != nullptr ? input.residual + at : nullptr;
    const bool keeps = next == from && from >= kept && from < kept_end;
    copy = keeps ? static_cast<BFloat16*>(a.input) + at : nullptr;
    to = pixels + block * g.read_plane;
    factors = scale + channel;
    left = count, ++block;
    if (left >= g.kPiece) read_pixels<g.kPiece>(g.kPiece);
  }

  // Fills the columns that are not read as they lie: those of the borders, or all.
  void pad() const {
    const bool repeated = a.repeats > 1;
    const int64_t inside = repeated ? 0 : -g.low, filled = repeated ? 0 : count;
    for (int64_t i = inside == 0 ? filled : 0; i < g.width; ++i) {
      const int64_t column = source(a, i + g.low, a.w);
      for (int64_t part = 0; part < g.read_blocks; ++part) {
        BFloat16* to = columns + part * g.read_plane + i * g.channels;
        if (column < 0)
          std::memset(to, 0, g.channels * sizeof(BFloat16));
        else
          std::memcpy(to, pixels + part * g.read_plane + column * g.channels,
                      g.channels * sizeof(BFloat16));
      }
      if (i + 1 == inside) i += filled;
    }
  }

  // `size` pixels from `column` on, of the channels of a block.
  template <Activation A>
  void read(int64_t size) const {
    const int64_t first = block * g.channels, channels = smaller(g.channels, a.cin - first);
    const int64_t channel = n * a.cin + first;
    BFloat16* to = pixels + block * g.read_plane + column * g.channels;
    const int64_t at = ((n * a.h + from) * a.w + column) * a.cin + first;
    if (a.layout == Layout::contiguous) {
      const auto run = [&](int64_t c, int64_t offset, int64_t length, float* values) {
        read_run<A>(input, ((channel + c) * a.h + from) * a.w + column + offset, length,
                    channel + c, 0, values);
      };
      read_across<VecF>(channels, size, run, g.channels, to);
    } else if (channels == a.cin && g.channels == a.cin && input.scale == nullptr) {
      read_run<A>(input, at, size * a.cin, 0, 0, to);  // the row as it lies
    } else {
      for (int64_t i = 0; i < size; ++i)
        read_run<A>(input, at + i * a.cin, channels, channel, 1, to + i * g.channels);
    }
  }

  // The next kCount or, for 0, `count` pixels of a block of channels.
  template <int64_t kCount>
  void read_pixels(int64_t count) {
    for_activation(input.activation, [&](auto activation) {
      constexpr Activation A = decltype(activation)::value;
      if (added == nullptr && copy == nullptr)
        read_pixels<kCount, A, false, false>(count);
      else if (copy == nullptr)
        read_pixels<kCount, A, true, false>(count);
      else if (added == nullptr)
        read_pixels<kCount, A, false, true>(count);
      else
        read_pixels<kCount, A, true, true>(count);
    });
  }

  // Pairs of vectors are joined as they were separated, in any order.
  template <int64_t kCount, Activation A, bool kAdds, bool kKeeps>
  void read_pixels(int64_t count) {
    if constexpr (kCount > 0) count = kCount;
    constexpr int64_t kStep = kPairLanes<VecF>;
    const int64_t pitch = a.cin;
    const float slope = input.negative_slope;
    for (int64_t c = 0; c < kTileDepth; c += kStep) {
      const Pair<VecF> factor = load_lanes<VecF>(factors + c);
      const Pair<VecF> addend = load_lanes<VecF>(factors + a.cin + c);
#pragma GCC unroll 8
      for (int64_t i = 0; i < count; ++i) {
        const Pair<VecF> z = load_pair(x + i * pitch + c);
        VecF even = activate<A>(multiply_add(z.a, factor.a, addend.a), slope);
        VecF odd = activate<A>(multiply_add(z.b, factor.b, addend.b), slope);
        if constexpr (kAdds) {
          const Pair<VecF> more = load_pair(added + i * pitch + c);
          even += more.a, odd += more.b;
        }
        const Bits bits = bits_of_pair(even, odd);
        std::memcpy(to + i * kTileDepth + c, &bits, sizeof(bits));
        if constexpr (kKeeps) std::memcpy(copy + i * pitch + c, &bits, sizeof(bits));
      }
    }
    x += count * pitch, to += count * kTileDepth, left -= count;
    if constexpr (kAdds) added += count * pitch;
    if constexpr (kKeeps) copy += count * pitch;
  }

  // For `size` columns of the output from `column` on, the channels of all columns of the kernel
  // beside each other, and zeros: a pixel that isn't met could be no number.
  void spread(int64_t size) const {
    constexpr int64_t kStep = VECTOR_BYTES / sizeof(BFloat16);
    const int64_t values = a.axes[0].taps * a.cin;
    const BFloat16* first_column = columns + column * a.stride * a.cin;
    for (int64_t first = 0; first < g.depth_blocks * kTileDepth; first += kStep) {
      BFloat16 ones[kStep];
      for (int64_t j = 0; j < kStep; ++j) ones[j].bits = first + j < values ? 0xffff : 0;
      VecU mask;
      std::memcpy(&mask, ones, sizeof(mask));
      BFloat16* to = out + column * kTileDepth + first / kTileDepth * g.plane + first % kTileDepth;
      for (int64_t i = 0; i < size; ++i) {
        VecU bits;
        std::memcpy(&bits, first_column + i * a.stride * a.cin + first, sizeof(bits));
        bits &= mask;
        std::memcpy(to + i * kTileDepth, &bits, sizeof(bits));
      }
    }
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
#endif
