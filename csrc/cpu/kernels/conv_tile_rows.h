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
  int64_t rows;      // in the ring: those that two rows of the output meet, and the next two
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

  // Tasks write the input of the convolution as they read it, each the rows at its own outputs, if
  // these are the image's rows and nothing else reads what is written.
  bool writes_input(const NormConv2d& a) const {
    return a.input != nullptr && a.input != a.x && a.input != a.residual && !a.bytes_in &&
           a.layout == Layout::channels_last && form == KernelColumns::apart &&
           a.cin % kTileDepth == 0 && a.stride == 1 && a.step == 1 && a.repeats == 1 &&
           a.rows == a.h && a.columns == a.w && low <= 0 && low + span > 0;
  }

  int64_t row_elements() const { return depth_blocks * plane; }
  // A row as it is read, where it isn't read into the ring; whole vectors are read of its end.
  int64_t read_elements() const { return read_blocks * read_plane + 2 * kTileDepth; }
  int64_t ring_elements() const {
    return ceil_divide(rows * row_elements() + 2 * read_elements(), 32) * 32;
  }
  // Columns of a row that are read in a piece, or spread, and pieces of a row.
  static constexpr int64_t kSpreadPiece = 64;
  int64_t read_piece() const {
    return ceil_divide(kTileElements / channels, kTileRows) * kTileRows;
  }
  int64_t pieces() const {
    const int64_t spread = form == KernelColumns::in_values ? ceil_divide(width, kSpreadPiece) : 1;
    return read_blocks * ceil_divide(width, read_piece()) + spread;
  }
  int64_t coefficient_elements(const NormConv2d& a) const {
    return ceil_divide(2 * a.cin, 16) * 16;
  }
  // Scratch of a task, in floats: the ring, what is known of its channels, and a block's sums.
  int64_t worker_elements(const NormConv2d& a) const;
};

