// Convolution by Winograd's method, F(4x4, 3x3) and F(4x4, 2x2): 36 multiplications in place of
// 144, and 25 in place of 64. Upsampling has kernels of 2x2 over the small image, one for each
// parity of the output. Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
//
// A convolution of stride 2 is a sum over the four phases of its input: even or odd rows, and even
// or odd columns, counted from the first that is read. Each phase has a kernel of 2x2 and no
// stride, so that F(4x4, 2x2) takes 4 x 25 multiplications in place of 256 for a kernel of 4. A
// kernel of 3 has only one tap for odd rows or columns. Its transform is zero at infinity, the last
// point, and 81 multiplications replace 144. At each point phases are summed as if they were
// channels.
//
// A tile of 4 x 4 outputs is Y = A^T [(G k G^T) * (B^T d B)] A, where d is its kSide x kSide inputs
// (kSide = 6 or 5), k the kernel and * the elementwise product, summed over the input channels. The
// transforms are those of polynomials at the points 0 (for a kernel of 3 only), p, -p, q, -q and
// infinity. For a kernel of 3:
//
//          | p2q2    0   -s     0   1   0 |            | 1  1   1   1   1  0 |
//          |    0  -pq2  -q2    p   1   0 |            | 0  p  -p   q  -q  0 |
//    B^T = |    0   pq2  -q2   -p   1   0 |      A^T = | 0  p2  p2  q2  q2 0 |
//          |    0  -qp2  -p2    q   1   0 |            | 0  p3 -p3  q3 -q3 1 |
//          |    0   qp2  -p2   -q   1   0 |
//          |    0  p2q2    0   -s   0   1 |
//
// with p2 = p p, p3 = p p p, q2 = q q, q3 = q q q, pq2 = p q q, qp2 = q p p, p2q2 = p p q q and
// s = p2 + q2. Row i of G, for point x_i, is (1, x_i, x_i^2) / prod_{j != i} (x_i - x_j); the last
// is (0, 0, 1). A kernel of 2 does without the point 0: the first row and column of B^T, the first
// column of A^T and the first row of G are absent. Its rows of G are (1, x_i) over the same
// products, and the last is (0, 1).
//
// Order of loops: for every four output rows of a band, every parity and every batch of tiles,
// transform the inputs; then for every panel of output channels multiply all points, transform back
// and write.
//
// Layouts of Wide<T> (float), in elements. A panel is kPanel output channels: two vectors. A batch
// is up to kWinogradBatch tiles of one row of tiles. The ring (conv_rows.h) holds the rows of the
// padded input that a row of tiles reads, normalised and activated. Columns begin at position `low`
// of the padded image, which is -1 for a padding of 1:
//
//    ring       [span rows][width columns][Cin]
//    points     [kSide * kSide][tiles][phases][Cin]   pitch of a point: Geometry::point_pitch
//    weights    [panels][kSide * kSide][phases][Cin][kPanel outputs], for each parity; without the
//               phases that are zero at a point: see InputPhases
//    products   [kSide * kSide][kWinogradBatch][kPanel outputs]
//    values     [height][width][kPanel outputs], rounded outputs of a batch
//
// Every point is a matrix product of its own: tiles x Cin by Cin x outputs. Transformed weights are
// larger than the kernel (36 for 9) and pass through the caches once per batch; the batch's points
// stay in L2 (kWinogradBatch). Errors of float32 are 4e-7 to 7e-7 of the output for 32 to 128
// channels of 3x3, and 4e-7 with a stride.
#pragma once

#include "conv_output.h"
#include "conv_rows.h"

