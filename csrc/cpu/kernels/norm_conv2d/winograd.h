// Convolution by Winograd's method, F(4x4, 3x3) and F(4x4, 2x2): 36 multiplications in place of
// 144, and 25 in place of 64. Upsampling has kernels of 2x2 over the small image, one for each
// parity of the output. Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
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
//    points     [kSide * kSide][tiles][Cin]       pitch of a point: winograd_pitch(Cin)
//    weights    [panels][kSide * kSide][Cin][kPanel outputs], for each parity
//    products   [kSide * kSide][kWinogradBatch][kPanel outputs]
//    values     [height][width][kPanel outputs], rounded outputs of a batch
//
// Every point is a matrix product of its own: tiles x Cin by Cin x outputs. Transformed weights are
// larger than the kernel (36 for 9) and pass through the caches once per batch; the batch's points
// stay in L2. Errors are about 4e-7 of the output in float32.
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
constexpr int kFirstNonzero = kSide - 5;  // 1 if zero is the first point

// Computes t = B^T d.
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
  t[z + 4] = product * d[z] - sum * d[z + 2] + d[z + 4];
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

// Packs a panel, [point][input channel][kPanel output channels], zero beyond the last output
// channel.
template <int kSide, class T>
void pack_weights_for_winograd(const NormConv2d& a, int64_t row_parity, int64_t column_parity,
                               int64_t first, Wide<T>* panel) {
  constexpr KernelTransform<kSide> kTransform;
  constexpr int kTaps = KernelTransform<kSide>::kTaps;
  constexpr int64_t kPanelChannels = kPanel<Vec<T>>;
  const ConvAxis &rows = a.axes[row_parity], &columns = a.axes[column_parity];
  for (int64_t i = 0; i < a.cin; ++i) {
    double kernel[kTaps][kTaps][kPanelChannels] = {}, half[kSide][kTaps][kPanelChannels] = {};
    for (int64_t c = 0; c < smaller(kPanelChannels, a.cout - first); ++c) {
      const T* weight =
          static_cast<const T*>(a.weight) + (first + c) * a.weight_cout + i * a.weight_cin;
      for (int64_t ky = 0; ky < a.kernel; ++ky)
        for (int64_t kx = 0; kx < a.kernel; ++kx)
          if (rows.tap_of[ky] >= 0 && columns.tap_of[kx] >= 0)
            kernel[rows.tap_of[ky]][columns.tap_of[kx]][c] +=
                double(load<Wide<T>>(weight + ky * a.weight_row + kx * a.weight_column));
    }
    for (int u = 0; u < kSide; ++u)
      for (int y = 0; y < kTaps; ++y)
        for (int x = 0; x < kTaps; ++x)
          for (int64_t c = 0; c < kPanelChannels; ++c)
            half[u][x][c] += kTransform.rows[u][y] * kernel[y][x][c];
    for (int u = 0; u < kSide; ++u) {
      for (int v = 0; v < kSide; ++v) {
        double values[kPanelChannels] = {};
        for (int x = 0; x < kTaps; ++x)
          for (int64_t c = 0; c < kPanelChannels; ++c)
            values[c] += kTransform.rows[v][x] * half[u][x][c];
        Wide<T>* to = panel + ((u * kSide + v) * a.cin + i) * kPanelChannels;
        for (int64_t c = 0; c < kPanelChannels; ++c) to[c] = Wide<T>(values[c]);
      }
    }
  }
}

// Transforms the inputs of one tile to its points, a vector of channels: columns first, then rows.
// rows: its upper left corner in each of the ring's rows; `pitch` elements from a column to the
// next.
template <int kSide, class V>
inline void transform_tile(const ElementOf<V>* const (&rows)[kSide], int64_t pitch,
                           int64_t point_pitch, ElementOf<V>* points) {
  V half[kSide][kSide];
  for (int j = 0; j < kSide; ++j) {
    V column[kSide], t[kSide];
    for (int i = 0; i < kSide; ++i) column[i] = load<V>(rows[i] + j * pitch);
    transform_input(column, t);
    for (int i = 0; i < kSide; ++i) half[i][j] = t[i];
  }
  for (int i = 0; i < kSide; ++i) {
    V t[kSide];
    transform_input(half[i], t);
    for (int j = 0; j < kSide; ++j) store(points + (i * kSide + j) * point_pitch, t[j]);
  }
}

