// Deferred-norm convolution of bfloat16 on AMX tiles. A task computes one or more bands, which are
// consecutive output rows with partial statistics of their own (norm_conv2d.cpp).
//
// Order of loops: pairs of output rows, parities of the output (two rows x two columns if it is
// upsampled, each with a kernel of its own, else one: see ConvAxis), panels of 32 outputs (output
// channels), register blocks along the row, K steps.
//
// Register block: two output rows x 16 pixels x 32 outputs, in four accumulators. All eight tile
// registers are in use:
//
//                            tmm6: outputs 0-15      tmm7: outputs 16-31
//   tmm4: pixels of row 0    tmm0 += tmm4 * tmm6     tmm1 += tmm4 * tmm7
//   tmm5: pixels of row 1    tmm2 += tmm5 * tmm6     tmm3 += tmm5 * tmm7
//
// A tile of pixels is 16 pixels x 32 input channels, a tile of weights 16 pairs of input channels x
// 16 outputs. A K step is these four products: 64 cycles, for 4 KiB of tiles. The K steps run over
// kernel rows, then over blocks of 32 channels, then over kernel columns. The kernel column is the
// innermost loop, so with stride 1 two successive steps share 15 of 16 pixels in L1. Panels of
// weights are packed in the order of the K steps, and come from L2 if they exceed L1.
//
// Kernels with few channels on one side put their columns beside the input channels (in_values) or
// the outputs (in_outputs): see KernelColumns.
//
// Timeline by register block, here with 36 K steps each (3 x 3 kernel, 128 channels):
//
//   tiles    | block b: step 0 ... step 35 | store | block b + 1: step 0 ... step 35 | store |
//   vectors  |  epilogue of block b - 1    |       |  epilogue of block b            |       |
//            |  and the ring's next rows   |       |  and the ring's next rows       |       |
//
// Software pipeline: pieces of vector work (eight pixels of 32 channels each) run between the K
// steps, after a fixed number of them. `store` moves the accumulators to scratch. The epilogue
// (conv_tile_output.h) reads them there, adds the bias, rounds, writes y and sums its statistics.
//
// Ring buffer (conv_tile_rows.h): rows of the padded input, normalised, activated and rounded to
// bfloat16, in the L2 cache. Position p of the padded image (from low on: -1 for a padding of 1) is
// at (p - low) % rows, as [channels / 32][columns][32 channels], so that one tile is 16
// consecutive columns of one depth block: 32 channels. With a 3 x 3 kernel and stride 1:
//
//   output rows o, o + 1 read input rows      o - 1, o, o + 1, o + 2
//   prologue, for o + 2 and o + 3                                    o + 3, o + 4
#pragma once

#include "conv_tile_output.h"
#include "conv_tile_rows.h"

#if HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

// -- the weights -----------------------------------------------------------------------------

// Packs the weights of a parity in the order of the K steps: [panel][K step][tile], and a tile is
// [pair of values][output][2]. Values are the terms of the product: input channels, with in_values
// those of all kernel columns. Kernel elements that read the same input pixel (nearest upsampling)
// are added up.
inline void pack_weights_in_tiles(const NormConv2d& a, const TileGeometry& g, int64_t row_parity,
                                  int64_t column_parity) {
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  const int64_t steps = g.steps(a, row_parity, column_parity);
  BFloat16* packed =
      static_cast<BFloat16*>(a.packed) + g.weights_begin(a, row_parity, column_parity, 0);
  const int64_t elements = steps * ceil_divide(g.outputs, kTileRows) * kTileElements;
  std::memset(packed, 0, elements * sizeof(BFloat16));
  // Offset of the weight of a kernel row and column, an input channel and an output channel.
  const auto offset = [&](int64_t row, int64_t column, int64_t channel, int64_t output) {
    int64_t value = channel, step = row * g.depth_blocks;
    if (g.form == KernelColumns::in_values) value += column * a.cin;
    if (g.form == KernelColumns::in_outputs) output += column * a.cout;
    step += value / kTileDepth;
    if (g.form == KernelColumns::apart) step = step * columns.taps + column;
    const int64_t panel = output / kTilePanel;
    const int64_t tiles = g.outputs - panel * kTilePanel > kTileRows ? 2 : 1;
    const int64_t tile = panel * 2 * steps + step * tiles + output % kTilePanel / kTileRows;
    // A row of the tile is 16 outputs x 2 values.
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
          store(packed + offset(row, column, i, c), sums[row][column]);
    }
  }
}

// -- the product -----------------------------------------------------------------------------

