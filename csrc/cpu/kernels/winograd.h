// Convolution with a 3x3 kernel by Winograd's method F(4x4, 3x3): 36 multiplications where the
// plain sum takes 144. Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
//
// A square of 4 x 4 outputs needs 6 x 6 inputs. With the three matrices below they are transformed
// to 36 points, multiplied with the transformed kernels, summed over the input channels (a matrix
// product for every point: squares by output channels) and transformed back. The weights are four
// times as large and pass through the caches once per block of squares; the block's points stay in
// L2. Errors are about 5e-7 of the output in float32.
#pragma once

#include "conv_output.h"
#include "conv_rows.h"

namespace stylekernels::CPU_CAPABILITY {

// The matrices are those of polynomials at 0, p, -p, q, -q and infinity. With 3/4 and 3/2 the
// largest error is a quarter of what the usual 1 and 2 leave, for the same number of operations.
constexpr double kP = 0.75, kQ = 1.5, kP2 = kP * kP, kQ2 = kQ * kQ;

template <class V>
inline void transform_input(const V (&d)[kWinogradSide], V (&t)[kWinogradSide]) {
  const auto constant = [](double value) { return splat<V>(ElementOf<V>(value)); };
  const V p = constant(kP), p2 = constant(kP2), q = constant(kQ), q2 = constant(kQ2);
  const V sum = constant(kP2 + kQ2), product = constant(kP2 * kQ2);
  const V even_p = d[4] - q2 * d[2], odd_p = d[3] - q2 * d[1];
  const V even_q = d[4] - p2 * d[2], odd_q = d[3] - p2 * d[1];
  t[0] = product * d[0] - sum * d[2] + d[4];
  t[1] = even_p + p * odd_p;
  t[2] = even_p - p * odd_p;
  t[3] = even_q + q * odd_q;
  t[4] = even_q - q * odd_q;
  t[5] = product * d[1] - sum * d[3] + d[5];
}

template <class V>
inline void transform_output(const V (&m)[kWinogradSide], V (&y)[kWinogradStep]) {
  const auto constant = [](double value) { return splat<V>(ElementOf<V>(value)); };
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2];
  const V even_q = m[3] + m[4], odd_q = m[3] - m[4];
  y[0] = m[0] + even_p + even_q;
  y[1] = constant(kP) * odd_p + constant(kQ) * odd_q;
  y[2] = constant(kP2) * even_p + constant(kQ2) * even_q;
  y[3] = constant(kP * kP2) * odd_p + (constant(kQ * kQ2) * odd_q + m[5]);
}

// Row `point` of the matrix that kernels are transformed with.
struct KernelTransform {
  double row[3];

  explicit KernelTransform(int64_t point) {
    constexpr double kPoints[] = {0, kP, -kP, kQ, -kQ};
    if (point == kWinogradSide - 1) {
      row[0] = row[1] = 0, row[2] = 1;
      return;
    }
    const double x = kPoints[point];
    double others = 1;
    for (int64_t i = 0; i < kWinogradSide - 1; ++i)
      if (i != point) others *= x - kPoints[i];
    row[0] = 1 / others, row[1] = x / others, row[2] = x * x / others;
  }

  double operator()(double x, double y, double z) const {
    return row[0] * x + row[1] * y + row[2] * z;
  }
};

// Panel: for every point and input channel kPanel output channels, zero beyond the last.
template <class T>
void pack_weights_for_winograd(const NormConv2d& a, int64_t first, Wide<T>* panel) {
  constexpr int64_t kStep = kPanel<Vec<T>>;
  for (int64_t i = 0; i < a.cin; ++i) {
    for (int64_t c = 0; c < kStep; ++c) {
      double kernel[3][3] = {};
      if (first + c < a.cout)
        for (int64_t k = 0; k < 9; ++k)
          kernel[k / 3][k % 3] = double(
              load<Wide<T>>(static_cast<const T*>(a.weight) + (first + c) * a.weight_cout +
                            i * a.weight_cin + k / 3 * a.weight_row + k % 3 * a.weight_column));
      for (int64_t u = 0; u < kWinogradSide; ++u) {
        const KernelTransform down(u);
        double row[3];
        for (int k = 0; k < 3; ++k) row[k] = down(kernel[0][k], kernel[1][k], kernel[2][k]);
        for (int64_t v = 0; v < kWinogradSide; ++v)
          panel[((u * kWinogradSide + v) * a.cin + i) * kStep + c] =
              Wide<T>(KernelTransform(v)(row[0], row[1], row[2]));
      }
    }
  }
}

// The inputs of one square, `count` channels of them, to the 36 points of those channels.
template <class V>
inline void transform_square(const ElementOf<V>* const (&rows)[kWinogradSide], int64_t pitch,
                             int64_t point_pitch, ElementOf<V>* points) {
  V half[kWinogradSide][kWinogradSide];
  for (int j = 0; j < kWinogradSide; ++j) {
    V column[kWinogradSide], t[kWinogradSide];
    for (int i = 0; i < kWinogradSide; ++i) column[i] = load<V>(rows[i] + j * pitch);
    transform_input(column, t);
    for (int i = 0; i < kWinogradSide; ++i) half[i][j] = t[i];
  }
  for (int i = 0; i < kWinogradSide; ++i) {
    V t[kWinogradSide];
    transform_input(half[i], t);
    for (int j = 0; j < kWinogradSide; ++j)
      store(points + (i * kWinogradSide + j) * point_pitch, t[j]);
  }
}

