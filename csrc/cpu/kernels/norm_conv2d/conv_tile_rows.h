// Input of a deferred-norm convolution on AMX tiles: a ring buffer of rows in bfloat16, which is
// the prologue of the software pipeline. See conv_tiles.h.
#pragma once

#include "../vector/tiles.h"
#include "conv_rows.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

// Forms of a kernel row as products of AMX tiles, each 16 pixels x 32 values by 32 values x 16
// outputs:
//
//   apart        a product per kernel column and 32 input channels
//   in_values    few input channels: im2col of a kernel row, the columns' channels are the values
//   in_outputs   few output channels: the columns' outputs are the outputs; the epilogue
//                shifts them by their columns and adds them up
enum class KernelColumns { apart, in_values, in_outputs };

// Sizes of a layer on AMX tiles. A depth block is 32 values, the depth of a tile: 32 input
// channels, or 32 values of a kernel row (in_values). The layout of a row of the ring is
// [depth block][column][32 values].
//
// Columns of a row, here for a kernel of 3 with padding 1 (low = -1, span = 3) and stride 1:
//
//   pixel of x      -1   0   1   2  ...  w-1   w  |  ...
//   column           0   1   2   3  ...   w   w+1 |  ...
//                   [ span  ]                     output pixel 0 reads these, from `low` on
//                   [---------- width ----------]          an output row reads these: filled
//                   [--------------- held ---------------] room in the row
//
// `held` is larger because a tile has 16 pixels, however few the outputs are: those beyond are
// computed, but never stored.
struct TileGeometry {
  int64_t low, span;  // see Window; span counts columns and rows
  KernelColumns form;
  int64_t depth_blocks;  // per kernel column, or per kernel row
  int64_t outputs;       // columns of the product: Cout, or Cout per kernel column

  // Sizes that need an image.
  int64_t width;           // columns that an output row reads
  int64_t columns;         // pixels of the product: more than the output's for in_outputs
  int64_t block_elements;  // a depth block of a row in the ring
  int64_t rows;      // in the ring: those that two output rows read, and those of the next two
  int64_t channels;  // values per column while a row is read and padded: 32, or Cin for in_values
  int64_t read_blocks, read_block_elements;  // depth blocks of such a row, and their elements

  explicit TileGeometry(const NormConv2d& a) {
    const Window window(a);
    low = window.low, span = window.high - low + 1;
    const int64_t taps = a.axes[0].taps;
    const auto tiles = [](int64_t count) { return ceil_divide(count, kTileRows); };
    // Products of tiles in each form.
    const int64_t of_apart = taps * ceil_divide(a.cin, kTileDepth) * tiles(a.cout);
    const int64_t of_values = ceil_divide(taps * a.cin, kTileDepth) * tiles(a.cout);
    const int64_t of_outputs = ceil_divide(a.cin, kTileDepth) * tiles(taps * a.cout);
    const bool few_values =
        a.parities == 1 && taps * a.cin <= 2 * kTileDepth && of_values < of_apart;
    const bool in_outputs = a.parities == 1 && a.stride == 1 && taps * a.cout <= kTilePanel &&
                            of_outputs < smaller(of_apart, few_values ? of_values : of_apart);
    const bool in_values = few_values && !in_outputs;
    form = in_outputs  ? KernelColumns::in_outputs
           : in_values ? KernelColumns::in_values
                       : KernelColumns::apart;
    depth_blocks = ceil_divide(in_values ? taps * a.cin : a.cin, kTileDepth);
    outputs = in_outputs ? taps * a.cout : a.cout;

    width = a.stride * (a.columns - 1) + span;
    columns = a.columns + (in_outputs ? taps - 1 : 0);
    rows = span + 3 * a.stride;
    // A reflected border reads columns that a cropped output may not read.
    const int64_t whole = ceil_divide(columns, kTileRows) * kTileRows;
    const int64_t tiled = a.stride * (whole - 1) + span, reflected = 1 - 2 * low;
    const int64_t held = tiled < reflected ? reflected : tiled;
    channels = in_values ? a.cin : kTileDepth;
    read_blocks = in_values ? 1 : depth_blocks;
    read_block_elements = held * channels;
    block_elements = in_values ? whole * kTileDepth : read_block_elements;
  }