// Input of the register blocks of two output rows: their first pixel in the rows of the ring that
// they read, by output row and kernel row.
struct TilePixels {
  const BFloat16* rows[2][ConvAxis::kMaxKernel];
  int64_t kernel_rows, kernel_columns, depth_blocks;
  int64_t block_elements;  // from one depth block of a row to the next
  int64_t pitch_bytes;     // from one output pixel to the next
};

// K steps without a tile store. On Sapphire Rapids a tile store takes 0.25 us when no tile was
// stored in the last 0.55 us. 16 K steps are 1024 cycles, 0.3 to 0.5 us at 2 to 3.5 GHz: register
// blocks with more of them store a tile into unused memory after so many.
constexpr int64_t kStepsWithoutStore = 16;

// Computes a register block of kOutputRows output rows and kTiles times 16 outputs: its
// accumulators are tiles 0 and 1 for the first row, 2 and 3 for the second. `offset` is the
// distance, in elements, from pixels.rows to the block's first pixel. Calls between() after each K
// step.
template <int kOutputRows, int kTiles, class Between>
inline void multiply_register_block(const TilePixels& pixels, int64_t offset,
                                    const BFloat16* weights, const Between& between) {
  const int64_t pitch_bytes = pixels.pitch_bytes;
  const int64_t run_elements = pixels.kernel_columns * kTileDepth;
  alignas(64) float unused[kTileRows * kTileBytes / 4];
  int64_t steps = 0;
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t t = 0; t < pixels.kernel_rows; ++t) {
    const BFloat16* first = pixels.rows[0][t] + offset;
    const BFloat16* second = pixels.rows[kOutputRows - 1][t] + offset;
    for (int64_t block = 0; block < pixels.depth_blocks; ++block) {
      for (int64_t k = 0; k < run_elements; k += kTileDepth) {
        tile_load<4>(first + k, pitch_bytes);
        tile_load<6>(weights);
        tile_multiply<0, 4, 6>();
        if constexpr (kTiles == 2) {
          tile_load<7>(weights + kTileElements);
          tile_multiply<1, 4, 7>();
        }
        if constexpr (kOutputRows == 2) {
          tile_load<5>(second + k, pitch_bytes);
          tile_multiply<2, 5, 6>();
          if constexpr (kTiles == 2) tile_multiply<3, 5, 7>();
        }
        weights += kTiles * kTileElements;
        between();
        if (++steps == kStepsWithoutStore) tile_store<4>(unused), steps = 0;
      }
      first += pixels.block_elements, second += pixels.block_elements;
    }
  }
}

// -- a task ----------------------------------------------------------------------------------

inline int64_t TileGeometry::worker_elements(const NormConv2d& a) const {
  const int64_t bytes = ring_elements() * sizeof(BFloat16) +
                        coefficient_elements(a) * sizeof(float) + sizeof(TileSums) +
                        ceil_divide(a.cout, kTilePanel) * sizeof(TileChannels);
  return ceil_divide(bytes, 64) * (64 / int64_t(sizeof(float)));
}

inline void pack_panels(const NormConv2d& a, const TileGeometry& g) {
  parallel_tasks(a.parities * a.parities, g.packed_elements(a), [&](int64_t parity) {
    pack_weights_in_tiles(a, g, parity / a.parities, parity % a.parities);
  });
}

// Schedule of a software pipeline: `times` pieces after every `period` K steps, always the same
// number. The pieces may run out early; finish runs those that are left. A branch that is predicted
// wrong costs 30 ns beside tiles, because those loaded ahead are lost.
struct Turns {
  int64_t period = 1, times = 0, wait = 1;

  Turns() = default;
  Turns(int64_t pieces, int64_t steps)
      : period(pieces > 0 && pieces < steps ? steps / pieces : 1),
        times(steps > 0 ? ceil_divide(pieces * period, steps) : 0),
        wait(period) {}

  template <class Piece>
  void after_step(const Piece& piece) {
    if (--wait > 0) return;
    wait = period;
    for (int64_t i = 0; i < times; ++i) piece();
  }
};

// Vector work between the tile products: epilogue of the last register block, prologue of the next
// rows.
struct TileWork {
  TileOutput& output;
  TileRing& ring;
  Turns output_turns;  // pieces of the last register block, over the K steps of this one
  Turns ring_turns;    // pieces of two output rows' input, over all their K steps