// The rows of the padded image that the output's rows at hand meet, each [32
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
  int64_t block = 0, column = 0;  // how far it has come

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
    if (input.scale == nullptr) return;
    constexpr int64_t kStep = kPairLanes<VecF>;
    for (int64_t i = 0; i < a.cin / kStep * kStep; ++i) {
      const int64_t channel = n * a.cin + i / kStep * kStep + element_of_lane<BFloat16>(i % kStep);
      scale[i] = input.scale[channel], scale[a.cin + i] = input.shift[channel];
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
    if (next == end) return;
    const int64_t from = source(a, next, a.h);
    BFloat16* out = row(next);
    if (from < 0) {
      std::memset(out, 0, g.row_elements() * sizeof(BFloat16));
      ++next;
      return;
    }
    const bool beside = g.form == KernelColumns::in_values, repeated = a.repeats > 1;
    BFloat16* spare = memory + g.rows * g.row_elements();
    BFloat16* padded = beside ? spare + g.read_elements() : out;
    const int64_t inside = repeated ? 0 : -g.low;  // where column 0 of x goes
    const int64_t met = g.width - inside < inside + 1 ? inside + 1 : g.width - inside;
    const int64_t count = repeated ? a.w : smaller(a.w, met);
    BFloat16* pixels = repeated ? spare : padded + inside * g.channels;
    if (block < g.read_blocks) {
      const int64_t size = smaller(g.read_piece(), count - column);
      for_activation(input.activation, [&](auto activation) {
        read<decltype(activation)::value>(from, size, pixels + block * g.read_plane);
      });
      column += size;
      if (column == count) column = 0, ++block;
      return;
    }
    if (column == 0) pad(pixels, inside, repeated ? 0 : count, padded);
    if (beside) {
      const int64_t size = smaller(g.kSpreadPiece, a.columns - column);
      spread(padded, size, out);
      column += size;
      if (column < a.columns) return;
    }
    block = column = 0, ++next;
  }

  // Fills all columns but the `count` from `inside` on, where column 0 of x is at `pixels`.
  void pad(const BFloat16* pixels, int64_t inside, int64_t count, BFloat16* padded) const {
    for (int64_t i = inside == 0 ? count : 0; i < g.width; ++i) {
      const int64_t from = source(a, i + g.low, a.w);
      for (int64_t part = 0; part < g.read_blocks; ++part)
        for (int64_t c = 0; c < g.channels; ++c)
          padded[part * g.read_plane + i * g.channels + c] =
              from < 0 ? BFloat16{} : pixels[part * g.read_plane + from * g.channels + c];
      if (i + 1 == inside) i += count;
    }
  }

  // `size` pixels of a row of x from `column` on, the channels of a block of each together.
  template <Activation A>
  void read(int64_t row, int64_t size, BFloat16* out) const {
    const int64_t first = block * g.channels, count = smaller(g.channels, a.cin - first);
    const int64_t channel = n * a.cin + first;
    const int64_t pixel = (n * a.h + row) * a.w + column;
    out += column * g.channels;
    if (a.layout == Layout::contiguous) {
      const auto run = [&](int64_t c, int64_t from, int64_t length, float* to) {
        read_run<A>(input, ((channel + c) * a.h + row) * a.w + column + from, length, channel + c,
                    0, to);
      };
      read_across<VecF>(count, size, run, g.channels, out);
    } else if (count == kTileDepth && input.bytes == nullptr) {
      const bool keep = row >= kept && row < kept_end;
      read_whole_blocks<A>(pixel * a.cin + first, size, first, out,
                           keep ? static_cast<BFloat16*>(a.input) : nullptr);
    } else if (count == a.cin && g.channels == a.cin && input.scale == nullptr) {
      read_run<A>(input, pixel * a.cin, size * a.cin, 0, 0, out);  // the row as it lies
    } else {
      for (int64_t i = 0; i < size; ++i)
        read_run<A>(input, (pixel + i) * a.cin + first, count, channel, 1, out + i * g.channels);
    }
  }

  // 32 channels from `channel` on of `size` pixels. Pairs of vectors are joined as they were
  // separated, in any order.
  template <Activation A>
  void read_whole_blocks(int64_t from, int64_t size, int64_t channel, BFloat16* out,
                         BFloat16* copy) const {
    constexpr int64_t kStep = kPairLanes<VecF>;
    for (int64_t c = 0; c < kTileDepth; c += kStep) {
      Pair<VecF> factor{}, addend{};
      if (input.scale != nullptr) {
        factor = load_lanes<VecF>(scale + channel + c);
        addend = load_lanes<VecF>(scale + a.cin + channel + c);
      }
      for (int64_t i = 0; i < size; ++i) {
        const int64_t at = from + i * a.cin + c;
        const Pair<VecF> x = load_pair(input.x + at);
        Pair<VecF> added{};
        if (input.residual != nullptr) added = load_pair(input.residual + at);
        const VecF even = input.unrounded<A>(x.a, added.a, factor.a, addend.a);
        const VecF odd = input.unrounded<A>(x.b, added.b, factor.b, addend.b);
        const Bits bits = bits_of_pair(even, odd);
        std::memcpy(out + i * kTileDepth + c, &bits, sizeof(bits));
        if (copy != nullptr) std::memcpy(copy + at, &bits, sizeof(bits));
      }
    }
  }

  // For `size` columns of the output from `column` on, the channels of all columns of the kernel
  // beside each other, and zeros: a pixel that isn't met could be no number.
  void spread(const BFloat16* padded, int64_t size, BFloat16* out) const {
    constexpr int64_t kStep = VECTOR_BYTES / sizeof(BFloat16);
    const int64_t values = a.axes[0].taps * a.cin;
    padded += column * a.stride * a.cin, out += column * kTileDepth;
    for (int64_t first = 0; first < g.depth_blocks * kTileDepth; first += kStep) {
      BFloat16 ones[kStep];
      for (int64_t j = 0; j < kStep; ++j) ones[j].bits = first + j < values ? 0xffff : 0;
      VecU mask;
      std::memcpy(&mask, ones, sizeof(mask));
      BFloat16* to = out + first / kTileDepth * g.plane + first % kTileDepth;
      for (int64_t i = 0; i < size; ++i) {
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