namespace stylekernels::CPU_CAPABILITY {

// Points p and q of the polynomials. For side 6 (kernels of 3) the largest error is a quarter of
// what the usual 1 and 2 leave. Side 5 (kernels of 2) has no point 0, and points nearer to 0.
template <int kSide>
constexpr double kP = kSide == 6 ? 0.75 : 0.5;
template <int kSide>
constexpr double kQ = kSide == 6 ? 1.5 : 1.25;
template <int kSide>
constexpr double kP2 = kP<kSide> * kP<kSide>;
template <int kSide>
constexpr double kQ2 = kQ<kSide> * kQ<kSide>;
template <int kSide>
constexpr int kFirstNonzero = kSide == 6;  // 1 if zero is the first point

// Computes t = B^T d. Side 4 is side 5 without the last point and input, for kernels of 1.
template <int kSide, class V>
inline void transform_input(const V (&d)[kSide], V (&t)[kSide]) {
  constexpr int z = kFirstNonzero<kSide>;
  const V p = constant<V>(kP<kSide>), q = constant<V>(kQ<kSide>);
  const V p2 = constant<V>(kP2<kSide>), q2 = constant<V>(kQ2<kSide>);
  const V sum = constant<V>(kP2<kSide> + kQ2<kSide>);
  const V product = constant<V>(kP2<kSide> * kQ2<kSide>);
  const V even_p = d[z + 3] - q2 * d[z + 1], odd_p = d[z + 2] - q2 * d[z];
  const V even_q = d[z + 3] - p2 * d[z + 1], odd_q = d[z + 2] - p2 * d[z];
  if constexpr (z == 1) t[0] = product * d[0] - sum * d[2] + d[4];
  t[z] = even_p + p * odd_p;
  t[z + 1] = even_p - p * odd_p;
  t[z + 2] = even_q + q * odd_q;
  t[z + 3] = even_q - q * odd_q;
  if constexpr (kSide > 4) t[z + 4] = product * d[z] - sum * d[z + 2] + d[z + 4];
}

// Computes y = A^T m.
template <int kSide, class V>
inline void transform_output(const V (&m)[kSide], V (&y)[kWinogradOutputs]) {
  constexpr int z = kFirstNonzero<kSide>;
  const V even_p = m[z] + m[z + 1], odd_p = m[z] - m[z + 1];
  const V even_q = m[z + 2] + m[z + 3], odd_q = m[z + 2] - m[z + 3];
  y[0] = even_p + even_q;
  if constexpr (z == 1) y[0] += m[0];
  y[1] = constant<V>(kP<kSide>) * odd_p + constant<V>(kQ<kSide>) * odd_q;
  y[2] = constant<V>(kP2<kSide>) * even_p + constant<V>(kQ2<kSide>) * even_q;
  y[3] = constant<V>(kP<kSide> * kP2<kSide>) * odd_p +
         (constant<V>(kQ<kSide> * kQ2<kSide>) * odd_q + m[z + 4]);
}

// Matrix G, which transforms kernels.
template <int kSide>
struct KernelTransform {
  static constexpr int kTaps = kSide - kWinogradOutputs + 1;
  double rows[kSide][kTaps] = {};