  // K steps of a register block.
  int64_t steps(const NormConv2d& a, int64_t row_parity, int64_t column_parity) const {
    const int64_t kernel_columns =
        form == KernelColumns::apart ? a.axes[column_parity].taps : int64_t(1);
    return a.axes[row_parity].taps * depth_blocks * kernel_columns;
  }
  int64_t panels() const { return ceil_divide(outputs, kTilePanel); }
  // Offset of a panel of the weights. A panel has two tiles per K step; the last may have one.
  int64_t weights_begin(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                        int64_t panel) const {
    int64_t begin = 0;
    for (int64_t parity = 0; parity < row_parity * a.parities + column_parity; ++parity)
      begin += steps(a, parity / a.parities, parity % a.parities) * ceil_divide(outputs, kTileRows);
    return (begin + panel * 2 * steps(a, row_parity, column_parity)) * kTileElements;
  }
  int64_t packed_elements(const NormConv2d& a) const {
    const int64_t last = a.parities - 1;
    return (weights_begin(a, last, last, 0) +
            steps(a, last, last) * ceil_divide(outputs, kTileRows) * kTileElements) /
           2;
  }

  // Tells whether tasks write the normalised input: each the rows with its output rows' numbers.
  // This needs outputs of x's size, and memory that no other task reads.
  bool writes_input(const NormConv2d& a) const {
    return a.input != nullptr && a.input != a.x && a.input != a.residual && !a.bytes_in &&
           a.layout == Layout::channels_last && form == KernelColumns::apart &&
           a.cin % kTileDepth == 0 && a.stride == 1 && a.parities == 1 && a.repeats == 1 &&
           a.rows == a.h && a.columns == a.w && low <= 0 && low + span > 0;
  }

  int64_t row_elements() const { return depth_blocks * block_elements; }
  // Row that is read outside the ring, to be spread into it; loads of whole vectors pass its end.
  int64_t read_elements() const { return read_blocks * read_block_elements + 2 * kTileDepth; }
  int64_t ring_elements() const {
    return ceil_divide(rows * row_elements() + 2 * read_elements(), 32) * 32;
  }
  // Pieces: columns that one spreads, and pixels of a whole depth block that one reads.
  static constexpr int64_t kSpreadPiece = 64, kPiece = 8;
  int64_t read_piece(const NormConv2d& a) const {
    if (reads_whole_blocks(a)) return kPiece;
    return ceil_divide(kTileElements / channels, kTileRows) * kTileRows;
  }
  bool reads_whole_blocks(const NormConv2d& a) const {
    return a.layout == Layout::channels_last && !a.bytes_in && channels == kTileDepth &&
           a.cin % kTileDepth == 0;
  }
  // Returns the pieces of a row: to read, to pad and to spread it.
  int64_t pieces(const NormConv2d& a) const {
    const int64_t spread = form == KernelColumns::in_values ? ceil_divide(width, kSpreadPiece) : 0;
    return read_blocks * ceil_divide(width, read_piece(a)) + 1 + spread;
  }
  int64_t coefficient_elements(const NormConv2d& a) const {
    return ceil_divide(2 * a.cin, 16) * 16;
  }
  // Returns the scratch of a worker, in floats: ring, coefficients and TileSums.
  int64_t worker_elements(const NormConv2d& a) const;
};

// Ring buffer of rows of the padded input, each [depth block][column][value]: those that the
// current output rows read, and those of the next two. A task owns it, and reads a row piece by
// piece between tile products.
struct TileRing {
  const NormConv2d& a;
  const Input<BFloat16>& input;
  const TileGeometry& g;
  int64_t n;
  BFloat16* memory;  // ring_elements()
  float* scale;      // coefficient_elements(): scale and shift, in the lanes of vector pairs
  int64_t copied, copied_end;  // rows of x that are written to a.input as well
  int64_t next, end;           // row at work; end of the rows that are wanted

  // The row at work.
  bool opened = false;
  int64_t from;           // row of x
  int64_t count;          // pixels of it that are read
  BFloat16* ring_row;     // its memory in the ring
  BFloat16* padded_row;   // ring_row, or for in_values scratch that is spread to it
  BFloat16* first_pixel;  // target of pixel 0 of x: in padded_row, or in scratch if pixels repeat
  int64_t block, column;  // progress of reading, then of spreading
  bool is_padded;

  // Pixels of a depth block that are still to be read, if whole depth blocks are read.
  int64_t left = 0;
  const BFloat16 *x, *added;
  BFloat16 *target, *copy;  // next pixel in the row at work; in a.input, or null
  const float* factors;