// Multiplies kCount tiles at one point with a panel, summed over the input channels.
template <int kCount, class V>
inline void multiply_point(const ElementOf<V>* points, const ElementOf<V>* weights, int64_t cin,
                           ElementOf<V>* products) {
  const ElementOf<V>* tiles[kCount];
  for (int r = 0; r < kCount; ++r) tiles[r] = points + r * cin;
  V sums[kCount][2];
  clear(sums);
  multiply_panel(tiles, 1, weights, cin, sums);
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) store(products + r * kPanel<V> + v * kLanes<V>, sums[r][v]);
}

// Multiplies `count` tiles at all points with a panel of the weights.
template <int kSide, class V>
inline void multiply_points(const ElementOf<V>* points, int64_t pitch, int64_t count, int64_t cin,
                            const ElementOf<V>* panel, ElementOf<V>* products) {
  for (int64_t point = 0; point < kSide * kSide; ++point) {
    for (int64_t t = 0, rows; t < count; t += rows) {
      const ElementOf<V>* from = points + t * cin;
      ElementOf<V>* to = products + t * kPanel<V>;
      // kBlockRows + 2 tiles would leave two. Fours are faster, because register blocks of one or
      // two rows do not keep two multiply-adds busy.
      const int64_t left = count - t;
      rows = left >= kBlockRows && left != kBlockRows + 2 ? kBlockRows : left >= 4 ? 4 : 1;
      if (rows == kBlockRows)
        multiply_point<kBlockRows, V>(from, panel, cin, to);
      else if (rows == 4)
        multiply_point<4, V>(from, panel, cin, to);
      else
        multiply_point<1, V>(from, panel, cin, to);
    }
    points += pitch, panel += cin * kPanel<V>, products += kWinogradBatch * kPanel<V>;
  }
}

// Transforms the products of a tile back to `height` rows of `width` outputs, and rounds them as
// they will be stored.
template <int kSide, class T, class V>
inline void finish_tile(const ElementOf<V>* products, V bias, int64_t height, int64_t width,
                        ElementOf<V>* values, int64_t row_pitch) {
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

// Computes a band of image n: consecutive output rows with partial statistics of their own. An
// incomplete tile reads padding; height and width limit what is stored. memory: ring | points |
// products | values.
template <int kSide, class T>
void run_band_by_winograd(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                          int64_t n, int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kPanelChannels = kPanel<V>;
  const int64_t pitch = winograd_pitch(a.cin);
  W* points = memory + g.span * g.row_elements;
  W* products = points + kSide * kSide * pitch;
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
      const W* rows[kSide];
      for (int64_t i = 0; i < kSide; ++i)
        rows[i] = ring.row(row + a.axes[row_parity].first + i) +
                  (a.axes[column_parity].first - g.low) * a.cin;
      for (int64_t tile = 0; tile < tiles; tile += per_batch) {
        const int64_t count = smaller(per_batch, tiles - tile);
        for (int64_t t = 0; t < count; ++t) {
          const W* corner[kSide];
          const auto at = [&](int64_t channel) {
            for (int i = 0; i < kSide; ++i)
              corner[i] = rows[i] + (tile + t) * kWinogradOutputs * a.cin + channel;
            return points + t * a.cin + channel;
          };
          int64_t c = 0;
          for (; c + kLanes<V> <= a.cin; c += kLanes<V>) {
            W* to = at(c);
            transform_tile<kSide, V>(corner, a.cin, pitch, to);
          }
          for (; c < a.cin; ++c) {
            W* to = at(c);
            transform_tile<kSide, W>(corner, a.cin, pitch, to);
          }
        }
        const int64_t column = tile * kWinogradOutputs;
        const int64_t width = smaller(count * kWinogradOutputs, a.columns - column);
        for (int64_t first = 0; first < a.cout; first += kPanelChannels) {
          multiply_points<kSide, V>(
              points, pitch, count, a.cin,
              static_cast<const W*>(a.packed) +
                  g.panel_begin(a, row_parity, column_parity, first / kPanelChannels),
              products);
          W bias[kPanelChannels];
          read_bias(a, first, bias);
          for (int64_t t = 0; t < count; ++t)
            for (int64_t lane = 0; lane < kPanelChannels; lane += kLanes<V>)
              finish_tile<kSide, T>(products + t * kPanelChannels + lane, load<V>(bias + lane),
                                    height, smaller(kWinogradOutputs, width - t * kWinogradOutputs),
                                    values + t * kWinogradOutputs * kPanelChannels + lane,
                                    width * kPanelChannels);
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