  constexpr KernelTransform() {
    constexpr double kNonzero[] = {kP<kSide>, -kP<kSide>, kQ<kSide>, -kQ<kSide>};
    const auto at = [&](int i) {
      return i < kFirstNonzero<kSide> ? 0 : kNonzero[i - kFirstNonzero<kSide>];
    };
    for (int point = 0; point < kSide - 1; ++point) {
      double factor = 1;
      for (int i = 0; i < kSide - 1; ++i)
        if (i != point) factor /= at(point) - at(i);
      for (int k = 0; k < kTaps; ++k, factor *= at(point)) rows[point][k] = factor;
    }
    rows[kSide - 1][kTaps - 1] = 1;
  }
};

// Packs a panel, [point][phase][input channel][kPanel output channels], zero beyond the last output
// channel.
template <int kSide, class T>
void pack_weights_for_winograd(const NormConv2d& a, const Geometry<T>& g, int64_t row_parity,
                               int64_t column_parity, int64_t first, Wide<T>* panel) {
  constexpr KernelTransform<kSide> kTransform;
  constexpr int kTaps = KernelTransform<kSide>::kTaps;
  constexpr int64_t kPanelChannels = kPanel<Vec<T>>;
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  for (int64_t phase = 0; phase < g.phases.count(); ++phase) {
    const int64_t row_phase = g.phases.row(phase), column_phase = g.phases.column(phase);
    for (int64_t i = 0; i < a.cin; ++i) {
      double kernel[kTaps][kTaps][kPanelChannels] = {}, half[kSide][kTaps][kPanelChannels] = {};
      for (int64_t ky = 0; ky < a.kernel; ++ky) {
        for (int64_t kx = 0; kx < a.kernel; ++kx) {
          const int64_t y = rows.tap_of[ky], x = columns.tap_of[kx];
          if (y < 0 || x < 0 || y % a.stride != row_phase || x % a.stride != column_phase) continue;
          const T* weight = static_cast<const T*>(a.weight) + first * a.weight_cout +
                            i * a.weight_cin + ky * a.weight_row + kx * a.weight_column;
          for (int64_t c = 0; c < smaller(kPanelChannels, a.cout - first); ++c)
            kernel[y / a.stride][x / a.stride][c] +=
                double(load<Wide<T>>(weight + c * a.weight_cout));
        }
      }
      for (int u = 0; u < kSide; ++u)
        for (int y = 0; y < kTaps; ++y)
          for (int x = 0; x < kTaps; ++x)
            for (int64_t c = 0; c < kPanelChannels; ++c)
              half[u][x][c] += kTransform.rows[u][y] * kernel[y][x][c];
      int64_t term = 0;  // phases of all earlier points together
      for (int u = 0; u < kSide; ++u) {
        for (int v = 0; v < kSide; ++v) {
          const auto [begin, end] = g.phases.at_point(u == kSide - 1, v == kSide - 1);
          double values[kPanelChannels] = {};
          for (int x = 0; x < kTaps; ++x)
            for (int64_t c = 0; c < kPanelChannels; ++c)
              values[c] += kTransform.rows[v][x] * half[u][x][c];
          Wide<T>* to = panel + ((term + phase - begin) * a.cin + i) * kPanelChannels;
          if (begin <= phase && phase < end)
            for (int64_t c = 0; c < kPanelChannels; ++c) to[c] = Wide<T>(values[c]);
          term += end - begin;
        }
      }
    }
  }
}

// Transforms the inputs of one tile to its points, a vector of channels: columns first, then rows.
// rows: its upper left corner in each of the ring's rows; `pitch` elements from a column to the
// next. A phase that is zero at the last row (column) of points has one row (column) of inputs
// less.
template <int kSide, int kRows, int kColumns, class V>
[[gnu::always_inline]] inline void transform_tile(const ElementOf<V>* const (&rows)[kSide],
                                                  int64_t pitch, int64_t point_pitch,
                                                  ElementOf<V>* points) {
  V half[kRows][kColumns];
  for (int j = 0; j < kColumns; ++j) {
    V column[kRows], t[kRows];
    for (int i = 0; i < kRows; ++i) column[i] = load<V>(rows[i] + j * pitch);
    transform_input(column, t);
    for (int i = 0; i < kRows; ++i) half[i][j] = t[i];
  }
  for (int i = 0; i < kRows; ++i) {
    V t[kColumns];
    transform_input(half[i], t);
    for (int j = 0; j < kColumns; ++j) store(points + (i * kSide + j) * point_pitch, t[j]);
  }
}

// Transforms the inputs of `count` tiles, all channels. rows: as above, for the first tile.
//
// Not inlined: gcc would reach its limit of inlining and call the transforms.
template <int kSide, int kRows, int kColumns, class T>
[[gnu::noinline]] void transform_tiles(const NormConv2d& a, const Geometry<T>& g,
                                       const Wide<T>* const (&rows)[kSide], int64_t count,
                                       Wide<T>* points) {
  using V = Vec<T>;
  using W = Wide<T>;
  const int64_t pitch = a.stride * a.cin;
  for (int64_t t = 0; t < count; ++t) {
    const W* corner[kSide];
    const auto at = [&](int64_t channel) {
      for (int i = 0; i < kSide; ++i) corner[i] = rows[i] + t * kWinogradOutputs * pitch + channel;
      return points + t * g.tile_pitch + channel;
    };
    int64_t c = 0;
    for (; c + kLanes<V> <= a.cin; c += kLanes<V>) {
      W* to = at(c);
      transform_tile<kSide, kRows, kColumns, V>(corner, pitch, g.point_pitch, to);
    }
    for (; c < a.cin; ++c) {
      W* to = at(c);
      transform_tile<kSide, kRows, kColumns, W>(corner, pitch, g.point_pitch, to);
    }
  }
}

// Multiplies kCount tiles at one point with kVectors vectors of a panel, summed over `depth` phases
// and input channels: kWinogradTerms of them at a time, because the rounding of one long sum is
// most of the error of the method.
template <int kCount, int kVectors, class V>
inline void multiply_point(const ElementOf<V>* points, int64_t tile_pitch,
                           const ElementOf<V>* weights, int64_t depth, ElementOf<V>* products) {
  for (int64_t begin = 0; begin < depth; begin += kWinogradTerms) {
    const ElementOf<V>* tiles[kCount];
    for (int r = 0; r < kCount; ++r) tiles[r] = points + r * tile_pitch + begin;
    V sums[kCount][kVectors];
    clear(sums);
    multiply_panel(tiles, 1, weights + begin * kPanel<V>, smaller(kWinogradTerms, depth - begin),
                   sums);
    for (int r = 0; r < kCount; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        ElementOf<V>* to = products + r * kPanel<V> + v * kLanes<V>;
        store(to, begin == 0 ? sums[r][v] : load<V>(to) + sums[r][v]);
      }
    }
  }
}

