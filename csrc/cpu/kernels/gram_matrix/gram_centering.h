// Centring of bfloat16 features that are multiplied as they are: products with their means are
// subtracted instead. That is exact but for the rounding of float32 sums.
//
//   forward    sum_p (x_i - m_i) (x_j - m_j) = sum_p x_i x_j - P m_i m_j: see SumCentering
//   backward   S (x - m) = S x - S m: accumulators begin at -S m, a number per channel
#pragma once

#include "../vector/tiles.h"
#include "gram_features.h"

#if HAS_PAIRS || HAS_TILES
namespace stylekernels::CPU_CAPABILITY {

// Loads a vector of `count` values, with zeros beyond.
inline VecF load_first(const float* p, int64_t count) {
  if (count >= kLanes<VecF>) return load<VecF>(p);
  VecF v{};
  if (count > 0) std::memcpy(&v, p, count * sizeof(float));
  return v;
}

// Subtracts the products of means from the sums of channels from `row` on with those from `column`
// on. The sums are those of a chunk: subtracting from the total would leave more rounding errors.
struct SumCentering {
  const GramMatrix& args;
  const float *mean, *error;  // of the image
  int64_t row;
  VecF near, rest;  // mean and error of the columns

  SumCentering(const GramMatrix& a, int64_t n, int64_t first_row, int64_t column)
      : args(a),
        mean(static_cast<const float*>(a.mean) + n * a.c),
        error(mean + a.n * a.c),
        row(first_row),
        near(load_first(mean + column, a.c - column)),
        rest(load_first(error + column, a.c - column)) {}

  // Returns the centred sums of row i of the square, from those of `pixels` pixels. The factor is
  // exact: it holds the scale as sums do, rounded to float32.
  VecF operator()(VecF sums, int64_t i, int64_t pixels) const {
    if (row + i >= args.c) return sums;
    const double m = double(mean[row + i]) + double(error[row + i]);
    const double factor = double(float(args.scale)) * double(pixels) * m;
    const float high = float(factor), low = float(factor - double(high));
    sums = multiply_add_rounded_once(splat<VecF>(-high), near, sums);
    return sums - splat<VecF>(low) * near - splat<VecF>(high) * rest;
  }
};

// Adds to `sums`, lane by lane, minus the products of a piece of a row of S, which begins at
// `column`, with the means of image n.
inline void subtract_mean(const GramMatrixBackward& args, int64_t n, int64_t column,
                          const BFloat16* piece, VecF& sums) {
  const float* mean = static_cast<const float*>(args.mean) + n * args.c + column;
  const VecF factor = load<VecF>(piece);
  sums -= factor * load_first(mean, args.c - column);
  sums -= factor * load_first(mean + args.n * args.c, args.c - column);
}

}  // namespace stylekernels::CPU_CAPABILITY
#endif
