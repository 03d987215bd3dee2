// Convolution with a large kernel by nested Winograd transforms, for few channels in or few out: 25
// multiplications per output, input channel and output channel in place of 81 for a kernel of 9.
//
// A 9x9 kernel is 3x3 kernel blocks of 3x3 elements. By F(3x3, 3x3) a tile of 3 x 3 outputs of one
// such block comes from 5 x 5 inputs at 25 points. Tiles are 3 pixels apart, so that the next
// kernel block reads the next tile: inputs of a tile are transformed once. At every point an output
// tile is the sum over the kernel blocks of transformed block times tile, a 3x3 convolution of the
// image of tiles. Kernels from 5 on are filled up with zeros to whole blocks.
//
// This file has the transforms; the loops are in nested_few_inputs.h and nested_few_outputs.h.
#pragma once

#include "conv_output.h"
#include "conv_rows.h"

namespace stylekernels::CPU_CAPABILITY {

// Points of the polynomials: 0, p, -p, q and infinity. 3/4 and 2 have the least error among points
// exact in few bits: 5e-7 for a float32 layer with 3 inputs (PyTorch 3e-7), 1.3e-6 with 32 (PyTorch
// 9e-7). That is two thirds of what the usual 1 and 2 leave, and half the largest error.
constexpr double kNestedP = 0.75, kNestedQ = 2;

template <class V>
inline void to_points(const V (&d)[kNestedSide], V (&t)[kNestedSide]) {
  const V p = constant<V>(kNestedP), p2 = constant<V>(kNestedP * kNestedP);
  const V q = constant<V>(kNestedQ);
  const V even = d[3] - q * d[2], odd = d[2] - q * d[1];
  t[0] = even - p2 * (d[1] - q * d[0]);
  t[1] = even + p * odd;
  t[2] = even - p * odd;
  t[3] = d[3] - p2 * d[1];
  t[4] = d[4] - q * d[3] - p2 * odd;
}

template <class V>
inline void from_points(const V (&m)[kNestedSide], V (&y)[kNestedOutputs]) {
  const V sum = m[1] + m[2], difference = m[1] - m[2];
  y[0] = m[0] + m[3] + sum;
  y[1] = constant<V>(kNestedQ) * m[3] + constant<V>(kNestedP) * difference;
  y[2] = constant<V>(kNestedQ * kNestedQ) * m[3] + m[4] + constant<V>(kNestedP * kNestedP) * sum;
}

inline double kernel_at_point(int64_t point, double x, double y, double z) {
  constexpr double kPoints[] = {0, kNestedP, -kNestedP, kNestedQ};
  if (point == kNestedSide - 1) return z;
  const double p = kPoints[point];
  double others = 1;
  for (int64_t i = 0; i < kNestedSide - 1; ++i)
    if (i != point) others *= p - kPoints[i];
  return (x + p * y + p * p * z) / others;
}

// Packs a panel. Few inputs: [point][block row][block column][input channel][kPanel output
// channels], zero beyond the last output channel. Few outputs: [point][block row][input
// channel][block column][output channel].
template <class T>
void pack_nested_weights(const NormConv2d& a, const Geometry<T>& g, int64_t first, Wide<T>* panel) {
  const int64_t width = g.panel_channels(a), points = kNestedPoints;
  const int64_t per_point = g.panel_elements(a, 0, 0) / points;
  const auto element = [&](int64_t c, int64_t i, int64_t row, int64_t column) {
    if (first + c >= a.cout || row >= a.kernel || column >= a.kernel) return 0.0;
    return double(load<Wide<T>>(static_cast<const T*>(a.weight) + (first + c) * a.weight_cout +
                                i * a.weight_cin + row * a.weight_row + column * a.weight_column));
  };
  for (int64_t block = 0; block < g.kernel_blocks * g.kernel_blocks; ++block) {
    const int64_t down = block / g.kernel_blocks, right = block % g.kernel_blocks;
    for (int64_t i = 0; i < a.cin; ++i) {
      const int64_t term = g.is(Method::few_outputs) ? (down * a.cin + i) * g.kernel_blocks + right
                                                     : block * a.cin + i;
      for (int64_t c = 0; c < width; ++c) {
        double kernel[3][3];
        for (int64_t k = 0; k < 9; ++k)
          kernel[k / 3][k % 3] = element(c, i, 3 * down + k / 3, 3 * right + k % 3);
        for (int64_t u = 0; u < kNestedSide; ++u) {
          double row[3];
          for (int k = 0; k < 3; ++k)
            row[k] = kernel_at_point(u, kernel[0][k], kernel[1][k], kernel[2][k]);
          for (int64_t v = 0; v < kNestedSide; ++v)
            panel[(u * kNestedSide + v) * per_point + term * width + c] =
                Wide<T>(kernel_at_point(v, row[0], row[1], row[2]));
        }
      }
    }
  }
}

}  // namespace stylekernels::CPU_CAPABILITY