// Multiplies `count` tiles at all points with kVectors vectors of a panel.
template <int kSide, int kVectors, class T>
inline void multiply_points(const NormConv2d& a, const Geometry<T>& g, const Wide<T>* points,
                            int64_t count, const Wide<T>* panel, Wide<T>* products) {
  using V = Vec<T>;
  constexpr int kMost = kVectors == 1 ? 2 * kBlockRows : kBlockRows;
  for (int64_t point = 0; point < kSide * kSide; ++point) {
    const auto [begin, end] =
        g.phases.at_point(point / kSide == kSide - 1, point % kSide == kSide - 1);
    const int64_t depth = (end - begin) * a.cin;
    for (int64_t t = 0, rows; t < count; t += rows) {
      const Wide<T>* from = points + t * g.tile_pitch + begin * a.cin;
      Wide<T>* to = products + t * kPanel<V>;
      // 8 tiles in blocks of 6 would leave two. Fours are faster, because register blocks of one or
      // two rows do not keep two multiply-adds busy.
      const int64_t left = count - t;
      const bool fours = kMost == 6 && left == 8;
      rows = left >= kMost && !fours ? kMost : left >= 4 ? 4 : 1;
      if (rows == kMost)
        multiply_point<kMost, kVectors, V>(from, g.tile_pitch, panel, depth, to);
      else if (rows == 4)
        multiply_point<4, kVectors, V>(from, g.tile_pitch, panel, depth, to);
      else
        multiply_point<1, kVectors, V>(from, g.tile_pitch, panel, depth, to);
    }
    points += g.point_pitch, panel += depth * kPanel<V>;
    products += kWinogradBatch * kPanel<V>;
  }
}

// Transforms the products of a tile back to `height` rows of `width` outputs, and rounds them as
// they will be stored.
template <int kSide, class T, class V>
[[gnu::always_inline]] inline void finish_tile(const ElementOf<V>* products, V bias, int64_t height,
                                               int64_t width, ElementOf<V>* values,
                                               int64_t row_pitch) {
  constexpr int64_t kPitch = kWinogradBatch * kPanel<V>;
  V half[kSide][kWinogradOutputs];
  for (int i = 0; i < kSide; ++i) {
    V sums[kSide];
    for (int j = 0; j < kSide; ++j) sums[j] = load<V>(products + (i * kSide + j) * kPitch);
    transform_output(sums, half[i]);
  }
  for (int j = 0; j < width; ++j) {
    V column[kSide], y[kWinogradOutputs];
    for (int i = 0; i < kSide; ++i) column[i] = half[i][j];
    transform_output(column, y);
    for (int i = 0; i < height; ++i)
      store(values + i * row_pitch + j * kPanel<V>, rounded_to<T>(y[i] + bias));
  }
}

// Computes `count` tiles of kVectors vectors of output channels, those from `first` on: `height`
// rows of `width` outputs. The channels of a vector that is not computed are zero.
//
// Not inlined, for the reason above.
template <int kSide, int kVectors, class T>
[[gnu::noinline]] void run_panel(const NormConv2d& a, const Geometry<T>& g, const Wide<T>* points,
                                 int64_t count, const Wide<T>* panel, int64_t first, int64_t height,
                                 int64_t width, Wide<T>* products, Wide<T>* values) {
  using V = Vec<T>;
  multiply_points<kSide, kVectors>(a, g, points, count, panel, products);
  Wide<T> bias[kPanel<V>];
  read_bias(a, first, bias);
  for (int64_t t = 0; t < count; ++t)
    for (int64_t lane = 0; lane < kVectors * kLanes<V>; lane += kLanes<V>)
      finish_tile<kSide, T>(products + t * kPanel<V> + lane, load<V>(bias + lane), height,
                            smaller(kWinogradOutputs, width - t * kWinogradOutputs),
                            values + t * kWinogradOutputs * kPanel<V> + lane, width * kPanel<V>);
  if (kVectors == 1)
    for (int64_t i = 0; i < height * width; ++i) store(values + i * kPanel<V> + kLanes<V>, V{});
}