  // Makes the ring for output rows [o, last).
  TileRing(const NormConv2d& a, const Input<BFloat16>& input, const TileGeometry& g, int64_t n,
           int64_t o, int64_t last, BFloat16* memory, float* scale)
      : a(a),
        input(input),
        g(g),
        n(n),
        memory(memory),
        scale(scale),
        copied(o),
        copied_end(g.writes_input(a) ? last : o),
        next(a.stride * o + g.low),
        end(next) {
    // Clears channels beyond the last: their weights are zero, but NaN would stay NaN.
    if (a.cin % g.channels != 0) std::memset(memory, 0, g.ring_elements() * sizeof(BFloat16));
    constexpr int64_t kPairElements = kPairLanes<VecF>;
    for (int64_t i = 0; i < a.cin / kPairElements * kPairElements; ++i) {
      const int64_t channel = n * a.cin + i / kPairElements * kPairElements +
                              element_of_lane<BFloat16>(i % kPairElements);
      const bool scaled = input.scale != nullptr;  // if not, z * 1 - 0 is z, also for -0
      scale[i] = scaled ? input.scale[channel] : 1.0f;
      scale[a.cin + i] = scaled ? input.shift[channel] : -0.0f;
    }
  }

  BFloat16* row(int64_t position) const {
    return memory + (position - g.low) % g.rows * g.row_elements();
  }

  // Sets the rows that are wanted: all that output rows before o read.
  void want(int64_t o) { end = a.stride * (o - 1) + g.low + g.span; }

  void finish() {
    while (next < end) advance();
  }

  // Runs the next piece, if there is one. Not inlined: without it the loop over tiles is short.
  [[gnu::noinline]] void advance() {
    if (left >= g.kPiece)
      read_pixels<g.kPiece>(g.kPiece);
    else
      begin();
  }