  TileWork(const NormConv2d& a, const TileGeometry& g, TileOutput& output, TileRing& ring)
      : output(output), ring(ring) {
    int64_t steps = 0;
    for (int64_t parity = 0; parity < a.parities * a.parities; ++parity)
      steps += g.steps(a, parity / a.parities, parity % a.parities);
    steps *= g.panels() * ceil_divide(g.columns, kTileRows);
    ring_turns = Turns(2 * a.stride * g.pieces(a), steps);
  }

  void begin_register_block(int64_t steps) { output_turns = Turns(output.pieces(), steps); }

  void advance() {
    output_turns.after_step([&] { output.advance(); });
    ring_turns.after_step([&] { ring.advance(); });
  }
};

// Computes kOutputRows rows from `o` on of a parity's output, kTiles times 16 outputs from `first`
// on.
template <int kOutputRows, int kTiles>
void multiply_rows(const TileGeometry& g, const TilePixels& pixels, const BFloat16* weights,
                   int64_t o, int64_t row_parity, int64_t column_parity, int64_t first,
                   TileWork& work) {
  TileOutput& output = work.output;
  for (int64_t column = 0; column < g.columns; column += kTileRows) {
    work.begin_register_block(pixels.kernel_rows * pixels.depth_blocks * pixels.kernel_columns);
    multiply_register_block<kOutputRows, kTiles>(
        pixels, column * pixels.pitch_bytes / int64_t(sizeof(BFloat16)), weights,
        [&] { work.advance(); });
    output.finish();  // the last block's epilogue, whose scratch take overwrites
    output.take<kOutputRows, kTiles>(o, row_parity, column_parity, column, first);
  }
}

// Computes bands [first_band, last_band) of image n, which share the ring. memory: ring |
// coefficients (scale and shift of the norm) | TileSums (scratch of a register block) |
// TileChannels per panel (bias and statistics).
inline void run_bands(const NormConv2d& a, const TileGeometry& g, const Input<BFloat16>& input,
                      int64_t n, int64_t first_band, int64_t last_band, float* memory) {
  [[maybe_unused]] const TileScope scope;
  const int64_t begin = first_band * a.band, end = smaller(last_band * a.band, a.rows);
  float* coefficients = memory + g.ring_elements() / 2;
  TileRing ring(a, input, g, n, begin, end, reinterpret_cast<BFloat16*>(memory), coefficients);
  memory = coefficients + g.coefficient_elements(a);
  TileSums& sums = *reinterpret_cast<TileSums*>(memory);
  TileChannels* panels = reinterpret_cast<TileChannels*>(&sums + 1);
  for (int64_t first = 0; first < a.cout; first += kTilePanel) {
    TileChannels& panel = panels[first / kTilePanel];
    for (int64_t c = 0; c < kTilePanel; c += kPanel<VecF>) read_bias(a, first + c, panel.bias + c);
  }
  if (g.form == KernelColumns::in_outputs)
    for (int64_t i = 0; i < kTileRows * a.cout; ++i) sums.bias[i] = panels[0].bias[i % a.cout];
  TileOutput output{a, g, n, panels, sums};
  TileWork work(a, g, output, ring);
  ring.want(smaller(begin + 2, end));  // the input of output rows before this one
  for (int64_t o = begin; o < end; o += 2) {
    if ((o - begin) % a.band == 0) output.begin_band(o / a.band);
    const int64_t rows = smaller<int64_t>(2, end - o);
    ring.finish();  // reads what the pieces of the last pair of rows have left
    ring.want(smaller(o + 4, end));
    for (int64_t parity = 0; parity < a.parities * a.parities; ++parity) {
      const int64_t row_parity = parity / a.parities, column_parity = parity % a.parities;
      const ConvAxis &row_axis = a.axes[row_parity], &column_axis = a.axes[column_parity];
      const bool apart = g.form == KernelColumns::apart;
      const bool in_values = g.form == KernelColumns::in_values;
      TilePixels pixels;
      pixels.kernel_rows = row_axis.taps, pixels.kernel_columns = apart ? column_axis.taps : 1;
      pixels.depth_blocks = g.depth_blocks, pixels.block_elements = g.block_elements;
      pixels.pitch_bytes = (in_values ? 1 : a.stride) * kTileBytes;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < row_axis.taps; ++t)
          pixels.rows[r][t] = ring.row(a.stride * (o + r) + row_axis.first + t) +
                              (column_axis.first - g.low) * kTileDepth;
      for (int64_t panel = 0; panel < g.panels(); ++panel) {
        const int64_t first = panel * kTilePanel;
        const BFloat16* weights = static_cast<const BFloat16*>(a.packed) +
                                  g.weights_begin(a, row_parity, column_parity, panel);
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
  output.end_band();
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