// Computes a band of image n: consecutive output rows with partial statistics of their own. An
// incomplete tile reads padding; height and width limit what is stored. memory: ring | points |
// products | values.
template <int kSide, class T>
void run_band_by_winograd(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                          int64_t n, int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kPanelChannels = kPanel<V>;
  W* points = memory + g.span * g.row_elements;
  W* products = points + kSide * kSide * g.point_pitch;
  W* values = products + kSide * kSide * kWinogradBatch * kPanelChannels;
  Ring<T> ring{a, input, g, n, memory};
  BandStatistics statistics(a, n, band);
  const int64_t tiles = ceil_divide(a.columns, kWinogradOutputs);
  const int64_t batches = ceil_divide(tiles, kWinogradBatch);
  // Batches of about equal size, but of whole register blocks.
  const int64_t per_batch = ceil_divide(ceil_divide(tiles, batches), kBlockRows) * kBlockRows;
  const int64_t last_row = smaller((band + 1) * a.band, a.rows);
  for (int64_t row = band * a.band; row < last_row; row += kWinogradOutputs) {
    ring.advance(row / kWinogradOutputs);
    const int64_t height = smaller(kWinogradOutputs, last_row - row);
    for (int64_t parity = 0; parity < a.parities * a.parities; ++parity) {
      const int64_t row_parity = parity / a.parities, column_parity = parity % a.parities;
      const ConvAxis &down = a.axes[row_parity], &across = a.axes[column_parity];
      for (int64_t tile = 0; tile < tiles; tile += per_batch) {
        const int64_t count = smaller(per_batch, tiles - tile);
        for (int64_t phase = 0; phase < g.phases.count(); ++phase) {
          const int64_t row_phase = g.phases.row(phase), column_phase = g.phases.column(phase);
          const int64_t left = across.first - g.low + column_phase;
          const W* rows[kSide];
          for (int64_t i = 0; i < kSide; ++i)
            rows[i] = ring.row(a.stride * (row + i) + down.first + row_phase) +
                      (left + tile * kWinogradOutputs * a.stride) * a.cin;
          W* to = points + phase * a.cin;
          if constexpr (kSide == 5) {
            const bool short_rows = row_phase > 0 && g.phases.odd_kernel;
            const bool short_columns = column_phase > 0 && g.phases.odd_kernel;
            if (short_rows && short_columns)
              transform_tiles<kSide, 4, 4>(a, g, rows, count, to);
            else if (short_rows)
              transform_tiles<kSide, 4, 5>(a, g, rows, count, to);
            else if (short_columns)
              transform_tiles<kSide, 5, 4>(a, g, rows, count, to);
            else
              transform_tiles<kSide, 5, 5>(a, g, rows, count, to);
          } else {
            transform_tiles<kSide, kSide, kSide>(a, g, rows, count, to);
          }
        }
        const int64_t column = tile * kWinogradOutputs;
        const int64_t width = smaller(count * kWinogradOutputs, a.columns - column);
        for (int64_t first = 0; first < a.cout; first += kPanelChannels) {
          const W* panel = static_cast<const W*>(a.packed) +
                           g.panel_begin(a, row_parity, column_parity, first / kPanelChannels);
          if (a.cout - first <= kLanes<V>)  // one vector of channels is left
            run_panel<kSide, 1>(a, g, points, count, panel, first, height, width, products, values);
          else
            run_panel<kSide, 2>(a, g, points, count, panel, first, height, width, products, values);
          for (int64_t i = 0; i < height; ++i)
            write_row<T>(a, n, a.parities * (row + i) + row_parity,
                         a.parities * column + column_parity, width, first,
                         values + i * width * kPanelChannels);
          if (a.wants_statistics()) statistics.add(values, height * width, first);
        }
        // Counted after all panels have added this batch.
        statistics.counted += double(height * width);
      }
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