// Products of kCount squares at one point, summed over the input channels.
template <int kCount, class V>
inline void multiply_squares(const ElementOf<V>* points, const ElementOf<V>* weights, int64_t cin,
                             ElementOf<V>* products) {
  const ElementOf<V>* squares[kCount];
  for (int r = 0; r < kCount; ++r) squares[r] = points + r * cin;
  V sums[kCount][2] = {};
  multiply_panel(squares, 1, weights, cin, sums);
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < 2; ++v) store(products + r * kPanel<V> + v * kLanes<V>, sums[r][v]);
}

// From the 36 sums of a square to its outputs, rounded as they will be stored: `height` rows of
// `width` pixels.
template <class T, class V>
inline void finish_square(const ElementOf<V>* products, V bias, int64_t height, int64_t width,
                          ElementOf<V>* values, int64_t row_pitch) {
  constexpr int64_t kPitch = kWinogradTiles * kPanel<V>;
  V half[kWinogradSide][kWinogradStep];
  for (int i = 0; i < kWinogradSide; ++i) {
    V sums[kWinogradSide];
    for (int j = 0; j < kWinogradSide; ++j)
      sums[j] = load<V>(products + (i * kWinogradSide + j) * kPitch);
    transform_output(sums, half[i]);
  }
  for (int j = 0; j < width; ++j) {
    V column[kWinogradSide], y[kWinogradStep];
    for (int i = 0; i < kWinogradSide; ++i) column[i] = half[i][j];
    transform_output(column, y);
    for (int i = 0; i < height; ++i)
      store(values + i * row_pitch + j * kPanel<V>, rounded_to<T>(y[i] + bias));
  }
}

template <class T>
void run_band_by_winograd(const NormConv2d& a, const Geometry<T>& g, const Input<T>& input,
                          int64_t n, int64_t band, Wide<T>* memory) {
  using V = Vec<T>;
  using W = Wide<T>;
  constexpr int64_t kStep = kPanel<V>;
  const int64_t pitch = winograd_pitch(a.cin);
  W* points = memory + g.span * g.row_elements;
  W* products = points + kWinogradPoints * pitch;
  W* values = products + kWinogradPoints * kWinogradTiles * kStep;
  Ring<T> ring{a, input, g, n, memory};
  BandStatistics statistics(a, n, band);
  const int64_t squares = (a.columns + kWinogradStep - 1) / kWinogradStep;
  const int64_t blocks = (squares + kWinogradTiles - 1) / kWinogradTiles;
  const int64_t per_block = (squares + blocks - 1) / blocks;
  const int64_t last_row = smaller((band + 1) * a.band, a.rows);
  for (int64_t row = band * a.band; row < last_row; row += kWinogradStep) {
    ring.advance(row / kWinogradStep);
    const W* rows[kWinogradSide];
    for (int64_t i = 0; i < kWinogradSide; ++i) rows[i] = ring.row(row + g.low + i);
    const int64_t height = smaller(kWinogradStep, last_row - row);
    for (int64_t square = 0; square < squares; square += per_block) {
      const int64_t count = smaller(per_block, squares - square);
      for (int64_t t = 0; t < count; ++t) {
        const W* corner[kWinogradSide];
        const auto at = [&](int64_t channel) {
          for (int i = 0; i < kWinogradSide; ++i)
            corner[i] = rows[i] + (square + t) * kWinogradStep * a.cin + channel;
          return points + t * a.cin + channel;
        };
        int64_t c = 0;
        for (; c + kLanes<V> <= a.cin; c += kLanes<V>) {
          W* to = at(c);
          transform_square<V>(corner, a.cin, pitch, to);
        }
        for (; c < a.cin; ++c) {
          W* to = at(c);
          transform_square<W>(corner, a.cin, pitch, to);
        }
      }
      const int64_t column = square * kWinogradStep;
      const int64_t width = smaller(count * kWinogradStep, a.columns - column);
      for (int64_t first = 0; first < a.cout; first += kStep) {
        const W* weights = static_cast<const W*>(a.packed) + g.panel_begin(a, 0, 0, first / kStep);
        for (int64_t point = 0; point < kWinogradPoints; ++point) {
          const W* from = points + point * pitch;
          const W* panel = weights + point * a.cin * kStep;
          W* to = products + point * kWinogradTiles * kStep;
          for (int64_t t = 0, step; t < count; t += step) {
            // Four rows are enough to keep two multiply-adds busy, two are not.
            const int64_t left = count - t;
            step = left >= kRows && left != kRows + 2 ? kRows : left >= 4 ? 4 : 1;
            if (step == kRows)
              multiply_squares<kRows, V>(from + t * a.cin, panel, a.cin, to + t * kStep);
            else if (step == 4)
              multiply_squares<4, V>(from + t * a.cin, panel, a.cin, to + t * kStep);
            else
              multiply_squares<1, V>(from + t * a.cin, panel, a.cin, to + t * kStep);
          }
        }
        W bias[kStep];
        read_bias(a, first, bias);
        for (int64_t t = 0; t < count; ++t)
          for (int64_t lane = 0; lane < kStep; lane += kLanes<V>)
            finish_square<T>(products + t * kStep + lane, load<V>(bias + lane), height,
                             smaller(kWinogradStep, width - t * kWinogradStep),
                             values + t * kWinogradStep * kStep + lane, width * kStep);
        for (int64_t i = 0; i < height; ++i)
          write_row<T>(a, n, row + i, column, width, first, values + i * width * kStep);
        if (a.wants_statistics()) statistics.add(values, height * width, first);
      }
      statistics.counted += double(height * width);
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