  // Runs the pieces that come once in a row, or once in a depth block.
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
    if (!is_padded) {
      pad();
      is_padded = true;
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

  // Prepares a row. Returns false for a row of zeros, which is then complete.
  bool open() {
    from = source(a, next, a.h);
    ring_row = row(next);
    if (from < 0) {
      std::memset(ring_row, 0, g.row_elements() * sizeof(BFloat16));
      ++next;
      return false;
    }
    const bool repeated = a.repeats > 1;
    BFloat16* spare = memory + g.rows * g.row_elements();
    padded_row = g.form == KernelColumns::in_values ? spare + g.read_elements() : ring_row;
    const int64_t inside = repeated ? 0 : -g.low;  // column that gets column 0 of x
    const int64_t needed = g.width - inside < inside + 1 ? inside + 1 : g.width - inside;
    count = repeated ? a.w : smaller(a.w, needed);
    first_pixel = repeated ? spare : padded_row + inside * g.channels;
    block = column = 0;
    opened = true, is_padded = false;
    return true;
  }

  // Prepares the next depth block, and reads its first pixels.
  void begin_block() {
    const int64_t channel = block * kTileDepth, at = (n * a.h + from) * a.w * a.cin + channel;
    x = input.x + at;
    added = input.residual != nullptr ? input.residual + at : nullptr;
    const bool keeps = next == from && from >= copied && from < copied_end;
    copy = keeps ? static_cast<BFloat16*>(a.input) + at : nullptr;
    target = first_pixel + block * g.read_block_elements;
    factors = scale + channel;
    left = count, ++block;
    if (left >= g.kPiece) read_pixels<g.kPiece>(g.kPiece);
  }

  // Fills the columns that are not read from x: those of the borders, or all.
  void pad() const {
    const bool repeated = a.repeats > 1;
    const int64_t inside = repeated ? 0 : -g.low, filled = repeated ? 0 : count;
    for (int64_t i = inside == 0 ? filled : 0; i < g.width; ++i) {
      const int64_t pixel = source(a, i + g.low, a.w);
      for (int64_t part = 0; part < g.read_blocks; ++part) {
        BFloat16* out = padded_row + part * g.read_block_elements + i * g.channels;
        if (pixel < 0)
          std::memset(out, 0, g.channels * sizeof(BFloat16));
        else
          std::memcpy(out, first_pixel + part * g.read_block_elements + pixel * g.channels,
                      g.channels * sizeof(BFloat16));
      }
      if (i + 1 == inside) i += filled;
    }
  }

  // Reads `size` pixels of a depth block, from `column` on.
  template <Activation A>
  void read(int64_t size) const {
    const int64_t first = block * g.channels, channels = smaller(g.channels, a.cin - first);
    const int64_t channel = n * a.cin + first;
    BFloat16* out = first_pixel + block * g.read_block_elements + column * g.channels;
    const int64_t at = ((n * a.h + from) * a.w + column) * a.cin + first;
    if (a.layout == Layout::contiguous) {
      const auto run = [&](int64_t c, int64_t offset, int64_t length, float* values) {
        read_run<A>(input, ((channel + c) * a.h + from) * a.w + column + offset, length,
                    channel + c, 0, values);
      };
      read_across<VecF>(channels, size, run, g.channels, out);
    } else if (channels == a.cin && g.channels == a.cin && input.scale == nullptr) {
      read_run<A>(input, at, size * a.cin, 0, 0, out);  // one run
    } else {
      for (int64_t i = 0; i < size; ++i)
        read_run<A>(input, at + i * a.cin, channels, channel, 1, out + i * g.channels);
    }
  }

  // Reads the next kCount pixels or, for kCount 0, `size` pixels of a depth block.
  template <int64_t kCount>
  void read_pixels(int64_t size) {
    for_activation(input.activation, [&](auto activation) {
      constexpr Activation A = decltype(activation)::value;
      if (added == nullptr && copy == nullptr)
        read_pixels<kCount, A, false, false>(size);
      else if (copy == nullptr)
        read_pixels<kCount, A, true, false>(size);
      else if (added == nullptr)
        read_pixels<kCount, A, false, true>(size);
      else
        read_pixels<kCount, A, true, true>(size);
    });
  }

  // Vector pairs are stored in the order in which they were loaded, so the order of lanes is free.
  template <int64_t kCount, Activation A, bool kAdds, bool kKeeps>
  void read_pixels(int64_t size) {
    if constexpr (kCount > 0) size = kCount;
    constexpr int64_t kPairElements = kPairLanes<VecF>;
    const int64_t pitch = a.cin;
    const float slope = input.negative_slope;
    for (int64_t c = 0; c < kTileDepth; c += kPairElements) {
      const Pair<VecF> factor = load_lanes<VecF>(factors + c);
      const Pair<VecF> addend = load_lanes<VecF>(factors + a.cin + c);
#pragma GCC unroll 8
      for (int64_t i = 0; i < size; ++i) {
        const Pair<VecF> z = load_pair(x + i * pitch + c);
        VecF even = activate<A>(multiply_add(z.a, factor.a, addend.a), slope);
        VecF odd = activate<A>(multiply_add(z.b, factor.b, addend.b), slope);
        if constexpr (kAdds) {
          const Pair<VecF> more = load_pair(added + i * pitch + c);
          even += more.a, odd += more.b;
        }
        const Bits bits = bits_of_pair(even, odd);
        std::memcpy(target + i * kTileDepth + c, &bits, sizeof(bits));
        if constexpr (kKeeps) std::memcpy(copy + i * pitch + c, &bits, sizeof(bits));
      }
    }
    x += size * pitch, target += size * kTileDepth, left -= size;
    if constexpr (kAdds) added += size * pitch;
    if constexpr (kKeeps) copy += size * pitch;
  }

  // Spreads `size` columns of the output from `column` on (im2col of a row): the channels of all
  // columns of the kernel beside each other, then zeros, for what follows could be NaN.
  void spread(int64_t size) const {
    constexpr int64_t kValues = VECTOR_BYTES / sizeof(BFloat16);
    const int64_t values = a.axes[0].taps * a.cin;
    const BFloat16* first_column = padded_row + column * a.stride * a.cin;
    for (int64_t first = 0; first < g.depth_blocks * kTileDepth; first += kValues) {
      BFloat16 ones[kValues];
      for (int64_t j = 0; j < kValues; ++j) ones[j].bits = first + j < values ? 0xffff : 0;
      VecU mask;
      std::memcpy(&mask, ones, sizeof(mask));
      BFloat16* out = ring_row + column * kTileDepth + first / kTileDepth * g.block_elements +
                      first % kTileDepth;
      for (int64_t i = 0; i < size; ++i) {
        VecU bits;
        std::memcpy(&bits, first_column + i * a.stride * a.cin + first, sizeof(bits));
        bits &= mask;
        std::memcpy(out + i * kTileDepth, &bits, sizeof(bits));
      }
    }
  }
};

}  // namespace stylekernels::CPU_CAPABILITY
#endif
